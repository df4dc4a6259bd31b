"""Validation on held-out preferences: the stages before an update, and the validations during it.

    validation_pairs -> validation_rows -> validation_ref_logps -> validation (one per validated step)

The shard of a validation has the number of its optimizer step. What a validation decides, it decides from committed
tables alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.algorithms.base import Selection
from engine.config.learner import ValidationMetric
from engine.config.run import RunConfig
from engine.errors import DataError
from engine.evaluation.preferences import NAMES, Validation
from engine.evaluation.stopping import History, best_step, is_over
from engine.loop.roles import Learner, Roles
from engine.loop.stages import RefLogps, Selected, Stage, Versions
from engine.metrics.monitor import Monitor
from engine.schema import PROMPTS, REF_LOGPS, VALIDATION
from engine.store.run import RunStore

PAIRS = "validation_pairs"
STAGE = "validation"


@dataclass
class ValidationRows(Selected):
    """The rows of held-out preferences, as the algorithm reads them."""

    name = "validation_rows"
    reads_iteration = 0

    def select(self, table: pa.Table) -> Selection:
        return self.algorithm.heldout_rows(table)


@dataclass
class ValidationRefLogps(RefLogps):
    """These rows with the log-probabilities of the iteration's reference policy."""

    name = "validation_ref_logps"
    reads = ValidationRows.name


def validation_stages(config: RunConfig, version: Versions, iteration: int) -> list[Stage[Any]]:
    """The stages of held-out preferences before the update of an iteration."""
    reference = version(0 if config.algorithm.reference == "start" else iteration)
    return [ValidationRows(config.algorithm, PAIRS, PROMPTS), ValidationRefLogps(reference)]


class Validator:
    """Validates the learner during the update of an iteration; does nothing without held-out preferences."""

    def __init__(self, config: RunConfig, roles: Roles, store: RunStore, monitor: Monitor):
        self._learner, self._roles, self._store, self._monitor = config.learner, roles, store, monitor
        self._enabled = config.preferences is not None
        self._metrics: dict[tuple[int, int], dict[str, float]] = {}

    def next_due(self, step: int, num_steps: int) -> int:
        """The first step after `step` that is validated: every evaluate_every-th and the last one."""
        every = self._learner.evaluate_every if self._enabled else None
        return min((step // every + 1) * every, num_steps) if every else num_steps

    def validate(self, t: int, step: int, num_steps: int) -> dict[str, float]:
        """Validate after `step` steps, unless that is committed; the metrics, or nothing where none is due."""
        if not self._enabled or self.next_due(step - 1, num_steps) != step:
            return {}
        if not self._store.has(t, STAGE, step):
            shards = [table for table in self._store.tables(t, ValidationRefLogps.name, REF_LOGPS) if table.num_rows]
            if not shards:
                counts = ", ".join(f"{name} {n}" for name, n in self._store.counts(t, ValidationRows.name).items())
                raise DataError(f"iteration {t + 1}: evaluation.preferences leaves no row to validate on ({counts})")
            with self._monitor.timed(STAGE):
                learner = self._roles.learner
                tables = [learner.submit(Learner.validate, shard, step).result().value for shard in shards]
            self._store.commit(t, STAGE, step, pa.concat_tables(tables), VALIDATION)
        return self._at(t, step)

    def is_complete(self, t: int, step: int) -> bool:
        """Whether every validation of iteration t up to `step` is committed and undamaged."""
        every = self._learner.evaluate_every if self._enabled else None
        return all(self._store.has(t, STAGE, due) for due in range(every, step + 1, every)) if every else True

    def is_intact(self, t: int) -> bool:
        """Whether the validations that a finished iteration t had are undamaged; true for an unfinished one."""
        done = self._store.recorded(f"iteration {t}")
        return all(self._store.has(*shard) for shard in done["shards"] if shard[1] == STAGE) if done else True

    def is_over(self, t: int, step: int) -> bool:
        """Whether early stopping ends iteration t after `step` steps."""
        stopping = self._learner.early_stopping
        return stopping is not None and is_over(stopping, self._history(t, step, stopping.metric))

    def best_step(self, t: int, step: int) -> int | None:
        """The best validated step up to `step`, whose weights are kept; None if the last step's are, or none yet is."""
        metric = self._learner.keep_best_step
        history = self._history(t, step, metric) if metric else []
        return best_step(metric, history) if metric and history else None

    def _history(self, t: int, step: int, metric: ValidationMetric) -> History:
        """The validations of iteration t up to `step`; an earlier process may have come further."""
        steps = [shard for shard in self._store.shards(t, STAGE) if shard <= step]
        return [(shard, self._at(t, shard)[NAMES[metric]]) for shard in steps]

    def _at(self, t: int, step: int) -> dict[str, float]:
        if (t, step) not in self._metrics:
            self._metrics[t, step] = Validation(self._store.read(t, STAGE, step, VALIDATION)).metrics()
        return self._metrics[t, step]
