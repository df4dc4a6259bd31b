"""How good a policy is, from verdicts on held-out prompts: win rates with intervals, and agreement.

Pure numpy on pair logits: `logits[i, j] > 0` says that answer i, shown first, beats answer j. Knows
nothing of tables, scorers or runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
LEVEL = 95.0
"""Percent of the resampled means that an interval holds."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Answer pairs of one prompt on which two scorers were compared."""

    agreements: float
    """Pairs with the same winner; a tie of the first scorer counts 1/2."""
    comparable: int
    """Pairs between which the second scorer sees a difference."""


def win_rate(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Share of the a x b answer pairs that our a answers win against their b, ties at 1/2.

    ours: [a, b] logits with our answer first; theirs: [b, a] logits with theirs first. Both orders are
    averaged, so a scorer that prefers a position has no say.
    """
    margin = ours - theirs.T
    return float(np.mean(np.where(margin == 0, 0.5, margin > 0)))


def agreement(scorer: NDArray[np.float64], oracle: NDArray[np.float64]) -> Agreement:
    """Compare two [K, K] logit matrices of the same answers by the sign of their symmetrised logits."""
    upper = np.triu_indices(len(scorer), k=1)
    found, truth = np.sign(scorer - scorer.T)[upper], np.sign(oracle - oracle.T)[upper]
    differs = truth != 0
    same = np.where(found == 0, 0.5, found == truth)[differs]
    return Agreement(float(same.sum()), int(differs.sum()))


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean of one value per prompt with the percentile bootstrap's 95 % interval, over prompts."""
    draw = np.random.default_rng(seed)
    means = [float(values[draw.integers(0, len(values), len(values))].mean()) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def across_seeds(values: NDArray[np.float64]) -> Interval:
    """Mean of one value per seed with Student's 95 % interval; 2 to 11 seeds."""
    half = STUDENT[len(values) - 2] * float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1, 2, ... 10 degrees of freedom."""
