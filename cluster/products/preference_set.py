"""A run's preferences as a folder that `datasets.load_dataset` opens: Parquet files by split, and a data-set card.

    README.md
    data/train_iteration_1-00000-of-00001.parquet    the rows that trained iteration 1
    data/test_iteration_1-00000-of-00001.parquet     held-out prompts: the policy that it made against the start policy
    data/test-00000-of-00001.parquet                 held-out preferences

The splits are named as in Snorkel-Mistral-PairRM-DPO-Dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.products.preference_rows import Layout, Source, dataset_rows, heldout_rows, training_rows
from engine.algorithms.preference import ESTIMATORS
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.loop.validation import PAIRS
from engine.schema import COMPLETIONS, HELDOUT_WIN_RATES, PROMPTS, SELECTABLE, SELECTED
from engine.store.reader import RunReader

ROW_GROUP = 1000
"""Rows that a reader of a stream loads at once, as in `datasets`."""
FILE_BYTES = 500_000_000
"""Size in memory at which a file is closed and the next one begins, as in `datasets`."""


@dataclass(frozen=True)
class Split:
    """One split as it was written."""

    name: str
    num_rows: int
    num_bytes: int
    """In memory."""
    file_bytes: int
    counts: dict[str, int] = field(default_factory=dict)
    """{rule: prompts or answers to which it applied}, as committed with the rows."""


class PreferenceSet:
    """What a run has to export. Raises StoreError where no iteration is complete, or one that was named is not."""

    def __init__(
        self,
        store: RunReader,
        config: RunConfig,
        iterations: Sequence[int] | None = None,
        estimator: str | None = None,
    ):
        """iterations: counted from 1; None: all that are complete. estimator: of preference.ESTIMATORS; None: the
        algorithm's."""
        self.store, self.config = store, config
        self.estimator = estimator or config.algorithm.win_estimator
        self.complete = [t + 1 for t in range(config.iterations) if self._is_complete(t)]
        self.iterations = self.complete if iterations is None else list(iterations)
        if missing := [number for number in self.iterations if number not in self.complete]:
            known = f"complete: {', '.join(map(str, self.complete)) or 'none'}"
            raise StoreError(f"{store.folder} has no rows of iteration {', '.join(map(str, missing))} yet; {known}")
        if not self.iterations:
            raise StoreError(f"{store.folder} has no complete iteration yet, so there are no preferences to export")
        self.tests = [number for number in self.iterations if self._has_verdicts(number)]
        self.has_given = self._has_given()
        self.layout = self._layout()

    def write(self, folder: Path) -> list[Split]:
        """Write the Parquet files below `folder`; a split without rows is left out.

        Raises StoreError for a table that its hash does not confirm, and where no split has rows.
        """
        splits = [
            self._write(folder, f"train_iteration_{n}", self._train(n), self.store.counts(n - 1, "selected"))
            for n in self.iterations
        ]
        splits += [self._write(folder, f"test_iteration_{n}", self._test(n), {}) for n in self.tests]
        splits += [self._write(folder, "test", self._given(), {})] if self.has_given else []
        if not any(split.num_rows for split in splits):
            raise StoreError(f"{self.store.folder}: the algorithm's rules left no row; there is nothing to export")
        return [split for split in splits if split.num_rows]

    def _is_complete(self, t: int) -> bool:
        return 0 < len(self.store.shards(t, "prompts")) == len(self.store.shards(t, "selected"))

    def _has_verdicts(self, number: int) -> bool:
        """Whether each held-out prompt has one answer of the version, compared with one of the start policy."""
        evaluation = self.config.evaluation
        if evaluation is None or evaluation.num_samples != 1 or self._labelled:
            return False
        num_shards = len(self.store.shards(0, "heldout_prompts"))
        return 0 < num_shards == len(self.store.shards(number, "heldout_win_rates"))

    def _has_given(self) -> bool:
        """Whether preferences were held out whose rows have the form of those that trained."""
        shards = self.store.shards(0, PAIRS)
        first = self.store.read(0, PAIRS, shards[0], PROMPTS) if shards else None
        return first is not None and len(first["dataset_win_rates"][0]) == (1 if self._labelled else 2)

    @property
    def _labelled(self) -> bool:
        """Whether the algorithm learns from single answers with a label."""
        return self.config.algorithm.num_dataset_completions == 1 and not self.config.algorithm.samples

    def _layout(self) -> Layout:
        algorithm = self.config.algorithm
        sizes = [2] if self.tests else [0]
        if algorithm.samples:
            groups = max(1 + ("start_completions" in algorithm.stages(n - 1)) for n in self.iterations)
            sizes.append(groups * self.config.sampling.num_samples)
        return Layout(self._labelled, max(sizes), algorithm.needs_scorer or bool(self.tests))

    def _train(self, number: int) -> Iterator[pa.Table]:
        """The rows of an iteration, shard by shard."""
        t, sampling = number - 1, self.config.sampling
        source = self._source(number, sampling.temperature, sampling.top_p)
        stage = self.config.algorithm.selects_from(t)
        for shard in self.store.shards(t, "selected"):
            table = self.store.read(t, stage, shard, SELECTABLE[stage])
            selected = self.store.read(t, "selected", shard, SELECTED)
            yield self.layout.table(list(training_rows(table, selected, source, self.layout.labelled)))

    def _test(self, number: int) -> Iterator[pa.Table]:
        """The held-out prompts of the version that an iteration made, shard by shard."""
        assert self.config.evaluation is not None
        temperature = self.config.evaluation.temperature
        source = self._source(number, temperature, self.config.sampling.top_p if temperature else 1.0)
        for shard in self.store.shards(number, "heldout_win_rates"):
            table = self.store.read(number, "heldout_win_rates", shard, HELDOUT_WIN_RATES)
            start = self.store.read(0, "heldout_completions", shard, COMPLETIONS)
            yield self.layout.table(list(heldout_rows(table, start, source)))

    def _given(self) -> Iterator[pa.Table]:
        """The held-out preferences, shard by shard."""
        source = self._source(0, 0.0, 0.0)
        for table in self.store.tables(0, PAIRS, PROMPTS):
            yield self.layout.table(list(dataset_rows(table, source, self.layout.labelled)))

    def _source(self, number: int, temperature: float, top_p: float) -> Source:
        start = self.store.recorded_digest(0) or ""
        return Source(number, start, self.config.seed, temperature, top_p, ESTIMATORS[self.estimator])

    def _write(self, folder: Path, name: str, tables: Iterable[pa.Table], counts: dict[str, int]) -> Split:
        """Write a split in as many files as its size needs; they get their names once their number is known."""
        (folder / "data").mkdir(parents=True, exist_ok=True)
        files: list[Path] = []
        num_rows = num_bytes = 0
        for table in _joined(tables):
            files.append(folder / "data" / f"{name}-{len(files):05d}.part")
            pq.write_table(table, files[-1], compression="zstd", row_group_size=ROW_GROUP)
            num_rows, num_bytes = num_rows + table.num_rows, num_bytes + table.nbytes
        for index, path in enumerate(files):
            path.rename(path.with_name(f"{name}-{index:05d}-of-{len(files):05d}.parquet"))
        sizes = [path.stat().st_size for path in (folder / "data").glob(f"{name}-*.parquet")]
        return Split(name, num_rows, num_bytes, sum(sizes), counts)


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of about FILE_BYTES, none of them empty: `datasets` cannot read a Parquet file without rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting += [table] if table.num_rows else []
        if sum(part.nbytes for part in waiting) >= FILE_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
