"""Which of K scored answers may train, by declared rules with counts: what SPPO, DPO and self-rewarding share.

Knows the columns of SCORED; nothing of losses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.algorithm import Algorithm, Selection
from engine.maths import preference

if TYPE_CHECKING:
    import pyarrow as pa

COUNTED = ("prompts", "ties", "no_pair", "missing", "duplicates", "truncated", "empty")
"""prompts seen; prompts without a preference, with fewer than two usable answers, without a verdict; answers that
repeat another, were cut by the length limit, hold no text."""


class ScoredAnswers(Algorithm):
    """An algorithm that makes at most one row of each prompt's scored answers."""

    ties: Literal["drop", "keep"] = "drop"
    """Prompts whose best and worst answer are equally good or are the same answer."""
    truncated: Literal["keep", "exclude"] = "keep"
    """Answers cut by the length limit: train on them, or leave them to the comparisons alone."""
    empty: Literal["keep", "exclude"] = "keep"
    """Answers without text, likewise."""

    def select(self, table: pa.Table) -> Selection:
        counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        rows = [row for prompt in table.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, f"{self.name} rows")

    @abstractmethod
    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """One training row, or None where the declared rules leave nothing to learn from; counts what they met."""

    def _eligible(self, prompt: dict, counts: Counter[str]) -> list[int]:
        """Indices of the answers that may train."""
        truncated = {i for i, reason in enumerate(prompt["finish_reasons"]) if reason == "length"}
        empty = {i for i, answer in enumerate(prompt["answers"]) if not answer.strip()}
        counts["prompts"] += 1
        counts["duplicates"] += len(prompt["answers"]) - len(set(prompt["answers"]))
        counts["truncated"] += len(truncated)
        counts["empty"] += len(empty)
        barred = (truncated if self.truncated == "exclude" else set()) | (empty if self.empty == "exclude" else set())
        return [i for i in range(len(prompt["answers"])) if i not in barred]

    def _is_tie(self, prompt: dict, best: int, worst: int, values: Sequence[float], counts: Counter[str]) -> bool:
        """Whether the rule for ties drops this pair."""
        tie = bool(values[best] == values[worst] or prompt["answers"][best] == prompt["answers"][worst])
        counts["ties"] += tie
        return tie and self.ties == "drop"


def best_and_worst(values: Sequence[float], eligible: Sequence[int]) -> tuple[int, int]:
    """Two different indices of `eligible`; among equals the first sampled, so ties never wobble."""
    best = max(eligible, key=lambda i: (values[i], -i))
    worst = min((i for i in eligible if i != best), key=lambda i: (values[i], i))
    return best, worst


def quality(prompt: dict) -> list[float]:
    """[K] how good each answer is: the scorer's own scores where it gives any, else its mean pair logit.

    NaN where there is no verdict.
    """
    return prompt["scores"] or preference.mean_logits(np.array(prompt["pair_logits"])).tolist()
