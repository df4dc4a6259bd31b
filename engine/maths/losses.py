"""Elementary losses: pure functions of tensors, one equation each, no reduction over the batch.

All log-probabilities are natural and summed over the answer's tokens. Written with operators only,
so that this file loads without torch; the result has the dtype of its inputs (float32 or better:
at eta = 1000 SPPO starts between 1e4 and 1.6e5, beyond float16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sppo(log_ratio: Tensor, win_rate: Tensor, baseline: Tensor | float, eta: float) -> Tensor:
    """[..., n] squared error of each answer: (log_ratio - eta * (win_rate - baseline))^2.

    SPPO (arXiv 2405.00675): equation 4.7 with baseline 1/2; equation 4.5 with log Z / eta.
    log_ratio: nats, any real. win_rate, baseline: in [0, 1]. eta: 1 / beta of the released code, 1000 there.
    """
    return (log_ratio - eta * (win_rate - baseline)) ** 2
