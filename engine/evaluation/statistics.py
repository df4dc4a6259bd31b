"""Statistics of comparisons: win rates with intervals, agreement of two scorers, spread over seeds, bias of a judge.

Pure functions on arrays, numpy only. A win counts 1, a tie 1/2, a loss 0. K is the number of answers to one prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.algorithms.preference import sigmoid, symmetrised

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

RESAMPLES = 2_000
# fmt: off
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""Student's t, 97.5 % quantile for 1 to 30 degrees of freedom; beyond, the normal's 1.960."""


@dataclass(frozen=True)
class Interval:
    """A mean with the two ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How often a scorer prefers the answer that the oracle prefers."""

    agreed: float
    """Pairs on which both prefer the same answer; a scorer's tie counts 1/2."""
    num_pairs: int
    """Unordered pairs of answers with a verdict whose oracle utilities differ."""

    @property
    def rate(self) -> float:
        """In [0, 1]; NaN where there was no such pair."""
        return self.agreed / self.num_pairs if self.num_pairs else math.nan

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.agreed + other.agreed, self.num_pairs + other.num_pairs)


def win_rate_from_margins(margins: ArrayLike) -> float:
    """Mean over all pairs of 1, 1/2 or 0 for a positive, zero or negative margin of A's answer over B's.

    `margins` [Ka, Kb] are utility differences or symmetrised pair logits: for a scorer that was shown
    both orders, (M[i, j] - M[j, i]) / 2. Pairs without a verdict (NaN) do not count; NaN where there is
    none with one. Raises ValueError on an empty or infinite matrix.
    """
    known = _known(margins, "margins")
    wins = (1.0 + np.sign(known[~np.isnan(known)])) / 2.0
    return float(wins.mean()) if wins.size else math.nan


def margins_from_pair_logits(logits: ArrayLike, num_a: int) -> Matrix:
    """[num_a, K - num_a] symmetrised margins of A's answers over B's.

    `logits` [K, K] is a scorer's matrix for A's `num_a` answers followed by B's; `logits[i, j] > 0`
    says that answer i, shown first, beats answer j; NaN: no verdict, so that the other order decides alone.
    """
    return symmetrised(_square(logits, "pair logits"))[:num_a, num_a:]


def bootstrap(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of `values` [prompts] with its 95 % percentile interval over resamples of the prompts (Efron 1979).

    The interval covers the choice of prompts; it knows nothing of other seeds of training (`spread`).
    """
    vector = _finite(values, "values")
    draw = np.random.default_rng(seed)
    means = [vector[draw.integers(len(vector), size=len(vector))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(vector.mean()), float(low), float(high))


def agreement(scorer_logits: ArrayLike, oracle_logits: ArrayLike) -> Agreement:
    """On how many pairs of one prompt's K answers the scorer has the oracle's sign; both matrices [K, K].

    Both are symmetrised, (M - M^T) / 2, so that a preference for what is shown first counts for nothing.
    Pairs on which the oracle ties do not count, nor those without a verdict (NaN) by one of the two. Add up
    the results of several prompts with `+`.
    """
    scorer, oracle = _square(scorer_logits, "scorer logits"), _square(oracle_logits, "oracle logits")
    if scorer.shape != oracle.shape:
        raise ValueError(f"the scorer judged {len(scorer)} answers and the oracle {len(oracle)}")
    pairs = np.triu_indices(len(scorer), k=1)
    truth = np.sign(symmetrised(oracle))[pairs]
    verdict = np.sign(symmetrised(scorer))[pairs]
    decided = (truth != 0) & ~np.isnan(truth) & ~np.isnan(verdict)
    return Agreement(float(((1.0 + truth * verdict) / 2.0)[decided].sum()), int(decided.sum()))


def spread(win_rates: Sequence[float]) -> Interval:
    """Mean of independent runs' win rates (one per seed) with its 95 % t-interval.

    Half-width t(0.975, n - 1) * s / sqrt(n), s with n - 1. Not clipped to [0, 1]. Raises ValueError for fewer
    than two runs, because one run says nothing of its spread.
    """
    vector = _finite(win_rates, "win rates")
    if len(vector) < 2:
        raise ValueError("a spread needs the win rates of at least 2 runs; got 1")
    freedom = len(vector) - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else 1.960
    mean, half = float(vector.mean()), float(quantile * vector.std(ddof=1) / math.sqrt(len(vector)))
    return Interval(mean, mean - half, mean + half)


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """`values` as float64; raises ValueError where there are none or one is NaN or infinite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{what}: there are none")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} are NaN or infinite")
    return array


def _known(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Like `_finite`, but NaN may stand for what nobody knows."""
    array = np.asarray(values, dtype=np.float64)
    _finite(np.where(np.isnan(array), 0.0, array), what)
    return array


def _square(values: ArrayLike, what: str) -> Matrix:
    matrix = _known(values, what)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{what}: expected a K x K matrix, got the shape {matrix.shape}")
    return matrix


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
