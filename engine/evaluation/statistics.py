"""Statistics of comparisons: win rates with intervals, agreement of two scorers, spread over seeds, judge bias.

Pure functions on numpy arrays. A win counts 1, a tie 1/2, a loss 0. K is the number of answers to one prompt.
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

RESAMPLES = 2_000
BLOCK = 1_000_000
"""Numbers drawn at a time; bounds memory."""
# fmt: off
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""97.5 % quantile of Student's t for 1 to 30 degrees of freedom; above 30 the normal's, 1.960, is used."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How often a scorer prefers the answer that the oracle prefers."""

    agreed: float
    """Pairs on which both prefer the same answer; a scorer's tie counts 1/2."""
    num_pairs: int
    """Unordered pairs of answers that both compared and between which the oracle sees a difference."""

    @property
    def rate(self) -> float:
        """agreed / num_pairs, in [0, 1]; NaN without any pair."""
        return self.agreed / self.num_pairs if self.num_pairs else math.nan

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.agreed + other.agreed, self.num_pairs + other.num_pairs)


def win_rate_from_margins(margins: ArrayLike) -> float:
    """Mean over all pairs of 1, 1/2 or 0 for a positive, zero or negative margin of A's answer over B's.

    `margins` [Ka, Kb] are utility differences or symmetrised pair logits: for a scorer that was shown
    both orders, (M[i, j] - M[j, i]) / 2. Pairs without a verdict (NaN) do not count; the result is NaN if no
    pair has a verdict. Raises ValueError on an empty or infinite matrix.
    """
    matrix = _no_infinity(margins, "margins")
    wins = (1.0 + np.sign(matrix[~np.isnan(matrix)])) / 2.0
    return float(wins.mean()) if wins.size else math.nan


def margins_from_pair_logits(logits: ArrayLike, num_a: int) -> Matrix:
    """[num_a, K - num_a] symmetrised margins of A's answers over B's.

    `logits` [K, K] is a scorer's matrix for A's `num_a` answers followed by B's. `logits[i, j] > 0` says that
    answer i, shown first, beats answer j. NaN means no verdict; the other order then decides alone.
    """
    return symmetrised(_square(logits, "pair logits"))[:num_a, num_a:]


def bootstrap(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of `values` [prompts] with its 95 % percentile interval over resamples of the prompts (Efron 1979).

    The interval covers the choice of prompts, not the variation between training seeds; see `spread`.
    """
    vector = _finite(values, "values")
    draw = np.random.default_rng(seed)
    block = max(1, BLOCK // len(vector))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    means = [vector[draw.integers(len(vector), size=(size, len(vector)))].mean(axis=1) for size in sizes]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(vector.mean()), float(low), float(high))


def clustered_mean(values: ArrayLike, clusters: Sequence[object], *, seed: int = 0) -> Interval:
    """Mean of all `values` with its 95 % percentile interval over resamples of their clusters.

    Values of one cluster, e.g. the two turns of a question, are not independent. A cluster may hold any number of them.
    """
    sums, sizes = _cluster_sums(values, clusters)
    draw = np.random.default_rng(seed)
    block = max(1, BLOCK // len(sums))
    drawn = [draw.integers(len(sums), size=(min(block, RESAMPLES - n), len(sums))) for n in range(0, RESAMPLES, block)]
    means = np.concatenate([sums[index].sum(axis=1) / sizes[index].sum(axis=1) for index in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))


def clustered_stderr(values: ArrayLike, clusters: Sequence[object]) -> float:
    """Standard error of the mean of all `values` by the spread of their clusters; NaN for one cluster.

    The linearised estimate for a ratio of sums (Cochran 1977, section 6.4), with G - 1 for G clusters. With clusters of
    one value it is s / sqrt(n).
    """
    sums, sizes = _cluster_sums(values, clusters)
    if len(sums) < 2:
        return math.nan
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    return float(math.sqrt(len(sums) / (len(sums) - 1) * (residuals**2).sum()) / sizes.sum())


def clustered_share(values: ArrayLike, clusters: Sequence[object]) -> Interval:
    """Mean of all `values` in [0, 1] with Wilson's 95 % interval, which has a width even where all values are equal.

    Its number of values is the effective one, p (1 - p) / stderr^2 with the error between clusters, at most the number
    of values (Korn and Graubard 1998); the number of clusters where p is 0 or 1. Its quantile is Student's t with
    G - 1 degrees of freedom for G clusters; one cluster alone gives [0, 1].
    """
    vector, num_clusters, stderr = _finite(values, "values"), len(set(clusters)), clustered_stderr(values, clusters)
    p = float(vector.mean())
    if num_clusters == 1:
        return Interval(p, 0.0, 1.0)
    if p in (0.0, 1.0):
        n = float(num_clusters)
    else:
        n = min(len(vector), p * (1.0 - p) / stderr**2) if stderr else float(len(vector))
    z = T_975[num_clusters - 2] if num_clusters - 1 <= len(T_975) else 1.960
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1.0 - p) / n + (z / (2 * n)) ** 2)
    scale = 1.0 + z * z / n
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def _cluster_sums(values: ArrayLike, clusters: Sequence[object]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[clusters] the sum and the number of the values of each cluster."""
    vector = _finite(values, "values")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[cluster] for cluster in clusters])
    sizes = np.bincount(index).astype(np.float64)
    return np.bincount(index, weights=vector).astype(np.float64), sizes


