"""What held-out preferences say about a policy: loss, accuracy, rewards and log-ratios of one validation.

A validation is the table VALIDATION of all held-out rows after some optimizer steps. The *preference accuracy* is the
share of pairs of which the chosen answer has the higher implicit reward, ties at 1/2. The log-ratios are those of
answers of a data set, so their means are no estimate of a KL divergence, which needs the policy's own answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from engine.config.learner import ValidationMetric
from engine.evaluation.statistics import Interval, clustered_share
from engine.schema import OTHER_PROMPT

NAMES: Mapping[ValidationMetric, str] = {"loss": "eval/loss", "accuracy": "eval/rewards/accuracies"}
"""The metrics by which steps are chosen, as they are called in metrics.jsonl."""


@dataclass(frozen=True)
class _Row:
    """One held-out row; values of the chosen and of the rejected answer, NaN for an answer that the row lacks."""

    prompt: str
    """The hash of the prompt's content, which all its pairs share."""
    loss: float
    rewards: tuple[float, float]
    logps: tuple[float, float]
    log_ratios: tuple[float, float]


class Validation:
    """The figures of one validation."""

    def __init__(self, table: pa.Table):
        """table: engine.schema.VALIDATION, at least one row."""
        self._rows = [_read(row) for row in table.to_pylist()]

    @property
    def loss(self) -> float:
        """Mean over the rows."""
        return math.fsum(row.loss for row in self._rows) / len(self._rows)

    @cached_property
    def accuracy(self) -> Interval | None:
        """Preference accuracy in [0, 1] with its 95 % interval over prompts; None where the rows are single answers."""
        decided = [i for i, won in enumerate(self._wins) if not math.isnan(won)]
        if not decided:
            return None
        return clustered_share([self._wins[i] for i in decided], [self._rows[i].prompt for i in decided])

    def metrics(self) -> dict[str, float]:
        """All figures under the names of metrics.jsonl; those that cannot be computed are absent."""
        figures = {"eval/loss": self.loss, "eval/rewards/accuracies": _mean(self._wins)}
        for name, attribute in {"rewards": "rewards", "logps": "logps", "log_ratio": "log_ratios"}.items():
            for side, end in enumerate(("chosen", "rejected")):
                figures[f"eval/{name}/{end}"] = _mean(getattr(row, attribute)[side] for row in self._rows)
        figures["eval/rewards/margins"] = figures["eval/rewards/chosen"] - figures["eval/rewards/rejected"]
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    @cached_property
    def _wins(self) -> list[float]:
        """[rows] 1, 1/2 or 0: whether the chosen answer has the higher reward; NaN for a single answer."""
        return [float(1.0 + np.sign(row.rewards[0] - row.rewards[1])) / 2.0 for row in self._rows]


def _mean(values: Iterable[float]) -> float:
    """Of the values that are numbers; NaN if none is."""
    there = [value for value in values if not math.isnan(value)]
    return math.fsum(there) / len(there) if there else math.nan


def _read(row: dict[str, Any]) -> _Row:
    own = [i for i, index in enumerate(row["completion_index"]) if index != OTHER_PROMPT]
    rates = row["win_rate"]
    if len(own) == 1:  # a single answer, desirable or not
        sides: list[int | None] = [own[0], None] if rates[own[0]] > 0.5 else [None, own[0]]
    else:
        sides = [max(own, key=rates.__getitem__), min(reversed(own), key=rates.__getitem__)]

    def both(name: str) -> tuple[float, float]:
        chosen, rejected = (math.nan if side is None else row[name][side] for side in sides)
        return chosen, rejected

    logps, references = both("logps"), both("ref_logps")
    ratios = (logps[0] - references[0], logps[1] - references[1])
    return _Row(row["prompt_id"].rsplit("-", 1)[0], row["loss"], both("rewards"), logps, ratios)
