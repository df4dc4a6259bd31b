"""The methods that learn from the pairs of world.py: SFT, DPO, and SPAC in its forms, with one budget for all.

The policy is a table of logits, one per context and action, so contexts do not generalise to each other. The tables
of all seeds are trained at once; Adam treats each number separately, so they do not affect each other. The losses
are the engine's own. No method sees a true value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.algorithms.base import Algorithm, Batch
from engine.algorithms.spac import SPAC
from engine.seeds import derive_seed
from recipes.experiments.coverage.world import ACTIONS, CONTEXTS, Reals, World

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 10
STEPS = 50
"""Optimizer steps per round, each on all pairs."""
SCALES = np.concatenate([[0.0], np.logspace(-2.0, 1.0, 61)])
"""Factors on log-ratios tried in heldout_likelihood."""
Form = Literal["policy", "critic"]
BOUND = 3.0
"""An explicit critic's rewards lie in [-BOUND, BOUND]; the theory asks for a bounded class."""


@dataclass(frozen=True)
class Method:
    """How one method learns: ROUNDS rounds of STEPS steps, each round with a fresh optimizer."""

    name: str
    algorithm: Algorithm | None
    """Its loss is trained on; None: the log-likelihood of the chosen action (SFT)."""
    reference: Literal["previous", "start"] = "previous"
    """The reference of the log-ratios: the policy at the start of the round, or the first policy."""
    form: Form = "policy"
    """critic: the loss trains a table of bounded rewards, which the policy then follows in closed form."""
    eps: float = 1e-8
    """Adam's. Where gradients are far below it, steps are proportional to them; far above it, all numbers get steps of
    equal length, also those of actions seen once."""

    @property
    def samples(self) -> bool:
        """Whether the loss compares a sample of the policy beside each pair."""
        return isinstance(self.algorithm, SPAC) and self.algorithm.penalty_weight > 0


@dataclass(frozen=True)
class Learnt:
    """What S runs have learned."""

    policies: Reals
    """[ROUNDS, S, X, A] after each round."""
    critic: Reals | None
    """[S, X, A] in the values' unit, up to a constant per context: the implicit reward of the log-ratio to a fixed
    reference, or the mean over rounds of the rewards that the policy followed. None for SFT."""
    spent: dict[str, int]
    """Per run: gradient steps, pairs read, and samples drawn from the policy."""

    @property
    def last(self) -> Reals:
        return self.policies[-1]

    @property
    def average(self) -> Reals:
        """The uniform mixture of the rounds' policies, for which the theory holds."""
        return self.policies.mean(axis=0)


class Rows:
    """The training pairs of S worlds as indices into flat tables [S * X * A]."""

    def __init__(self, worlds: Sequence[World]):
        import torch

        self.num_worlds = len(worlds)
        self.per_world = len(worlds[0].training.context)
        offsets = [s * 2 * CONTEXTS + world.training.context for s, world in enumerate(worlds)]
        self.context = torch.from_numpy(np.concatenate(offsets))
        pairs = [np.stack([world.training.chosen, world.training.rejected], axis=1) for world in worlds]
        self.pairs = self.context[:, None] * ACTIONS + torch.from_numpy(np.concatenate(pairs))

    def with_samples(self, logps: Tensor, generator: object) -> Tensor:
        """[rows, 3] the pairs and one action each of the policy with `logps` [S, X, A]."""
        import torch

        drawn = torch.multinomial(logps.flatten(0, 1).exp()[self.context], 1, generator=generator)
        return torch.cat([self.pairs, self.context[:, None] * ACTIONS + drawn], dim=1)


def train(method: Method, rows: Rows, lr: float) -> Learnt:
    """Train one table per world at one learning rate, from uniform policies."""
    import torch

    generator = torch.Generator().manual_seed(derive_seed("coverage samples", method.name, lr))
    shape = (rows.num_worlds, 2 * CONTEXTS, ACTIONS)
    start = torch.full(shape, -math.log(ACTIONS), dtype=torch.float64)
    logps, table, policies, rewards = start, torch.zeros(shape, dtype=torch.float64), [], []
    for _ in range(ROUNDS):
        entries = rows.with_samples(logps, generator) if method.samples else rows.pairs
        reference = logps if method.reference == "previous" else start
        table = _fit(method, table, reference, entries, lr, rows.per_world)
        following = (
            (logps + _output(method, table)).log_softmax(-1) if method.form == "critic" else _output(method, table)
        )
        rewards.append(_output(method, table) if method.form == "critic" else following - reference)
        logps = following
        policies.append(logps.exp().numpy())
    spent = {
        "gradient_steps": ROUNDS * STEPS,
        "pairs_read": ROUNDS * STEPS * rows.per_world,
        "samples_drawn": ROUNDS * rows.per_world * method.samples,
    }
    return Learnt(np.array(policies), _critic(method, rewards), spent)


def _fit(method: Method, table: Tensor, reference: Tensor, entries: Tensor, lr: float, per_world: int) -> Tensor:
    """The table after STEPS steps of Adam on the mean loss of each world's rows."""
    import torch

    table = table.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=lr, eps=method.eps)
    # A critic's rewards take the place of log-ratios, so their reference is 0.
    base = torch.zeros_like(reference) if method.form == "critic" else reference
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = _losses(method, _take(_output(method, table), entries), _take(base, entries))
        (loss.sum() / per_world).backward()
        optimizer.step()
    return table.detach()


def _take(table: Tensor, entries: Tensor) -> Tensor:
    """[rows, n] numbers of a table [S, X, A]; the backward pass is faster than that of indexing."""
    return table.flatten().index_select(0, entries.flatten()).view_as(entries)


def _output(method: Method, table: Tensor) -> Tensor:
    """[S, X, A] log-probabilities; for a critic eta times its rewards, which are within BOUND."""
    if method.form == "critic":
        assert method.algorithm is not None
        return BOUND * (table / BOUND).tanh() / method.algorithm.reward_scale()
    return table.log_softmax(-1)


def _losses(method: Method, logps: Tensor, reference: Tensor) -> Tensor:
    """[rows] the algorithm's loss. logps, reference: [rows, n] of chosen, rejected and, for SPAC, a sample."""
    if method.algorithm is None:
        return -logps[:, 0]
    ones = logps.new_ones(logps.shape)
    label = logps.new_tensor([1.0, 0.0, 0.5])[: logps.shape[1]].expand_as(logps)
    return method.algorithm.loss(Batch(logps, reference, ones, label, 0.5 * ones[:, :1]))


def _critic(method: Method, log_ratios: list[Tensor]) -> Reals | None:
    if method.algorithm is None:
        return None
    total = sum(log_ratios) / len(log_ratios) if method.reference == "previous" else log_ratios[-1]
    return (method.algorithm.reward_scale() * total).numpy()


def heldout_likelihood(world: World, policy: Reals) -> float:
    """Mean log-likelihood of the held-out preferences under sigmoid(s * (log pi(chosen) - log pi(rejected))).

    s >= 0 is the best one, so that the sharpness of a policy does not matter. In nats, at most 0.
    """
    pairs = world.heldout
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(policy), -700.0)
    margins = logs[pairs.context, pairs.chosen] - logs[pairs.context, pairs.rejected]
    return float((-np.logaddexp(0.0, -SCALES[:, None] * margins)).mean(axis=1).max())
