"""Self-rewarding language models (arXiv 2401.10020): iterative DPO on scores that the policy gives itself.

The policy answers K times and judges each answer by a rubric; the mean of its readable judgements is the score,
equal scores are dropped, the best answer trains against the worst. What later papers found to go wrong can be
mended, each by one key; all are off by default, `nll_weight` of DPO among them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from engine.algorithm import Stages
from engine.algorithms.dpo import DPO
from engine.maths.ranking import consistency, longest, quality_tiers, shortest


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
        before = prompt.get("previous_scores")  # none in the first iteration, where this policy agrees with itself
        if before is None:
            return [1.0, 0.0]
        now = prompt["scores"]
        known = [i for i in range(len(now)) if not math.isnan(now[i]) and not math.isnan(before[i])]
        agreed = consistency([now[i] for i in known], [before[i] for i in known]) if known else 0.5
        return [agreed, 1.0 - agreed]
