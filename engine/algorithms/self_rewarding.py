"""Self-rewarding language models (arXiv 2401.10020): iterative DPO on scores that the policy gives itself.

The policy answers K times and judges each answer by a rubric. An answer's score is the mean of its readable
judgements; the best answer trains against the worst, and prompts with equal scores are dropped. Each remedy of later
papers is one key, off by default: length_tier, max_chosen_tokens, consistency, rejected_from, and DPO's nll_weight.
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
    """Parameters of self-rewarding, in addition to those of DPO."""

    name: Literal["self_rewarding"] = "self_rewarding"  # type: ignore[assignment]
    data: Literal["sampled"] = "sampled"
    length_tier: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """rho of Meta-Rewarding (2407.19594): shortest answer of the top tier against the longest of the bottom tier."""
    max_chosen_tokens: PositiveInt | None = None
    """Longer answers are never chosen. Meta-Rewarding's first round has a limit of 2,500 characters."""
    consistency: Literal["none", "per_prompt"] = "none"
    """per_prompt: the target is how well this and the previous policy's rankings agree, not 1 (CREAM, 2410.12735)."""
    rejected_from: Literal["policy", "start"] = "policy"
    """start: the rejected answer comes from the start policy (anchored rejection, 2508.06026)."""

    @model_validator(mode="after")
    def _check_consistency_has_soft_labels(self) -> SelfRewarding:
        if self.consistency != "none" and not self.soft_labels:
            raise ValueError("consistency = per_prompt gives targets between 0 and 1; set soft_labels = true too")
        return self

    def stages(self, iteration: int) -> Stages:
        """In the first iteration the policy is the start policy, and no policy comes before it."""
        start = ("start_completions",) if self.rejected_from == "start" and iteration else ()
        previous = ("previous_scores",) if self.consistency != "none" and iteration else ()
        return ("completions", *start, "scores", *previous)

    def _pair(self, prompt: dict, values: list[float], readable: list[int]) -> tuple[int, int] | None:
        """The best of the policy's answers within max_chosen_tokens, and the worst of the answers that may be rejected.

        These are the start policy's answers where the prompt has any, else the policy's own.
        """
        lengths = [len(answer) for answer in prompt["completion_token_ids"]]
        own, max_tokens = prompt["num_from_policy"], self.max_chosen_tokens or math.inf
        choosable = [i for i in readable if i < own and lengths[i] <= max_tokens]
        rejectable = [i for i in readable if i >= own] if own < len(lengths) else readable
        if self.length_tier is not None:
            choosable, rejectable = self._tiers(values, choosable, rejectable)
        if not choosable or not rejectable:
            return None
        if self.length_tier is None:
            best = min(choosable, key=lambda i: (-values[i], i))
        else:
            best = shortest(choosable, lengths)
        others = [i for i in rejectable if i != best]
        if not others:
            return None
        worst = min(others, key=lambda i: (values[i], i)) if self.length_tier is None else longest(others, lengths)
        return (best, worst) if values[best] >= values[worst] else None

    def _tiers(self, values: list[float], choosable: list[int], rejectable: list[int]) -> tuple[list[int], list[int]]:
        """The choosable answers in the best tier and the rejectable ones in the worst; tiers are of both together."""
        both = sorted({*choosable, *rejectable})
        top, bottom = quality_tiers([values[i] for i in both], self.length_tier or 0.0)
        return [both[i] for i in top if both[i] in choosable], [both[i] for i in bottom if both[i] in rejectable]

    def _targets(self, prompt: dict, best: int, worst: int) -> list[float]:
        if self.consistency == "none":
            return super()._targets(prompt, best, worst)
        now, before = prompt["scores"], prompt.get("previous_scores")
        if not now:
            raise DataError(
                "consistency = per_prompt compares scores, but the scorer compares answers in pairs and gives none; "
                "use a scorer that scores each answer, e.g. a judge with mode = pointwise, or consistency = none"
            )
        if before is None:  # the first iteration has no previous policy to disagree with
            return [1.0, 0.0]
        scored = [i for i in range(len(now)) if not math.isnan(now[i]) and not math.isnan(before[i])]
        agreement = consistency([now[i] for i in scored], [before[i] for i in scored]) if scored else 0.5
        return [agreement, 1.0 - agreement]


def quality_tiers(scores: Sequence[float], rho: float) -> tuple[list[int], list[int]]:
    """Indices of the answers in the top tier, and of those in the bottom tier.

    Length control of Meta-Rewarding (arXiv 2407.19594): the top tier is [(1 - rho) S_max + rho S_min, S_max], the
    bottom tier [S_min, (1 - rho) S_min + rho S_max]. With rho in [0, 1/2) they share no answer unless all scores are
    equal. With rho = 0 they hold only the best and the worst score.
    """
    best, worst = max(scores), min(scores)
    top, bottom = (1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best
    slack = 1e-9 * max(1.0, abs(best), abs(worst))  # rounding must not put the best answer outside its own tier
    return (
        [i for i, score in enumerate(scores) if score >= top - slack],
        [i for i, score in enumerate(scores) if score <= bottom + slack],
    )


def shortest(indices: Sequence[int], lengths: Sequence[int]) -> int:
    """The shortest of the answers `indices`; of several, the one sampled first."""
    return min(indices, key=lambda i: (lengths[i], i))


def longest(indices: Sequence[int], lengths: Sequence[int]) -> int:
    """The longest of the answers `indices`; of several, the one sampled first."""
    return min(indices, key=lambda i: (-lengths[i], i))


def kendall_tau(one: ArrayLike, other: ArrayLike) -> float:
    """Kendall's tau-b in [-1, 1] of two scorings of the same answers; 0 where one of them ties all answers.

    (concordant - discordant) / sqrt(pairs not tied in one * pairs not tied in the other). Rubric scores tie often,
    and tau-b corrects for ties; without ties it equals the tau of CREAM (arXiv 2410.12735).
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    pairs = np.triu_indices(len(a), k=1)
    x, y = (np.sign(np.subtract.outer(v, v))[pairs] for v in (a, b))
    untied = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
    return float((x * y).sum() / untied) if untied else 0.0


def consistency(one: ArrayLike, other: ArrayLike) -> float:
    """(tau + 1) / 2 in [0, 1] (CREAM): 1 for equal rankings, 1/2 for unrelated ones, 0 for opposite ones."""
    return (kendall_tau(one, other) + 1.0) / 2.0
