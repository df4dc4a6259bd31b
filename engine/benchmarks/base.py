"""What a published benchmark is: its input, the stages that answer and judge it, its numbers, its files.

A benchmark runs after each iteration of a run, or on any model by `kumite eval`. Both ways its input is committed
once, its stages run over the pools like those of an iteration, and its numbers are computed from committed tables, so
a restart repeats nothing and computes the same.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from engine.benchmarks.contamination import Overlap, fact_name, from_record
from engine.data.ingest import Renderer
from engine.errors import DataError
from engine.loop.stages import Stage
from engine.schema import BENCHMARK_FILES, BENCHMARK_RESULTS, PROMPTS
from engine.store.reader import Policy, RunReader


@dataclass(frozen=True)
class Result:
    """One number of a benchmark."""

    metric: str
    """In the benchmark's own words, e.g. "win_rate" or "arc_challenge/acc_norm"."""
    value: float
    """In the benchmark's own unit; NaN: it could not be computed, `note` says why."""
    stderr: float = math.nan
    """Standard error in the same unit; NaN where there is none."""
    low: float = math.nan
    high: float = math.nan
    """Ends of the 95 % interval; NaN where there is none."""
    num: int = 0
    """Items behind it."""
    note: str = ""
    """What a reader must know beside the number: a formula that differs, items without a verdict, missing data."""


class BenchmarkTables:
    """What is committed of one benchmark for one version of the policy."""

    def __init__(self, store: RunReader, benchmark: Benchmark, version: int):
        self._store, self._benchmark, self.version = store, benchmark, version

    def input(self) -> Iterator[pa.Table]:
        """The shards of the benchmark's input."""
        return self._store.tables(0, self._benchmark.input_stage, self._benchmark.input_schema)

    def provenance(self) -> dict[str, str]:
        """What its numbers rest on: the input by its digest and size, and what the benchmark says itself."""
        stage = self._benchmark.input_stage
        records = [self._store.shard_record(0, stage, shard) for shard in self._store.shards(0, stage)]
        digests = "".join(record["sha256"] for record in records if record)
        items = sum(record["rows"] for record in records if record)
        overlap, has_text = self.overlap(), "messages" in self._benchmark.input_schema.names
        reason = "the training prompts are not known" if has_text else "its prompts are kept as tokens alone"
        known = str(overlap) if overlap else f"not checked: {reason}"
        rests_on = {"input": hashlib.sha256(digests.encode()).hexdigest(), "items": f"{items}", "contamination": known}
        return rests_on | self._benchmark.provenance(self)

    def overlap(self) -> Overlap | None:
        """Its prompts that are also trained on; None: the training prompts are not known."""
        return from_record(self._store.recorded(fact_name(self._benchmark.name)))

    def of(self, stage: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """The shards that a stage wrote for this version."""
        return self._store.tables(self.version, stage, schema)

    def kept_files(self) -> dict[str, str]:
        """The benchmark's `kept_files`, as they were committed with the results of this version."""
        tables = self.of(f"{self._benchmark.name}_files", BENCHMARK_FILES)
        return {row["path"]: row["text"] for table in tables for row in table.to_pylist()}


class Benchmark(ABC):
    """One benchmark of policies. Constructed from its section of `evaluation.benchmarks`; cheap."""

    name: ClassVar[str]
    """Its key in `evaluation.benchmarks`; begins the names of its stages, e.g. "alpaca_eval_completions"."""
    input_schema: ClassVar[pa.Schema] = PROMPTS
    depends_on_policy: ClassVar[bool] = True
    """Whether versions of the policy differ on it; else it is measured for the first one only."""

    @property
    def input_stage(self) -> str:
        """Name under which its input is committed."""
        return f"{self.name}_input"

    @abstractmethod
    def inputs(self, chat: Renderer) -> list[pa.Table]:
        """Its items as tables of `input_schema`, one per shard. Raises DataError, naming file and row."""

    @abstractmethod
    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        """From the input to the verdicts on one version, whose chat template is `chat`. The first stage reads
        `input_stage` of iteration 0; every stage has `of = "version"` and a name that begins with the benchmark's."""

    @abstractmethod
    def results(self, tables: BenchmarkTables) -> list[Result]:
        """Its numbers for one version, computed from committed tables alone."""

    def kept_files(self, tables: BenchmarkTables) -> dict[str, str]:
        """Files that are committed with the results, because they take more than committed tables to make."""
        return {}

    @abstractmethod
    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """Its files in the field's own formats, text by relative path. generator: name of the policy in them."""

    def plots(self, results: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """Images of several policies, {policy: {metric: value}}: SVG by relative path."""
        return {}

    def together(self, tables: Mapping[str, BenchmarkTables]) -> dict[str, str]:
        """Files that show several policies, {name: what is committed of it}: text by relative path."""
        return {}

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """{stage: one table per shard of the input} of the answers in a file, in place of the stages that would ask a
        policy. Raises DataError for a file that does not answer the input; all mistakes are named at once."""
        raise DataError(f"{path}: {self.name} does not read answers from files; name a model or a run")

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        """What is needed to compare its numbers with others' beside the input: sampling, seeds, id of the judge.

        Files by their names alone: paths tell about the machine, and cards are published.
        """
        return {}

    def is_published(self, metric: str) -> bool:
        """Whether the number rests on the whole data set of the hub that it is known by; else on a part or on files."""
        return False


def results_table(benchmark: Benchmark, results: list[Result]) -> pa.Table:
    """The results as engine.schema.BENCHMARK_RESULTS."""
    rows = [(benchmark.name, *astuple(result)) for result in results]
    return pa.Table.from_pylist(
        [dict(zip(BENCHMARK_RESULTS.names, row, strict=True)) for row in rows], schema=BENCHMARK_RESULTS
    )
