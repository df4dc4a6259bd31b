"""How good a scorer is on pairs of which the truth is known: accuracy, position, length, calibration.

Pure functions. The truth of a pair is that the chosen answer is better. A pair without a verdict enters no rate and is
counted. Intervals are over items: pairs of one item share answers and are resampled together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.algorithms.preference import sigmoid
from engine.evaluation.statistics import Interval, clustered_mean, clustered_share

Verdict = Literal["chosen", "rejected", "tie", "none"]
VERDICTS: tuple[Verdict, ...] = ("chosen", "rejected", "tie", "none")
NUM_BINS = 10
"""Of the calibration curve, over confidences from 1/2 to 1."""
SMALLEST = 1e-15
"""Probabilities are kept this far from 0 in the log-loss, as in scikit-learn before 1.3."""


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected answer to one prompt, as a scorer compared them."""

    item: str
    subset: str
    chosen_first: float | None
    """Logit, in nats, that the answer shown first is better, with the chosen one first; NaN: asked, but no verdict;
    None: this order was not asked."""
    rejected_first: float | None
    """The same with the rejected one first."""
    chosen_length: int
    """Characters."""
    rejected_length: int

    @property
    def margin(self) -> float:
        """Nats in favour of the chosen answer, over both orders if both have a verdict; NaN without any."""
        orders = ((1.0, self.chosen_first), (-1.0, self.rejected_first))
        margins = [sign * logit for sign, logit in orders if logit is not None and not math.isnan(logit)]
        return sum(margins) / len(margins) if margins else math.nan

    @property
    def probability(self) -> float:
        """P(the chosen answer is better); NaN without a verdict."""
        return float(sigmoid(np.array(self.margin)))

    @property
    def verdict(self) -> Verdict:
        """What the scorer prefers."""
        if math.isnan(self.margin):
            return "none"
        return "chosen" if self.margin > 0 else "rejected" if self.margin < 0 else "tie"


def verdict_counts(pairs: Sequence[Pair]) -> dict[Verdict, int]:
    """How many pairs have each verdict."""
    counts = Counter(pair.verdict for pair in pairs)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def accuracy(pairs: Sequence[Pair]) -> Interval | None:
    """Share of the pairs with a verdict on which the chosen answer is preferred, ties at 1/2; None without any."""
    return _mean(pairs, lambda pair: (1.0 + np.sign(pair.margin)) / 2.0, clustered_share)


def log_loss(pairs: Sequence[Pair]) -> Interval | None:
    """Mean -log P(the chosen answer is better), in nats; log 2 = 0.693 for a scorer that knows nothing."""
    return _mean(pairs, lambda pair: -math.log(max(pair.probability, SMALLEST)))


def brier(pairs: Sequence[Pair]) -> Interval | None:
    """Mean (1 - P(the chosen answer is better))^2; 1/4 for a scorer that knows nothing."""
    return _mean(pairs, lambda pair: (1.0 - pair.probability) ** 2)


def confusion(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """{which answer is shown first: {verdict: questions}}, each order of a pair by itself.

    A scorer without a position bias has the same share of "chosen" in both rows.
    """
    shown: dict[str, Counter[Verdict]] = {"chosen": Counter(), "rejected": Counter()}
    for pair in pairs:
        for first, other, logit in (
            ("chosen", "rejected", pair.chosen_first),
            ("rejected", "chosen", pair.rejected_first),
        ):
            if logit is None:
                continue
            verdict = "none" if math.isnan(logit) else first if logit > 0 else other if logit < 0 else "tie"
            shown[first][verdict] += 1  # type: ignore[index]
    return {first: {verdict: counts[verdict] for verdict in VERDICTS} for first, counts in shown.items()}


@dataclass(frozen=True)
class LengthBias:
    """Whether a scorer is misled by length: its accuracy where the longer answer is right and where it is wrong."""

    longer: Interval | None
    """Accuracy on pairs of which the chosen answer is longer; None if there are none."""
    num_longer: int
    shorter: Interval | None
    """Accuracy on pairs of which the chosen answer is shorter."""
    num_shorter: int

    @property
    def difference(self) -> float:
        """`longer` - `shorter`, in [-1, 1]: 0 is fair, 1 always prefers the longer answer; NaN if one is None."""
        if self.longer is None or self.shorter is None:
            return math.nan
        return self.longer.mean - self.shorter.mean


def length_bias(pairs: Sequence[Pair]) -> LengthBias:
    """Split the pairs with a verdict by which answer is longer; pairs of equal length are in neither part."""
    decided = [pair for pair in pairs if pair.verdict != "none"]
    longer = [pair for pair in decided if pair.chosen_length > pair.rejected_length]
    shorter = [pair for pair in decided if pair.chosen_length < pair.rejected_length]
    return LengthBias(accuracy(longer), len(longer), accuracy(shorter), len(shorter))


@dataclass(frozen=True)
class Bin:
    """A range of confidence, and how often verdicts of that confidence are right."""

    low: float
    high: float
    num: int
    """Pairs in it."""
    confidence: float
    """Mean probability of the preferred answer; NaN in an empty bin."""
    accuracy: float
    """Share of them whose preferred answer is the chosen one, ties at 1/2; NaN in an empty bin."""


def calibration(pairs: Sequence[Pair]) -> list[Bin]:
    """The calibration curve: NUM_BINS ranges of max(p, 1 - p) from 1/2 to 1, each without its upper end but the last.

    The confidence is used, and not P(chosen), because a pair has no order of its own: its label would always be 1.
    """
    decided = [pair for pair in pairs if pair.verdict != "none"]
    confidence = np.array([max(pair.probability, 1.0 - pair.probability) for pair in decided])
    correct = np.array([(1.0 + np.sign(pair.margin)) / 2.0 for pair in decided])
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    bins = []
    for n in range(NUM_BINS):
        inside = index == n
        means = [float(v[inside].mean()) if inside.any() else math.nan for v in (confidence, correct)]
        bins.append(Bin(float(edges[n]), float(edges[n + 1]), int(inside.sum()), *means))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence| over the pairs of all bins (Naeini et al. 2015); NaN without any pair."""
    total = sum(b.num for b in bins)
    return sum(b.num * abs(b.accuracy - b.confidence) for b in bins if b.num) / total if total else math.nan


def _mean(
    pairs: Sequence[Pair],
    value: Callable[[Pair], Any],
    interval: Callable[[list[float], list[str]], Interval] = clustered_mean,
) -> Interval | None:
    decided = [pair for pair in pairs if pair.verdict != "none"]
    if not decided:
        return None
    return interval([float(value(pair)) for pair in decided], [pair.item for pair in decided])
