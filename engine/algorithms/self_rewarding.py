"""Self-rewarding language models (arXiv 2401.10020): iterative DPO on scores that the policy gives itself.

The policy answers K times and judges each answer by a rubric. The mean of its readable judgements is the score,
equal scores are dropped, and the best answer trains against the worst. Each remedy of the later papers is one key,
off by default: length tiers, a limit on chosen answers, consistency, anchored rejection, and DPO's `nll_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, PositiveInt, model_validator

from engine.algorithms.base import Stages
from engine.algorithms.dpo import DPO
from engine.errors import DataError


class SelfRewarding(DPO):
    """Parameters of self-rewarding; those of DPO hold too."""

    name: Literal["self_rewarding"] = "self_rewarding"  # type: ignore[assignment]
    data: Literal["sampled"] = "sampled"
    length_tier: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """rho of Meta-Rewarding (2407.19594): the shortest answer of the best tier against the longest of the worst."""
    max_chosen_tokens: PositiveInt | None = None
    """Longer answers are never chosen; 2,500 characters in Meta-Rewarding's first round."""
    consistency: Literal["none", "per_prompt"] = "none"
    """CREAM (2410.12735): the target is how alike this policy and the one before rank the answers, instead of 1."""
    rejected_from: Literal["policy", "start"] = "policy"
    """start: anchored rejection (2508.06026), the rejected answer comes from the start policy."""

    @model_validator(mode="after")
    def _consistency_is_a_target(self) -> SelfRewarding:
        if self.consistency != "none" and not self.soft_labels:
            raise ValueError("consistency = per_prompt is a target between 0 and 1; set soft_labels = true too")
        return self

    def stages(self, iteration: int) -> Stages:
        """In the first iteration the start policy is the policy, and there is none before it."""
        anchored = ("anchored",) if self.rejected_from == "start" and iteration else ()
        rescored = ("rescored",) if self.consistency != "none" and iteration else ()
        return ("completions", *anchored, "scored", *rescored)

    def _pair(self, prompt: dict, values: list[float], readable: list[int]) -> tuple[int, int] | None:
        """The best of the policy's answers that are not too long, against the worst that may be rejected."""
        lengths = [len(answer) for answer in prompt["answer_token_ids"]]
        own, longest_allowed = prompt["num_own"], self.max_chosen_tokens or math.inf
        good = [i for i in readable if i < own and lengths[i] <= longest_allowed]
        bad = [i for i in readable if i >= own] if own < len(lengths) else readable
        if self.length_tier is not None:
            good, bad = self._tiers(values, good, bad)
        if not good or not bad:
            return None
        best = min(good, key=lambda i: (-values[i], i)) if self.length_tier is None else shortest(good, lengths)
        others = [i for i in bad if i != best]
        if not others:
            return None
        worst = min(others, key=lambda i: (values[i], i)) if self.length_tier is None else longest(others, lengths)
        return (best, worst) if values[best] >= values[worst] else None

    def _tiers(self, values: list[float], good: list[int], bad: list[int]) -> tuple[list[int], list[int]]:
        """Those of `good` in the best tier and those of `bad` in the worst, of all these answers' scores."""
        both = sorted({*good, *bad})
        top, bottom = quality_tiers([values[i] for i in both], self.length_tier or 0.0)
        return [both[i] for i in top if both[i] in good], [both[i] for i in bottom if both[i] in bad]

    def _targets(self, prompt: dict, best: int, worst: int) -> list[float]:
        if self.consistency == "none":
            return super()._targets(prompt, best, worst)
        now, before = prompt["scores"], prompt.get("previous_scores")
        if not now:
            raise DataError(
                "consistency = per_prompt compares scores, but the scorer compares answers in pairs and gives none; "
                "take a scorer that rates each answer by itself, or consistency = none"
            )
        if before is None:  # in the first iteration this policy agrees with itself
            return [1.0, 0.0]
        known = [i for i in range(len(now)) if not math.isnan(now[i]) and not math.isnan(before[i])]
        agreed = consistency([now[i] for i in known], [before[i] for i in known]) if known else 0.5
        return [agreed, 1.0 - agreed]


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
