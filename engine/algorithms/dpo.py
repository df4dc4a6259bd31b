"""DPO (arXiv 2305.18290) with any loss of the family, on a preference set or on the policy's own answers.

Offline DPO (data = dataset) trains on the pairs of a data set. In iterative DPO (data = sampled) the policy answers, a
scorer compares the answers, and the best one trains against the worst. The losses, with their papers, are in
engine/algorithms/losses.py; this module mixes them and passes each one the parameters that it reads.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from engine.algorithms import preference
from engine.algorithms.base import Batch, ScoredAnswers, Stages, best_and_worst, quality, row_of
from engine.algorithms.losses import LOSSES, Pairs, sft

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Field(gt=0.0)]
PARAMETERS = ("beta", "label_smoothing", "tau", "gamma", "alpha", "margin", "delta", "eta")
"""The keyword arguments of losses; each is a field of DPO."""
AGAINST_POLICY = ("sppo", "sppo_scaled")
"""Losses whose targets are win rates against the policy."""
OF_LIKELIHOODS = {"simpo": "mean", "orpo": "mean", "sft": "mean", "cpo": "sum"}
"""Losses without a reference: their reward is beta times the answer's log-likelihood, its mean per token or sum."""
WITHIN_PAIR = ("sppo_single", "sigmoid_soft")
"""Losses whose target is P(chosen beats rejected). soft_labels turns sigmoid into sigmoid_soft."""
RENAMED = {
    "dpo_sigmoid": "sigmoid",
    "spin": "sigmoid",
    "dpo_cdpo_label_smoothing": "cdpo",
    "dpo_soft": "sigmoid_soft",
    "ipo_avg": "ipo",
    "bco_pair_nodelta": "bco_pair",
    "bco_pair_delta": "bco_pair_shifted",
    "sppo_soft_official": "sppo",
    "sppo_single_official": "sppo_single",
    "sppo_hard_trl": "sppo_hard",
    "apo_hinge_zero_single_beta": "apo_hinge",
    "apo_hinge_zero_literal_double_beta": "apo_hinge_double_beta",
    "apo_hinge_softplus_single_beta": "apo_hinge_softplus",
    "cpo_sigmoid": "cpo",
    "dpo_plus_nll_irpo": "rpo",
}
"""{name in earlier releases: name now}, for the error message."""