def agreement(scorer_logits: ArrayLike, oracle_logits: ArrayLike) -> Agreement:
    """Count the pairs of one prompt's K answers on which the scorer has the oracle's sign; both matrices [K, K].

    Both are symmetrised, (M - M^T) / 2, so that a preference for the answer shown first cancels. Pairs on which
    the oracle ties, or on which either gave no verdict (NaN), do not count. Results of several prompts add up
    with `+`.
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

    The half-width is t(0.975, n - 1) * s / sqrt(n), where s is the standard deviation with n - 1. Not clipped
    to [0, 1]. Raises ValueError for fewer than two runs: one run does not show any spread.
    """
    vector = _finite(win_rates, "win rates")
    if len(vector) < 2:
        raise ValueError("a spread needs the win rates of at least 2 runs; got 1")
    freedom = len(vector) - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else 1.960
    mean, half = float(vector.mean()), float(quantile * vector.std(ddof=1) / math.sqrt(len(vector)))
    return Interval(mean, mean - half, mean + half)


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """`values` as float64. Raises ValueError if there are none, or if any is NaN or infinite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{what}: there are none; expected at least 1")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} are NaN or infinite")
    return array


def _no_infinity(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Like `_finite`, but NaN is allowed and means that there was no verdict."""
    array = np.asarray(values, dtype=np.float64)
    _finite(np.where(np.isnan(array), 0.0, array), what)
    return array


def _square(values: ArrayLike, what: str) -> Matrix:
    matrix = _no_infinity(values, what)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{what}: expected a K x K matrix, got the shape {matrix.shape}")
    return matrix


Question = tuple[int, int, float]
"""What a judge was asked: (answer, other, value).

`other` is -1 if it judged one answer alone; `value` is NaN if its reply could not be read.
"""
TIE = "tie"


