"""SPAC, self-play with an adversarial critic (arXiv 2406.04274): pessimistic learning from a preference set.

Derived from the paper's abstract and from notes on it, not copied from its text; docs/spac.md has the derivation.
The critic r_t fits the preferences and is as low as they allow on answers of the current policy pi_t; the policy
follows it, pi_{t+1} ~ pi_t * exp(eta * r_t). With r_t = (1 / eta) * h, h = log pi - log pi_t, both steps are one
minimisation over the policy, per prompt with chosen y+, rejected y- and samples y' of pi_t:

    pref_weight * softplus(-(h(y+) - h(y-)) / eta) + critic_weight * surrogate(h(y') / eta)

The reference is the previous iterate, never the start: r_t is the log-ratio to pi_t.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from engine.algorithms.base import Algorithm, Batch, Selection, Stages, row_of

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

Surrogate = Literal["softplus", "spin", "raw"]


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """[B] -log sigmoid(beta * (h+ - h-)), the preference's negative log-likelihood. chosen, rejected: [B] h, nats."""
    from torch.nn.functional import softplus

    return softplus(-beta * (chosen - rejected))


def critic_penalty(chosen: Tensor, sampled: Tensor, beta: float, surrogate: Surrogate) -> Tensor:
    """[B] penalty on the reward of the policy's own answers, a mean over K samples.

    chosen: [B] h+; sampled: [B, K] h' of answers from pi_t; nats.
    raw: beta * h', the term of the derivation. It has no lower bound and pushes samples down without end.
    softplus: log(1 + exp(beta * h')), bounded below by 0, with half of raw's gradient at h' = 0.
    spin: softplus of beta * (h' - h+), relative to the chosen answer as in SPIN (arXiv 2401.01335). Unlike the other
    two it does not depend on the reward's constant per prompt, which preferences do not determine.
    """
    from torch.nn.functional import softplus

    if surrogate == "raw":
        return (beta * sampled).mean(dim=-1)
    excess = sampled - chosen[:, None] if surrogate == "spin" else sampled
    return softplus(beta * excess).mean(dim=-1)


class SPAC(Algorithm):
    """Parameters of SPAC."""

    name: Literal["spac"] = "spac"
    reference: Literal["previous"] = "previous"
    """pi_t, the policy that also samples: the critic's reward is the log-ratio to it."""
    beta: float = Field(default=0.1, gt=0.0)
    """1 / eta, the inverse step size of the policy's exponential update; takes the place of DPO's beta."""
    pref_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the preferences."""
    critic_weight: float | None = Field(default=None, ge=0.0)
    """Weight of the penalty; null: 1 / lam, or 1 where lam is null too. 0: iterated DPO on the given pairs."""
    lam: float | None = Field(default=None, gt=0.0)
    """The derivation's lambda, which multiplies the preferences: the same as critic_weight = 1 / lam."""
    surrogate: Surrogate = "softplus"
    """softplus: of h' * beta; spin: softplus of (h' - h+) * beta; raw: h' * beta, which has no lower bound."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs without a preference: labelled 1/2, or with the same answer twice."""

    @model_validator(mode="after")
    def _check_weights(self) -> SPAC:
        if self.lam is not None and self.critic_weight is not None:
            raise ValueError(f"lam = {self.lam} means critic_weight = {1 / self.lam:g}; set one of the two, not both")
        if self.pref_weight == 0.0 and self.penalty_weight == 0.0:
            raise ValueError("pref_weight = 0 and critic_weight = 0 leave nothing to learn from; raise one of them")
        return self

    @property
    def penalty_weight(self) -> float:
        """critic_weight, or 1 / lam where that is set instead."""
        if self.critic_weight is not None:
            return self.critic_weight
        return 1.0 / self.lam if self.lam is not None else 1.0

    @property
    def num_dataset_completions(self) -> int:
        return 2

    @property
    def min_samples(self) -> int:
        return 1

    def stages(self, iteration: int) -> Stages:
        return ("completions",)

    def select(self, completions: pa.Table) -> Selection:
        counts: Counter[str] = Counter(dict.fromkeys(("prompts", "ties", "truncated", "empty"), 0))
        rows = [row for prompt in completions.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, "spac rows")

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """Chosen, rejected and every sample, including samples without text or cut by the length limit."""
        (better, worse), given = prompt["dataset_win_rates"], prompt["dataset_token_ids"]
        counts["prompts"] += 1
        counts["truncated"] += prompt["finish_reasons"].count("length")
        counts["empty"] += sum(not answer.strip() for answer in prompt["completions"])
        if better == worse or given[0] == given[1]:
            counts["ties"] += 1
            if self.ties == "drop":
                return None
        samples = prompt["completion_token_ids"]
        rates = [better, worse, *[0.5] * len(samples)]  # a sample's win rate against its own policy is 1/2
        return row_of(prompt, [-1, -2, *range(len(samples))], [*given, *samples], rates)

    def loss(self, batch: Batch) -> Tensor:
        """[B] losses; a row is chosen, rejected, samples, as `select` makes it. Weight 0 needs no samples."""
        h = batch.log_ratio
        preferences = self.pref_weight * preference_loss(h[:, 0], h[:, 1], self.beta)
        if self.penalty_weight == 0.0:
            return preferences
        return preferences + self.penalty_weight * critic_penalty(h[:, 0], h[:, 2:], self.beta, self.surrogate)

    def heldout_loss(self, batch: Batch) -> Tensor:
        """[B] negative log-likelihood of the preferences, with weight 1; the penalty needs answers of the policy."""
        h = batch.log_ratio
        return preference_loss(h[:, 0], h[:, 1], self.beta)

    def reward_scale(self) -> float:
        return self.beta
