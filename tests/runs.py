"""A whole run in miniature for tests: the real loop, store and algorithm over fake roles, in this process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.factories import Engines
from actors.fakes import FakeEngines
from cluster.run.job import Job
from engine.config.run import RunConfig
from engine.store.disk import Disk

PROMPTS = {"source": str(Path(__file__).parent.parent / "recipes/configs/smoke_prompts.jsonl"), "limit": 8}


def fake_config(folder: Path, **changes: Any) -> RunConfig:
    """Two iterations over eight prompts in shards of two, with held-out prompts and an evaluator.

    SPIN asks for one answer, KTO for micro-batches of two; they get that unless `changes` says otherwise.
    """
    rule = {"kind": "rule", "function": "actors.fakes:utility"}
    values: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "iterations": 2,
        "shard_size": 2,
        "model": {"path": "fake", "dtype": "float32"},
        "prompts": {**PROMPTS, "use": "all"},
        "sampling": {"num_samples": 3, "max_new_tokens": 5},
        "generator": {"num_replicas": 2},
        "scorer": rule,
        "learner": {
            "batch_size": 2,
            "checkpoint_every": 1,
            "zero_stage": 0,
            "optimizer": {"name": "adamw", "lr": 0.1},
        },
        "evaluation": {"prompts": PROMPTS, "scorer": rule},
        "cluster": {"backend": "local"},
    }
    values |= changes
    name = values.get("algorithm", {}).get("name")
    if name == "spin":
        values["sampling"] = {**values["sampling"], "num_samples": 1}
    if name == "kto":
        values["learner"] = {**values["learner"], "micro_batch_size": 2}
    return RunConfig.model_validate(values)


def play(config: RunConfig, disk: Disk | None = None, engines: Engines | None = None) -> Path:
    """Run `config` to its end, or continue it; return the run folder. The roles are fakes unless `engines` is given."""
    with Job(config, Console(quiet=True), disk, engines or FakeEngines()) as job:
        job.play()
    return Path(config.output) / config.name


_FINISHED: dict[str, Path] = {}


def finished(config: RunConfig) -> Path:
    """The folder of a finished run, for tests of what is read from it; a run of the same config is copied."""
    key = config.model_copy(update={"output": ""}).model_dump_json()
    if key not in _FINISHED:
        copy = Path(tempfile.mkdtemp(prefix="kumite-tests-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        _FINISHED[key] = copy / "run"
        shutil.copytree(play(config), _FINISHED[key])
        return Path(config.output) / config.name
    return Path(shutil.copytree(_FINISHED[key], Path(config.output) / config.name))


class Killed(BaseException):
    """Stands for the death of the process, which raises nothing in reality."""


class DyingDisk(Disk):
    """The process dies at the k-th file operation: nothing is written after that, except part of a line."""

    def __init__(self, k: int):
        super().__init__(self._count)
        self.left = k

    def append(self, path: Path, line: str) -> None:
        if self.left == 0:
            with path.open("ab") as file:
                file.write(line.encode()[: len(line) // 2])
        super().append(path, line)

    def _count(self, operation: str, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed(operation, path)
