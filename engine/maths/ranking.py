"""Which of K scored answers to set against each other, and how far two rankings of them agree. numpy only.

Knows nothing of tables, judges or losses. Scores are finite; lengths count tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def quality_tiers(scores: Sequence[float], rho: float) -> tuple[list[int], list[int]]:
    """Indices of the answers that are as good as the best, and of those that are as bad as the worst.

    Meta-Rewarding (arXiv 2407.19594), length control: the top tier is [(1 - rho) * S_max + rho * S_min, S_max],
    the bottom tier [S_min, (1 - rho) * S_min + rho * S_max]. rho in [0, 1/2) keeps them apart unless all are equal;
    0 leaves the best and the worst alone.
    """
    best, worst = max(scores), min(scores)
    top, bottom = (1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best
    slack = 1e-9 * max(1.0, abs(best), abs(worst))  # so that the best is in its own tier whatever the rounding
    return (
        [i for i, score in enumerate(scores) if score >= top - slack],
        [i for i, score in enumerate(scores) if score <= bottom + slack],
    )


def shortest(indices: Sequence[int], lengths: Sequence[int]) -> int:
    """The shortest of the answers `indices`; among equals the first."""
    return min(indices, key=lambda i: (lengths[i], i))


def longest(indices: Sequence[int], lengths: Sequence[int]) -> int:
    """The longest of the answers `indices`; among equals the first."""
    return min(indices, key=lambda i: (-lengths[i], i))


def kendall_tau(one: ArrayLike, other: ArrayLike) -> float:
    """Kendall's tau-b in [-1, 1] of two scorings of the same answers; 0 where one of them ties all.

    (concordant - discordant) / sqrt(pairs not tied in one * pairs not tied in the other). Rubric scores tie
    often, for which tau-b corrects; without ties it is the tau of CREAM (arXiv 2410.12735).
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    pairs = np.triu_indices(len(a), k=1)
    x, y = (np.sign(np.subtract.outer(v, v))[pairs] for v in (a, b))
    untied = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
    return float((x * y).sum() / untied) if untied else 0.0


def consistency(one: ArrayLike, other: ArrayLike) -> float:
    """(tau + 1) / 2 in [0, 1]: 1 if both rank alike, 1/2 if they have nothing to do with each other (CREAM)."""
    return (kendall_tau(one, other) + 1.0) / 2.0
