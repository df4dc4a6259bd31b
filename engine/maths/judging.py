"""How an LLM judge judges: counts of its habits, from what it was asked and what it said.

Pure functions on arrays, numpy only. Knows nothing of models, prompts or tables. K is the number of answers to one
prompt; a *question* is (answer shown first, answer shown second or -1 where it stood alone, value read or NaN).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.maths.preference import sigmoid, symmetrised

Question = tuple[int, int, float]
TIE = "tie"


@dataclass(frozen=True)
class Habits:
    """Counts over questions and pairs of answers; those of several prompts add up with `+`."""

    num_asked: int = 0
    """Questions: one order of one pair, or one judgement of one answer."""
    num_missing: int = 0
    """Of these, without a readable reply."""
    num_compared: int = 0
    """Comparisons with a verdict: an order of a pair, or a pair of answers that both have a score."""
    num_ties: int = 0
    num_shown: int = 0
    """Comparisons in which one answer was shown first."""
    first_probs: float = 0.0
    """Sum over these of P(first is better)."""
    num_both: int = 0
    """Pairs with a verdict in both orders."""
    num_consistent: int = 0
    """Of these, both prefer the same answer, or tie in both."""
    num_unequal: int = 0
    """Pairs with a preference between answers of different length."""
    num_longer: int = 0
    """Of these, the longer one is preferred."""
    said: Counter[str] = field(default_factory=Counter)
    """How often each verdict was given: "first", "second", "tie", or a score."""

    def __add__(self, other: Habits) -> Habits:
        return Habits(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """Shares in [0, 1] and the position bias in [-1/2, 1/2], as far as there is anything to divide by."""
        shares = {
            "missing_rate": (self.num_missing, self.num_asked),
            "tie_rate": (self.num_ties, self.num_compared),
            "consistency": (self.num_consistent, self.num_both),
            "position_bias": (self.first_probs - 0.5 * self.num_shown, self.num_shown),
            "longer_preferred": (self.num_longer, self.num_unequal),
            "commonest_verdict": (max(self.said.values(), default=0), self.said.total()),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}


def habits(logits: ArrayLike, questions: Sequence[Question], lengths: Sequence[int]) -> Habits:
    """What one prompt tells: `logits` [K, K] with abstentions as 0 and NaN for no verdict, `lengths` [K]."""
    matrix = np.asarray(logits, dtype=np.float64)
    asked = [(first, second) for first, second, _ in questions if second >= 0]
    common = Habits(
        num_asked=len(questions), num_missing=sum(math.isnan(value) for _, _, value in questions)
    ) + _by_length(matrix, questions, lengths)
    if asked:
        return common + _in_orders(matrix, asked)
    return common + _alone(matrix, questions)


def canary_win_rate(win_probs: ArrayLike) -> float | None:
    """Share of prompts on which an answer that says nothing wins, ties at 1/2; None without any verdict."""
    known = np.asarray(win_probs, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(((1.0 + np.sign(known - 0.5)) / 2.0).mean()) if known.size else None


def _in_orders(matrix: NDArray[np.float64], asked: list[tuple[int, int]]) -> Habits:
    values = {pair: float(matrix[pair]) for pair in asked if not math.isnan(matrix[pair])}
    both = [(values[i, j], values[j, i]) for i, j in values if i < j and (j, i) in values]
    words = {1.0: "first", -1.0: "second", 0.0: TIE}
    said = Counter(words[float(np.sign(value))] for value in values.values())
    return Habits(
        num_compared=len(values),
        num_ties=said[TIE],
        num_shown=len(values),
        first_probs=float(sigmoid(np.array(list(values.values()))).sum()),
        num_both=len(both),
        num_consistent=sum(np.sign(one) == -np.sign(other) for one, other in both),
        said=said,
    )


def _alone(matrix: NDArray[np.float64], questions: Sequence[Question]) -> Habits:
    pairs = [matrix[pair] for pair in combinations(_judged(questions), 2) if not math.isnan(matrix[pair])]
    return Habits(
        num_compared=len(pairs),
        num_ties=sum(value == 0 for value in pairs),
        said=Counter(f"{value:g}" for _, _, value in questions if not math.isnan(value)),
    )


def _by_length(matrix: NDArray[np.float64], questions: Sequence[Question], lengths: Sequence[int]) -> Habits:
    margins = symmetrised(matrix)
    signs = [
        np.sign(margins[i, j]) * np.sign(lengths[i] - lengths[j])
        for i, j in combinations(_judged(questions), 2)
        if not math.isnan(margins[i, j])
    ]
    return Habits(num_unequal=sum(sign != 0 for sign in signs), num_longer=sum(sign > 0 for sign in signs))


def _judged(questions: Sequence[Question]) -> list[int]:
    """The answers that were asked about; of equal ones only the first is."""
    return sorted({index for first, second, _ in questions for index in (first, second) if index >= 0})
