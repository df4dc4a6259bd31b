"""All that a page shows of one run, read from its folder. The run may still be in progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.config.load import load
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.evaluation.gate import Decision, best_version, decisions
from engine.evaluation.ladder import Ladder, run_ladder
from engine.metrics.json_lines import Record
from engine.metrics.timeline import Timeline, read_timeline
from engine.metrics.trackers import FILE_NAME, read_metrics
from engine.report.answer import Answer, Facts, answer
from engine.report.samples import HeldoutSample, Spread, TrainingSample, heldout_samples, spread, training_samples
from engine.report.summary import Summary, complete, summarize
from engine.schema import BENCHMARK_RESULTS
from engine.store.disk import owner_of
from engine.store.reader import RunReader

STOPPED = "stopped: "
"""Begins the note about the error that ended a run."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One number of a benchmark for one version of the policy; a row of engine.schema.BENCHMARK_RESULTS."""

    version: int
    benchmark: str
    metric: str
    value: float
    stderr: float
    low: float
    high: float
    num: int
    note: str


class RunData:
    """One run. What takes long to read is read when it is asked for."""

    def __init__(self, store: RunReader, config: RunConfig, status: str):
        """status: finished, running, or the error that stopped it."""
        self.store, self.config, self.status = store, config, status
        self.folder = store.folder
        self.problems: list[str] = []
        """What could not be read."""
        self.records = self._read_records()
        self.timeline = self._read_timeline()

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def summary(self) -> Summary:
        path = self.folder / "run.json"
        provenance = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return complete(summarize(self.store, self.config, self.status, provenance), self.records)

    @cached_property
    def decisions(self) -> list[Decision]:
        return decisions(self.store)

    @cached_property
    def ladder(self) -> Ladder | None:
        return run_ladder(self.store)

    @property
    def notes(self) -> list[Record]:
        """The messages of the run, in order."""
        return [record for record in self.records if record["kind"] == "note"]

    @property
    def steps(self) -> list[Record]:
        """The optimizer steps, in order."""
        return [record for record in self.records if record["kind"] == "step"]

    @cached_property
    def answer(self) -> Answer:
        config = self.config
        has_heldout = config.evaluation is not None and config.evaluation.prompts is not None
        return answer(
            Facts(
                status=self.status,
                iterations=self.summary.iterations,
                num_planned=config.iterations,
                judge=self.summary.judge,
                is_own_judge=config.evaluator is None,
                has_heldout=has_heldout,
                decisions=self.decisions,
                ladder=self.ladder,
                best=best_version(self.store) if self.decisions else None,
                notes=[note["text"] for note in self.notes],
            )
        )

    @cached_property
    def benchmarks(self) -> list[BenchmarkRow]:
        stages = [stage for stage in self.store.stages("version") if stage.endswith("_results")]
        return [
            BenchmarkRow(version, **row)
            for stage in stages
            for version in self.store.versions
            for table in self.store.tables(version, stage, BENCHMARK_RESULTS)
            for row in table.to_pylist()
        ]

    @cached_property
    def _iterations(self) -> Sequence[int]:
        return [t for t in range(self.config.iterations) if self.store.shards(t, "selected")]

    @cached_property
    def training_samples(self) -> list[TrainingSample]:
        return training_samples(self.store, self.config.algorithm, self._iterations)

    @cached_property
    def heldout_samples(self) -> list[HeldoutSample]:
        return heldout_samples(self.store, self.store.versions)

    @cached_property
    def spreads(self) -> list[Spread]:
        return [found for t in self._iterations if (found := spread(self.store, t))]

    def _read_records(self) -> list[Record]:
        try:
            return read_metrics(self.folder / FILE_NAME)
        except StoreError as error:  # a report that names the damage is better than none
            self.problems.append(str(error))
            return []

    def _read_timeline(self) -> Timeline:
        try:
            return read_timeline(self.folder)
        except StoreError as error:
            self.problems.append(str(error))
            return Timeline()


def read_run(folder: Path) -> RunData:
    """The run in `folder`. Raises StoreError if it is none, ConfigError if its config cannot be read."""
    store = RunReader(folder)
    data = RunData(store, load(folder / "config.yaml"), "running")
    data.status = status_of(store, data.notes)
    return data


def status_of(store: RunReader, notes: Sequence[dict[str, Any]]) -> str:
    """finished, running, or how it stopped."""
    if store.recorded("finished"):
        return "finished"
    if owner_of(store.folder):
        return "running"
    last = notes[-1]["text"] if notes else ""
    return last if last.startswith(STOPPED) else f"{STOPPED}no process works on it"
