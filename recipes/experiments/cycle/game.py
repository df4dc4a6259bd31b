"""The cyclic game in closed form: three answers that beat each other in a circle. numpy only.

No reward explains such preferences: every ranking of the answers contradicts one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.algorithms.preference import sigmoid

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Update = Callable[[Vector], Vector]
"""Policy -> the change of each answer's log-weight in one iteration."""

WINS: Matrix = np.array([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]])
"""[i, j]: P(answer i beats answer j)."""
NASH: Vector = np.array([3, 2, 4]) / 9
"""The only policy against which no answer wins more than half of the time."""
START: Vector = np.array([0.6, 0.3, 0.1])


def exploitability(policy: Vector) -> float:
    """max_y P(y beats `policy`) - 1/2: the gain of the best single answer; 0 only for NASH."""
    return float((WINS @ policy).max() - 0.5)


def reweighted(policy: Vector, change: Vector) -> Vector:
    """policy * exp(change), normalised."""
    weights = policy * np.exp(change - change.max())
    return weights / weights.sum()


def trajectory(start: Vector, update: Update, iterations: int) -> Matrix:
    """[iterations + 1, 3] policies from `start` on."""
    policies = [start]
    for _ in range(iterations):
        policies.append(reweighted(policies[-1], update(policies[-1])))
    return np.array(policies)


def sppo_update(eta: float) -> Update:
    """SPPO's equation 4.1: eta * P(y beats pi_t)."""
    return lambda policy: eta * (WINS @ policy)


def bradley_terry_rewards(weights: Matrix) -> Vector:
    """[3] rewards, with mean 0, that maximise the Bradley-Terry likelihood of WINS under pair `weights` [3, 3].

    Newton's method on the two differences to answer 0; the likelihood is concave.
    """
    weights, rewards = weights / weights.max(), np.zeros(3)
    for _ in range(100):
        fitted = sigmoid(rewards[:, None] - rewards[None, :])
        slopes = weights * fitted * (1 - fitted)
        curvature = np.diag(slopes.sum(axis=1)) - slopes
        gradient = (weights * (WINS - fitted)).sum(axis=1)
        rewards[1:] += np.linalg.solve(curvature[1:, 1:], gradient[1:])
    return rewards - rewards.mean()


def dpo_update(beta: float) -> Update:
    """Iterated DPO on all pairs with equal weights: each iteration adds the same Bradley-Terry rewards / beta."""
    rewards = bradley_terry_rewards(np.ones((3, 3)))
    return lambda policy: rewards / beta


def refitted_update(beta: float) -> Update:
    """Iterated DPO on pairs drawn from pi_t: the rewards are fitted again in each iteration, under these weights."""
    return lambda policy: bradley_terry_rewards(np.outer(policy, policy)) / beta


def average_exploitability(policies: Matrix) -> Vector:
    """[T] exploitability of the uniform average of the first 1, 2, ..., T policies."""
    averages = np.cumsum(policies, axis=0) / np.arange(1, len(policies) + 1)[:, None]
    return (averages @ WINS.T).max(axis=1) - 0.5


def revolutions(policies: Matrix) -> float:
    """How many times the path goes around NASH, from the angle of log(policy / NASH)."""
    logs = np.log(policies / NASH)
    x, y = logs[:, 0] - logs[:, 1], (logs[:, 0] + logs[:, 1] - 2 * logs[:, 2]) / np.sqrt(3)
    return float(abs(np.diff(np.unwrap(np.arctan2(y, x))).sum()) / (2 * np.pi))
