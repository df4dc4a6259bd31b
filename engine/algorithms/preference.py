"""From a scorer's pair logits to win probabilities, win rates and baselines, in float64.

`logits` is [K, K] for K answers to one prompt: `logits[i, j] > 0` means that answer i, shown first, beats answer j;
NaN means that there is no verdict. The diagonal is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def sigmoid(x: Matrix) -> Matrix:
    """Logistic function without overflow at either end; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -x))


def symmetrised(logits: Matrix) -> Matrix:
    """[K, K] (M_ij - M_ji) / 2; where only one order has a verdict, that one; NaN where neither has."""
    both = (logits - logits.T) / 2
    return np.where(np.isnan(both), np.where(np.isnan(logits), -logits.T, logits), both)


def mean_logits(logits: Matrix) -> Vector:
    """[K] mean_j of the symmetrised pair logit, the zero diagonal included: s_PairRM of SPPO section 5, both orders."""
    return symmetrised(logits).mean(axis=1)


def pairwise_win_probabilities(logits: Matrix) -> Matrix:
    """[K, K] P[i, j] = sigmoid of the symmetrised pair logit; P[i, i] = 1/2.

    SPPO section 5 (arXiv 2405.00675) takes sigma(s(y_i, y_j)) from one order; PairRM is not antisymmetric, so both
    orders are averaged. Intransitive preferences stay intransitive.
    """
    return sigmoid(symmetrised(logits))


def bradley_terry_win_probabilities(logits: Matrix) -> Matrix:
    """[K, K] P[i, j] = sigmoid(s_i - s_j) with s_i = mean_j (M_ij - M_ji), as in SPPO's released scripts.

    The mean is over all K, the zero diagonal included, and adds both orders without halving. So a transitive
    preference has twice its logit, and an intransitive one is flattened.
    """
    scores = 2 * mean_logits(logits)
    return sigmoid(scores[:, None] - scores[None, :])


ESTIMATORS = {"pairwise": pairwise_win_probabilities, "bt_aggregate": bradley_terry_win_probabilities}
"""Readings of pair logits, by the names of SPPO's key `estimator`."""


def win_rates(win_prob: Matrix) -> Vector:
    """[K] P_hat(y_i beats the policy) = mean_j P[i, j], the answer itself counted at 1/2 (SPPO section 4.2)."""
    return win_prob.mean(axis=1)


def log_partition(rates: Vector, eta: float) -> float:
    """log Z = log mean_k exp(eta * P_hat(y_k)), over the answers of one prompt (SPPO equation 4.5)."""
    scaled = eta * np.asarray(rates, dtype=np.float64)
    return float(np.logaddexp.reduce(scaled) - np.log(len(scaled)))
