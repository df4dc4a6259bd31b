"""A contextual bandit with known values and offline preferences, half of it well covered and half of it badly.

Contexts stand for prompts and actions for answers. Every action's true value is a standard normal draw. Pairs
of different actions come from a behaviour policy and are labelled by Bradley-Terry, P(a beats b) =
sigmoid(v_a - v_b). In the first half of the contexts the behaviour is uniform and there are many pairs; in the
second it plays mostly a few common actions and there are few pairs, so most actions are seen once or never.

The guarantee of SPAC (arXiv 2406.04274) is relative to policies that the data cover (single-policy
concentrability). In the world "best" the few common actions include the best one, as the guarantee requires; in the
world "any" they are drawn at random, and the guarantee does not hold for the optimum. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.algorithms.preference import sigmoid
from engine.seeds import derive_seed

CONTEXTS = 20
"""In each half."""
ACTIONS = 10
COMMON = 3
"""Common actions of the behaviour in the badly covered half."""
COMMON_MASS = 0.95
PAIRS = (60, 15)
"""Training pairs per context, in the well and in the badly covered half."""
HELDOUT_PAIRS = (20, 5)
HALVES = ("high", "low")

Covered = Literal["best", "any"]
Reals = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """n labelled pairs."""

    context: Indices
    chosen: Indices
    rejected: Indices


@dataclass(frozen=True)
class World:
    """X = 2 * CONTEXTS contexts, the well covered ones first, with A = ACTIONS actions each."""

    values: Reals
    """[X, A] true values; no learner and no selection sees them."""
    behaviour: Reals
    """[X, A] probabilities with which the data's actions were drawn."""
    training: Pairs
    heldout: Pairs

    def by_half(self, per_context: Reals) -> dict[str, float]:
        """Means of a number per context [X] over each half and over all."""
        high, low = per_context[:CONTEXTS], per_context[CONTEXTS:]
        return {"high": float(high.mean()), "low": float(low.mean()), "all": float(per_context.mean())}


def make_world(seed: int, covered: Covered) -> World:
    """The world of a seed; `covered` says which actions are common in the badly covered half."""
    draw = np.random.default_rng(derive_seed(seed, "coverage", covered))
    values = draw.standard_normal((2 * CONTEXTS, ACTIONS))
    behaviour = np.full_like(values, 1 / ACTIONS)
    for context in range(CONTEXTS, 2 * CONTEXTS):
        common = draw.permutation(ACTIONS)[:COMMON]
        best = values[context].argmax()
        if covered == "best" and best not in common:
            common[0] = best
        behaviour[context] = (1 - COMMON_MASS) / (ACTIONS - COMMON)
        behaviour[context, common] = COMMON_MASS / COMMON
    return World(values, behaviour, *(_draw_pairs(draw, values, behaviour, n) for n in (PAIRS, HELDOUT_PAIRS)))


def _draw_pairs(draw: np.random.Generator, values: Reals, behaviour: Reals, per_context: tuple[int, int]) -> Pairs:
    context = np.concatenate([np.repeat(np.arange(CONTEXTS), n) + CONTEXTS * i for i, n in enumerate(per_context)])
    # Gumbel keys: the two largest are two different actions, drawn one after the other without replacement.
    keys = np.log(behaviour)[context] + draw.gumbel(size=(len(context), ACTIONS))
    first, second = np.argsort(-keys, axis=1)[:, :2].T
    wins = draw.random(len(context)) < sigmoid(values[context, first] - values[context, second])
    return Pairs(context, np.where(wins, first, second), np.where(wins, second, first))


def most_wins(world: World) -> Reals:
    """[X, A] the policy that plays the action chosen most often in each context."""
    wins = np.zeros_like(world.values)
    np.add.at(wins, (world.training.context, world.training.chosen), 1.0)
    return np.eye(ACTIONS)[wins.argmax(axis=1)]


def most_wins_overall(world: World) -> Reals:
    """[X, A] the policy that plays the action chosen most often in all data, everywhere."""
    wins = np.bincount(world.training.chosen, minlength=ACTIONS)
    return np.tile(np.eye(ACTIONS)[wins.argmax()], (len(world.values), 1))


def true_value(world: World, policy: Reals) -> Reals:
    """[X] expected true value of `policy` [X, A]."""
    return (policy * world.values).sum(axis=1)


def over_estimation(world: World, policy: Reals, critic: Reals) -> Reals:
    """[X] the gain of `policy` over the behaviour by the critic, minus its true gain.

    critic: [X, A] in the values' unit. Gains are differences to the behaviour's mean, because preferences do not
    determine a constant per context.
    """
    claimed = ((policy - world.behaviour) * critic).sum(axis=1)
    return claimed - ((policy - world.behaviour) * world.values).sum(axis=1)