class DPO(ScoredAnswers):
    """Parameters of DPO and its relatives."""

    name: Literal["dpo"] = "dpo"
    data: Literal["sampled", "dataset"] = "sampled"
    """sampled: the policy's own answers, compared by the scorer (iterative DPO); dataset: the pairs of a data set."""
    losses: dict[str, Positive] = Field(default={"sigmoid": 1.0})
    """Names of losses with their weights, e.g. {ipo: 1} or {sigmoid: 1, sft: 0.2}; docs/dpo.md lists them."""
    beta: Positive | None = None
    """Scale of log-ratios in most losses. null, here and for the keys up to eta: the default of each loss."""
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.5)] | None = None
    """e, the probability of a wrong label (cdpo, robust, exo_pair, aot, aot_unpaired, margin_sigmoid)."""
    tau: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Temperature of the blend of two losses (discopop)."""
    gamma: float | None = None
    """Target margin in units of the reward (simpo); the paper's code takes gamma / beta instead."""
    alpha: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the negative log-likelihood of the chosen answer (cpo, rpo)."""
    margin: Positive | None = None
    """Margin in units of the reward (apo_hinge, apo_hinge_double_beta, apo_hinge_softplus)."""
    delta: float | None = None
    """Reward shift (bco_pair_shifted; null: the mean reward of the batch), or dead zone of margin_sigmoid."""
    eta: Positive | None = None
    """1 / beta in the SPPO losses (sppo, sppo_scaled, sppo_single)."""
    nll_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Adds this multiple of the chosen answer's mean negative log-likelihood per token to any loss."""
    length_normalized: bool = False
    """Divide all log-probabilities by the answer's number of tokens before the loss."""
    reference_free: bool = False
    """Use 0 for the reference's log-probabilities."""
    soft_labels: bool = False
    """The target of the loss sigmoid is P(chosen answer is better) instead of 1."""

    @model_validator(mode="after")
    def _check_losses_and_parameters(self) -> DPO:
        problems = [*self._unknown_losses()]
        if not problems:  # the other rules need to know which losses are meant
            problems = [*self._unused_parameters(), *self._out_of_bounds(), *self._conflicting_targets()]
        if self.data == "dataset" and self.truncated != "keep":
            problems.append(
                "truncated = exclude applies to sampled answers only; prompts.on_long_answer = drop leaves out answers "
                "of the data set that are too long"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unknown_losses(self) -> Iterator[str]:
        if not self.losses:
            yield "losses is empty; expected at least one name with its weight, e.g. {sigmoid: 1}"
        for name in self.losses:
            if name in RENAMED:
                yield f"losses has no {name!r}; its name is now {RENAMED[name]}"
            elif name not in LOSSES:
                nearest = difflib.get_close_matches(name, LOSSES, n=3, cutoff=0.5)
                yield f"losses has no {name!r}; {'nearest' if nearest else 'known'}: {', '.join(nearest or LOSSES)}"

    def _unused_parameters(self) -> Iterator[str]:
        """A parameter that no loss reads: it would have no effect."""
        read = {parameter for name in self.losses for parameter in _keywords_of(name)}
        unused = [name for name in PARAMETERS if getattr(self, name) is not None and name not in read]
        if unused:
            advice = ", or use the loss cdpo" if "label_smoothing" in unused else ""
            yield f"{', '.join(unused)}: read by none of the losses {', '.join(self.losses)}; remove it{advice}"

    def _out_of_bounds(self) -> Iterator[str]:
        """Values that single losses do not accept."""
        if self.label_smoothing == 0.5 and "robust" in self.losses:
            yield "label_smoothing = 0.5: robust divides by 1 - 2 e; expected less than 0.5"
        if self.label_smoothing == 0.0 and "exo_pair" in self.losses:
            yield "label_smoothing = 0: exo_pair takes its logarithm; expected more than 0, e.g. 0.001"
        if self.soft_labels and ("sigmoid" not in self.losses or "sigmoid_soft" in self.losses):
            yield (
                "soft_labels = true turns the loss sigmoid into sigmoid_soft; losses must name sigmoid and not "
                "sigmoid_soft"
            )

    def _conflicting_targets(self) -> Iterator[str]:
        """Losses that need different targets: a row has one target per answer."""
        against = [name for name in self.losses if name in AGAINST_POLICY]
        within = [name for name in self._weights() if name in WITHIN_PAIR]
        if self.data == "sampled" and against and within:
            yield (
                f"losses mixes {', '.join(against)}, whose targets are win rates against the policy, with "
                f"{', '.join(within)}, whose target is P(chosen beats rejected); use one kind"
            )

    @property
    def num_dataset_completions(self) -> int:
        return 2 if self.data == "dataset" else 0

    @property
    def min_samples(self) -> int:
        return 1 if self.data == "dataset" else 2

    def stages(self, iteration: int) -> Stages:
        return () if self.data == "dataset" else ("completions", "scores")

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        return self._dataset_row(prompt, counts) if self.data == "dataset" else self._sampled_row(prompt, counts)

    def _dataset_row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """The pair of the data set, its chosen answer first."""
        answers, rates = prompt["dataset_completions"], prompt["dataset_win_rates"]
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
        return row_of(prompt, [-1, -2], prompt["dataset_token_ids"], rates)

    def _sampled_row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """The best answer against the worst."""
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
        if self._is_dropped_tie(prompt, best, worst, values, counts):
            return None
        token_ids = [prompt["completion_token_ids"][i] for i in (best, worst)]
        return row_of(prompt, [best, worst], token_ids, self._targets(prompt, best, worst))

    def _pair(self, prompt: dict, values: list[float], readable: list[int]) -> tuple[int, int] | None:
        """Indices of the chosen and the rejected answer; None if no two answers can train."""
        return best_and_worst(values, readable)

    def _targets(self, prompt: dict, best: int, worst: int) -> list[float]:
        """[2] P(best beats worst) and P(worst beats best), or both answers' win rates against the policy's answers."""
        win_prob = preference.pairwise_win_probabilities(np.array(prompt["pair_logits"]))
        if any(name in AGAINST_POLICY for name in self.losses):
            return np.nanmean(win_prob, axis=1)[[best, worst]].tolist()
        return [float(win_prob[best, worst]), float(win_prob[worst, best])]

    def loss(self, batch: Batch) -> Tensor:
        """[B] weighted sum of the losses of each pair; column 0 of the batch is chosen, column 1 rejected."""
        pairs = self._pairs(batch)
        parts = [weight * LOSSES[name](pairs, **self._parameters(name)) for name, weight in self._weights().items()]
        return sum(parts[1:], start=parts[0]) + (self.nll_weight * sft(pairs) if self.nll_weight else 0.0)

    def _pairs(self, batch: Batch) -> Pairs:
        logps, reference, tokens = batch.logps, batch.ref_logps, batch.num_tokens
        if self.length_normalized:
            logps, reference, tokens = logps / tokens, reference / tokens, tokens / tokens
        if self.reference_free:
            reference = reference * 0.0
        return Pairs(
            chosen=logps[:, 0],
            rejected=logps[:, 1],
            reference_chosen=reference[:, 0],
            reference_rejected=reference[:, 1],
            chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
            chosen_win=batch.win_rate[:, 0],
            rejected_win=batch.win_rate[:, 1],
        )

    def _weights(self) -> dict[str, float]:
        """{loss: weight}, with sigmoid_soft in place of sigmoid where soft_labels asks for it."""
        soft = {"sigmoid": "sigmoid_soft"} if self.soft_labels else {}
        return {soft.get(name, name): weight for name, weight in self.losses.items()}

    def _parameters(self, name: str) -> dict[str, float]:
        """The parameters that the loss reads and the config sets."""
        return {key: value for key in _keywords_of(name) if (value := getattr(self, key)) is not None}

    def rewards(self, batch: Batch) -> Tensor:
        """[B, n] those of the first loss; DPO's are log-ratios times beta."""
        first = next(iter(self.losses))
        per_token = self.length_normalized or OF_LIKELIHOODS.get(first) == "mean"
        free = self.reference_free or first in OF_LIKELIHOODS
        values = batch.logps if free else batch.log_ratio
        return self.reward_scale() * (values / batch.num_tokens if per_token else values)

    def reward_scale(self) -> float:
        """beta of the first loss, or 1 / eta; 1 for a loss that has neither."""
        defaults = _keywords_of(next(iter(self.losses)))
        if "eta" in defaults:
            return 1.0 / (self.eta or defaults["eta"])
        return float(self.beta or defaults.get("beta", 1.0))


def _keywords_of(loss: str) -> dict[str, Any]:
    """{keyword argument: default} of a loss."""
    parameters = inspect.signature(LOSSES[loss]).parameters
    return {key: parameters[key].default for key in PARAMETERS if key in parameters}
