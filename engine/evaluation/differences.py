"""Whether two policies differ, from their win rates on the same prompts, and corrected for many such questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.evaluation import statistics

PERMUTATIONS = 10_000
BLOCK = 2_000_000
"""Random signs drawn at a time; bounds memory."""
LEVEL = 0.05
"""A corrected p-value below this makes a difference real."""


@dataclass(frozen=True)
class Difference:
    """Of the mean win rate of one policy less that of another."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval over prompts."""
    p_value: float
    """Of a permutation test whose hypothesis is that the two do not differ."""
    num_prompts: int
    """Prompts behind it; of two sets of prompts the smaller number."""
    is_paired: bool
    """Whether both were measured on the same prompts."""


def difference(one: Mapping[str, float], other: Mapping[str, float], seed: int = 0) -> Difference | None:
    """From {prompt_id: win rate against the same opponent}; NaN does not count. None if one has nothing that counts.

    Prompts that both have are compared one by one; only if there is none, the two sets are.
    """
    one, other = ({name: rate for name, rate in rates.items() if not np.isnan(rate)} for rates in (one, other))
    if not one or not other:
        return None
    if common := sorted(one.keys() & other.keys()):
        differences = np.array([one[name] - other[name] for name in common])
        interval = statistics.bootstrap(differences, seed=seed)
        p_value = sign_flip_p_value(differences, seed)
        return Difference(interval.mean, interval.low, interval.high, p_value, len(common), True)
    first, second = np.array(list(one.values())), np.array(list(other.values()))
    low, high = _unpaired_interval(first, second, seed)
    p_value = permutation_p_value(first, second, seed)
    num = min(len(first), len(second))
    return Difference(float(first.mean() - second.mean()), low, high, p_value, num, False)


def sign_flip_p_value(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of paired differences [n] under random signs (Fisher's randomization test).

    The share of PERMUTATIONS draws, the data themselves counted as one more, whose |mean| is at least the observed one.
    """
    values = np.asarray(differences, dtype=np.float64)
    rng, observed, extreme = np.random.default_rng(seed), abs(values.sum()), 0
    for size in _blocks(len(values)):
        signs = rng.integers(0, 2, size=(size, len(values))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ values) >= observed - 1e-12).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def permutation_p_value(one: ArrayLike, other: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of two independent samples [n], [m] under random assignment to the two."""
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    pooled, n = np.concatenate([first, second]), len(first)
    rng, observed, extreme = np.random.default_rng(seed), abs(first.mean() - second.mean()), 0
    for size in _blocks(len(pooled)):
        shuffled = rng.permuted(np.broadcast_to(pooled, (size, len(pooled))), axis=1)
        gaps = shuffled[:, :n].mean(axis=1) - shuffled[:, n:].mean(axis=1)
        extreme += int((np.abs(gaps) >= observed - 1e-12).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979), in the same order; each at most 1.

    If those below 0.05 are called real, the chance that any of them is not is at most 5 %.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def _unpaired_interval(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=(statistics.RESAMPLES, len(values)))].mean(axis=1)
        for values in (one, other)
    ]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def _blocks(width: int) -> list[int]:
    """Sizes that add up to PERMUTATIONS, so that a block of rows of `width` has at most about BLOCK numbers."""
    size = max(1, min(PERMUTATIONS, BLOCK // max(1, width)))
    return [min(size, PERMUTATIONS - done) for done in range(0, PERMUTATIONS, size)]
