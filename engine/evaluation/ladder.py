"""Every version of the policy against every other: win matrix, ratings with intervals, cycles.

A rating orders the versions on one line. Where versions beat each other in a circle, as in a game without a best
answer, no line fits: the win rate against the previous version then exceeds 1/2 again and again while nothing gets
better. `cycles` and `cyclic_share` show that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from engine.schema import HELDOUT_WIN_RATES
from engine.store.reader import RunReader

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

ELO = 400.0 / np.log(10.0)
"""Elo points per unit of a Bradley-Terry score: 400 points are odds of 10 to 1."""
RESAMPLES = 1_000
SHRINKAGE = 0.5
"""Wins and losses added to each pair, half of each: a version that wins every comparison keeps a finite rating."""


@dataclass(frozen=True)
class Ladder:
    """n versions, compared on the same prompts. Intervals are 95 % percentile intervals over resampled prompts."""

    versions: tuple[int, ...]
    num_prompts: int
    """Prompts on which every pair has a verdict; only these count."""
    wins: Matrix
    """[n, n] share of comparisons that the row's version wins against the column's, ties at 1/2; 1/2 on the
    diagonal."""
    wins_low: Matrix
    wins_high: Matrix
    elo: Vector
    """[n] Bradley-Terry scores in Elo points; the first version has 0."""
    elo_low: Vector
    elo_high: Vector
    cycles: tuple[tuple[int, int, int], ...]
    """Versions (a, b, c) where a beats b, b beats c and c beats a, each with its interval above 1/2; every circle
    once, beginning with its smallest version."""
    cyclic_share: float
    """Share of the squared log-odds of the win matrix that no rating explains, in [0, 1] (HodgeRank, Jiang et al.
    2011, arXiv 0811.1067, with equal weights). 0: a line; 1: nothing but cycles; NaN: all odds are even."""


def ladder(rates: Mapping[tuple[int, int], Mapping[str, float]], seed: int = 0) -> Ladder | None:
    """The ladder of {(version, earlier version): {prompt_id: win rate in [0, 1], NaN without a verdict}}.

    Every pair of the versions must be there; None if no prompt has a verdict for all of them.
    """
    versions = sorted({version for pair in rates for version in pair})
    index = {version: i for i, version in enumerate(versions)}
    tables = list(rates.values())
    common = [p for p in tables[0] if all(not np.isnan(table.get(p, np.nan)) for table in tables)] if tables else []
    if not common:
        return None
    wins = np.full((len(common), len(versions), len(versions)), 0.5)
    for (one, other), table in rates.items():
        values = np.array([table[prompt] for prompt in common])
        wins[:, index[one], index[other]] = values
        wins[:, index[other], index[one]] = 1.0 - values
    draws = np.random.default_rng(seed).integers(len(common), size=(RESAMPLES, len(common)))
    times = np.array([np.bincount(draw, minlength=len(common)) for draw in draws])  # how often each prompt is drawn
    means = np.tensordot(times / len(common), wins, axes=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    ratings = elo_ratings(means, len(common))
    elo_low, elo_high = np.percentile(ratings, [2.5, 97.5], axis=0)
    mean = wins.mean(axis=0)
    elo = elo_ratings(mean, len(common))
    return Ladder(tuple(versions), len(common), mean, low, high, elo, elo_low, elo_high, _cycles(versions, low),
                  cyclic_share(mean, len(common)))  # fmt: skip


def elo_ratings(wins: Matrix, num: int) -> Vector:
    """[..., n] maximum-likelihood Bradley-Terry scores of win matrices [..., n, n] in Elo points, the first one 0.

    num: comparisons behind each entry. Minorization-maximization, Hunter 2004 (doi 10.1214/aos/1079120141), eq. 3.
    """
    smooth = (wins * num + SHRINKAGE) / (num + 2.0 * SHRINKAGE)
    off = ~np.eye(wins.shape[-1], dtype=bool)
    total = np.where(off, smooth, 0.0).sum(axis=-1)
    strength = np.ones_like(total)
    for _ in range(10_000):
        pairs = np.where(off, 1.0 / (strength[..., :, None] + strength[..., None, :]), 0.0)
        updated = total / pairs.sum(axis=-1)
        updated /= np.exp(np.log(updated).mean(axis=-1, keepdims=True))
        done = np.abs(np.log(updated / strength)).max() < 1e-10
        strength = updated
        if done:
            break
    scores = np.log(strength)
    return ELO * (scores - scores[..., :1])


def cyclic_share(wins: Matrix, num: int) -> float:
    """Share of the squared log-odds that is not a difference of ratings; see Ladder.cyclic_share."""
    smooth = (wins * num + SHRINKAGE) / (num + 2.0 * SHRINKAGE)
    odds = np.log(smooth / (1.0 - smooth))
    np.fill_diagonal(odds, 0.0)
    line = odds.mean(axis=1)
    rest = odds - (line[:, None] - line[None, :])
    total = float((odds**2).sum())
    return float((rest**2).sum()) / total if total > 0.0 else float("nan")


def run_ladder(run: RunReader) -> Ladder | None:
    """The ladder of a run's versions; None where not every version was compared with every earlier one."""
    rates: dict[tuple[int, int], dict[str, float]] = {}
    for version in run.versions:
        for table in run.tables(version, "heldout_win_rates", HELDOUT_WIN_RATES):
            for row in table.select(["prompt_id", "opponents", "win_rates"]).to_pylist():
                for opponent, rate in zip(row["opponents"], row["win_rates"], strict=True):
                    rates.setdefault((version, opponent), {})[row["prompt_id"]] = rate
    versions = sorted({version for pair in rates for version in pair})
    complete = all((one, other) in rates for one in versions for other in versions if one > other)
    return ladder(rates) if rates and complete else None


def _cycles(versions: list[int], low: Matrix) -> tuple[tuple[int, int, int], ...]:
    beats = low > 0.5
    return tuple(
        (versions[a], versions[b], versions[c])
        for a, b, c in permutations(range(len(versions)), 3)
        if a == min(a, b, c) and beats[a, b] and beats[b, c] and beats[c, a]
    )
