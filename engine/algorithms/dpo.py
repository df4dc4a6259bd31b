"""DPO (arXiv 2305.18290) with any loss of the family, on a preference set or on the policy's own answers.

Offline, the pairs are given; iterative, the policy answers, a scorer compares, and the best answer trains
against the worst. engine/algorithms/losses.py has the losses with their papers; here they are mixed and given what
they ask for.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from engine.algorithms import preference
from engine.algorithms.base import Batch, ScoredAnswers, Stages, best_and_worst, quality, row_of
from engine.algorithms.losses import LOSSES, Pairs, sft

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Field(gt=0.0)]
PARAMETERS = ("beta", "label_smoothing", "tau", "gamma", "alpha", "m", "delta", "eta")
"""What losses may ask for, by the names of their arguments."""
AGAINST_POLICY = ("sppo_soft_official", "sppo_scaled")
"""Losses whose targets are win rates against the policy."""
WITHIN_PAIR = ("sppo_single_official", "dpo_soft")
"""Losses whose target is P(chosen beats rejected), as dpo_sigmoid's with soft_labels."""


class DPO(ScoredAnswers):
    """Parameters of DPO and its relatives."""

    name: Literal["dpo"] = "dpo"
    data: Literal["sampled", "given"] = "sampled"
    """sampled: the policy's own answers, compared by the scorer (iterative DPO); given: the pairs of a data set."""
    losses: dict[str, Positive] = Field(default={"dpo_sigmoid": 1.0})
    """Names of losses with their weights, e.g. {ipo_avg: 1} or {dpo_sigmoid: 1, sft: 0.2}; docs/dpo.md lists them."""
    beta: Positive | None = None
    """Scale of log-ratios, of most losses; null: each loss's own default, as for all keys that follow."""
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.5)] | None = None
    """e, the probability of a wrong label (cDPO, robust, EXO, AOT, margin_sigmoid)."""
    tau: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Temperature of the blend (discopop)."""
    gamma: float | None = None
    """Margin in units of the reward (simpo); the paper's code gives gamma / beta instead."""
    alpha: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the likelihood of the chosen answer (cpo_sigmoid, dpo_plus_nll_irpo)."""
    m: Positive | None = None
    """Margin in units of the reward (apo_hinge...)."""
    delta: float | None = None
    """Reward shift (bco_pair_delta; null: the batch's mean) or dead zone of the loss (margin_sigmoid)."""
    eta: Positive | None = None
    """1 / beta of the SPPO losses."""
    nll_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Adds so much of the mean negative log-likelihood per token of the chosen answer to any loss."""
    length_normalized: bool = False
    """Divide all log-probabilities by the answer's number of tokens first."""
    reference_free: bool = False
    """Take the reference's log-probabilities to be 0."""
    soft_labels: bool = False
    """dpo_sigmoid with the probability that the chosen answer is better as its target instead of 1."""

    @model_validator(mode="after")
    def _losses_and_their_parameters(self) -> DPO:
        problems = [*self._unknown_losses()]
        if not problems:  # what the others say would depend on the losses that were meant
            problems = [*self._idle_parameters(), *self._out_of_bounds(), *self._conflicting_targets()]
        problems += self._rules_of_sampled_answers()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unknown_losses(self) -> Iterator[str]:
        if not self.losses:
            yield "losses is empty; expected at least one name with its weight, e.g. {dpo_sigmoid: 1}"
        for name in self.losses:
            if name not in LOSSES:
                near = difflib.get_close_matches(name, LOSSES, n=3, cutoff=0.5)
                yield f"losses has no {name!r}; {'nearest: ' if near else ''}{', '.join(near or LOSSES)}"

    def _idle_parameters(self) -> Iterator[str]:
        read = {parameter for name in self.losses for parameter in inspect.signature(LOSSES[name]).parameters}
        idle = [name for name in PARAMETERS if getattr(self, name) is not None and name not in read]
        if idle:
            smooth = ", or use dpo_cdpo_label_smoothing" if "label_smoothing" in idle else ""
            yield f"{', '.join(idle)}: read by none of the losses {', '.join(self.losses)}; remove it{smooth}"

    def _rules_of_sampled_answers(self) -> Iterator[str]:
        if self.data == "given" and self.truncated != "keep":
            yield "truncated = exclude: for sampled answers; prompts.on_long_answer = drop leaves given ones out"

    def _out_of_bounds(self) -> Iterator[str]:
        """Bounds that single losses put on e, and on soft labels."""
        if self.label_smoothing == 0.5 and "robust" in self.losses:
            yield "label_smoothing = 0.5: robust divides by 1 - 2 e; give less"
        if self.label_smoothing == 0.0 and "exo_pair" in self.losses:
            yield "label_smoothing = 0: exo_pair takes its logarithm; give e.g. 0.001"
        if self.soft_labels and ("dpo_sigmoid" not in self.losses or "dpo_soft" in self.losses):
            yield "soft_labels makes dpo_sigmoid dpo_soft; losses must name the former, not the latter"

    def _conflicting_targets(self) -> Iterator[str]:
        """A row has one target per answer."""
        against = [name for name in self.losses if name in AGAINST_POLICY]
        within = [name for name in self._named() if name in WITHIN_PAIR]
        if self.data == "sampled" and against and within:
            yield (
                f"losses mixes {', '.join(against)}, whose targets are win rates against the policy, with "
                f"{', '.join(within)}, whose target is P(chosen beats rejected); take one kind"
            )

    @property
    def given(self) -> int:
        return 2 if self.data == "given" else 0

    @property
    def min_samples(self) -> int:
        return 1 if self.data == "given" else 2

    def stages(self, iteration: int) -> Stages:
        return () if self.data == "given" else ("completions", "scored")

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        return self._given_row(prompt, counts) if self.data == "given" else self._sampled_row(prompt, counts)

    def _given_row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """The pair of the data set, its chosen answer first."""
        answers, rates = prompt["given_answers"], prompt["given_win_rates"]
        empty = sum(not answer.strip() for answer in answers)
        counts["prompts"] += 1
        counts["empty"] += empty
        if empty and self.empty == "exclude":
            counts["no_pair"] += 1
            return None
        if rates[0] == rates[1] or answers[0] == answers[1]:
            counts["ties"] += 1
            if self.ties == "drop":
                return None
        return row_of(prompt, [-1, -2], prompt["given_token_ids"], rates)

    def _sampled_row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """The best of the answers against the worst."""
        values = quality(prompt)
        eligible = self._eligible(prompt, counts)
        readable = [i for i in eligible if not math.isnan(values[i])]
        if len(readable) < 2:
            counts["missing" if len(readable) < len(eligible) else "no_pair"] += 1
            return None
        pair = self._pair(prompt, values, readable)
        if pair is None:
            counts["no_pair"] += 1
            return None
        best, worst = pair
        if self._is_tie(prompt, best, worst, values, counts):
            return None
        token_ids = [prompt["answer_token_ids"][i] for i in (best, worst)]
        return row_of(prompt, [best, worst], token_ids, self._targets(prompt, best, worst))

    def _pair(self, prompt: dict, values: list[float], readable: list[int]) -> tuple[int, int] | None:
        """Which two answers train, the chosen one first; None if no two can."""
        return best_and_worst(values, readable)

    def _targets(self, prompt: dict, best: int, worst: int) -> list[float]:
        """P(best beats worst) and its opposite, or both win rates against the policy's answers."""
        win_prob = preference.pairwise_win_probabilities(np.array(prompt["pair_logits"]))
        if any(name in AGAINST_POLICY for name in self.losses):
            return np.nanmean(win_prob, axis=1)[[best, worst]].tolist()
        return [float(win_prob[best, worst]), float(win_prob[worst, best])]

    def loss(self, batch: Batch) -> Tensor:
        """[B] weighted sum of the losses of each pair: column 0 is chosen, column 1 rejected."""
        pairs = self._pairs(batch)
        parts = [weight * LOSSES[name](pairs, **self._parameters(name)) for name, weight in self._named().items()]
        return sum(parts[1:], start=parts[0]) + (self.nll_weight * sft(pairs) if self.nll_weight else 0.0)

    def _pairs(self, batch: Batch) -> Pairs:
        logps, reference, tokens = batch.logps, batch.reference_logps, batch.num_tokens
        if self.length_normalized:
            logps, reference, tokens = logps / tokens, reference / tokens, tokens / tokens
        if self.reference_free:
            reference = reference * 0.0
        tables = (logps, reference, tokens, batch.win_rate)
        return Pairs(*(column for table in tables for column in (table[:, 0], table[:, 1])))

    def _named(self) -> dict[str, float]:
        """The losses with their weights, softened where the labels are."""
        soft = {"dpo_sigmoid": "dpo_soft"} if self.soft_labels else {}
        return {soft.get(name, name): weight for name, weight in self.losses.items()}

    def _parameters(self, name: str) -> dict[str, float]:
        """What the loss asks for and the config gives."""
        asked = inspect.signature(LOSSES[name]).parameters
        return {p: value for p in PARAMETERS if p in asked and (value := getattr(self, p)) is not None}

    def reward_scale(self) -> float:
        """beta of the first loss, or 1 / eta."""
        first = inspect.signature(LOSSES[next(iter(self.losses))]).parameters
        if "eta" in first:
            return 1.0 / (self.eta or first["eta"].default)
        return float(self.beta or (first["beta"].default if "beta" in first else 1.0))
