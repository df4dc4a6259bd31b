"""The learning rate as a pure function of the step. Knows nothing of optimizers."""

from __future__ import annotations

import math
from typing import Literal


def lr_at(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_ratio: float = 0.0,
    kind: Literal["linear", "cosine", "constant"] = "linear",
) -> float:
    """Learning rate of the update that follows `step` finished updates, in [0, peak].

    Rises in a straight line over the first warmup_ratio * total_steps updates (not rounded, so that
    the curve depends on the share of the schedule alone), then falls to 0 at `total_steps` along a line
    or half a cosine, or stays. As in transformers' schedules the very first update of a warm-up has rate 0.
    """
    warmup = warmup_ratio * total_steps
    if step < warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    left = max(0.0, (total_steps - step) / max(total_steps - warmup, 1e-12))
    return peak * (left if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * left)))