@dataclass(frozen=True)
class JudgeBias:
    """How an LLM judge decides, apart from the answers' quality: counts over its questions and comparisons.

    A question is one order of one pair (pairwise) or one judgement of one answer (pointwise). A comparison is a
    question about a pair with a readable reply (pairwise), or a pair of answers that both have a score (pointwise).
    Counts of several prompts add up with `+`. A rate is None if there is nothing to divide by.
    """

    num_asked: int = 0
    """Questions."""
    num_missing: int = 0
    """Questions without a readable reply."""
    num_compared: int = 0
    """Comparisons."""
    num_ties: int = 0
    """Comparisons that ended in a tie."""
    num_ordered: int = 0
    """Comparisons in which one answer was shown before the other; 0 for a pointwise judge."""
    first_prob_sum: float = 0.0
    """Sum over these of P(the answer shown first is better)."""
    num_both_orders: int = 0
    """Pairs that were compared in both orders."""
    num_consistent: int = 0
    """Pairs of these on which both orders prefer the same answer, or both tie."""
    num_unequal_length: int = 0
    """Pairs of answers of different length, of which one is preferred."""
    num_longer_preferred: int = 0
    """Pairs of these of which the longer answer is preferred."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """How often each verdict was given: "first", "second" or "tie", or a score."""

    def __add__(self, other: JudgeBias) -> JudgeBias:
        return JudgeBias(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def missing_rate(self) -> float | None:
        """Share of questions without a readable reply, in [0, 1]."""
        return _share(self.num_missing, self.num_asked)

    @property
    def tie_rate(self) -> float | None:
        """Share of comparisons that end in a tie, in [0, 1]."""
        return _share(self.num_ties, self.num_compared)

    @property
    def consistency(self) -> float | None:
        """Share of pairs whose verdict does not depend on the order, in [0, 1]."""
        return _share(self.num_consistent, self.num_both_orders)

    @property
    def position_bias(self) -> float | None:
        """Mean P(the answer shown first is better) - 1/2, in [-1/2, 1/2]; 0 is fair."""
        return _share(self.first_prob_sum - 0.5 * self.num_ordered, self.num_ordered)

    @property
    def longer_preferred(self) -> float | None:
        """Share of decided pairs of different length in which the longer answer wins, in [0, 1]."""
        return _share(self.num_longer_preferred, self.num_unequal_length)

    @property
    def commonest_verdict(self) -> float | None:
        """Share of the most frequent verdict, in [0, 1]; 1 if the judge always says the same."""
        return _share(max(self.verdicts.values(), default=0), self.verdicts.total())


def _share(part: float, total: int) -> float | None:
    return part / total if total else None


def judge_bias(logits: ArrayLike, questions: Sequence[Question], lengths: Sequence[int]) -> JudgeBias:
    """Count the verdicts on one prompt's K answers.

    logits: [K, K]; 0 where the judge abstained, NaN where there is no verdict. lengths: [K], in tokens.
    """
    matrix = np.asarray(logits, dtype=np.float64)
    counts = JudgeBias(
        num_asked=len(questions), num_missing=sum(math.isnan(value) for _, _, value in questions)
    ) + _by_length(matrix, questions, lengths)
    orders = [(first, second) for first, second, _ in questions if second >= 0]
    return counts + (_pairwise(matrix, orders) if orders else _pointwise(matrix, questions))


def null_model_win_rate(win_probs: ArrayLike) -> float | None:
    """Share of prompts on which the null-model baseline wins, ties at 1/2; None without any verdict.

    win_probs: [prompts], P(an answer that says nothing beats the policy's answer); NaN where there is no verdict.
    """
    probs = np.asarray(win_probs, dtype=np.float64)
    probs = probs[~np.isnan(probs)]
    return float(((1.0 + np.sign(probs - 0.5)) / 2.0).mean()) if probs.size else None


def _pairwise(matrix: Matrix, orders: list[tuple[int, int]]) -> JudgeBias:
    values = {order: float(matrix[order]) for order in orders if not math.isnan(matrix[order])}
    both = [(values[i, j], values[j, i]) for i, j in values if i < j and (j, i) in values]
    names = {1.0: "first", -1.0: "second", 0.0: TIE}
    verdicts = Counter(names[float(np.sign(value))] for value in values.values())
    return JudgeBias(
        num_compared=len(values),
        num_ties=verdicts[TIE],
        num_ordered=len(values),
        first_prob_sum=float(sigmoid(np.array(list(values.values()))).sum()),
        num_both_orders=len(both),
        num_consistent=sum(np.sign(one) == -np.sign(other) for one, other in both),
        verdicts=verdicts,
    )


def _pointwise(matrix: Matrix, questions: Sequence[Question]) -> JudgeBias:
    pairs = [matrix[pair] for pair in combinations(_judged(questions), 2) if not math.isnan(matrix[pair])]
    return JudgeBias(
        num_compared=len(pairs),
        num_ties=sum(value == 0 for value in pairs),
        verdicts=Counter(f"{value:g}" for _, _, value in questions if not math.isnan(value)),
    )


def _by_length(matrix: Matrix, questions: Sequence[Question], lengths: Sequence[int]) -> JudgeBias:
    margins = symmetrised(matrix)
    signs = [
        np.sign(margins[i, j]) * np.sign(lengths[i] - lengths[j])
        for i, j in combinations(_judged(questions), 2)
        if not math.isnan(margins[i, j])
    ]
    return JudgeBias(
        num_unequal_length=sum(sign != 0 for sign in signs), num_longer_preferred=sum(sign > 0 for sign in signs)
    )


def _judged(questions: Sequence[Question]) -> list[int]:
    """Indices of the answers that were judged. Of equal answers only the first is judged."""
    return sorted({index for first, second, _ in questions for index in (first, second) if index >= 0})
