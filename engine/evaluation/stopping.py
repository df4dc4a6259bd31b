"""Which optimizer step of an iteration is best on held-out preferences, and whether training should end.

Pure functions of the validations so far, so that a resumed run decides as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.config.learner import EarlyStoppingConfig, ValidationMetric

History = Sequence[tuple[int, float]]
"""[validations] (optimizer step, loss or accuracy), in the order of the steps."""


def is_better(metric: ValidationMetric, value: float, than: float, by: float = 0.0) -> bool:
    """Whether `value` is better than another one by more than `by`; NaN is better than nothing."""
    return than - value > by if metric == "loss" else value - than > by


def best_step(metric: ValidationMetric, history: History) -> int:
    """The step with the best value; of several the first."""
    step, best = history[0]
    for other, value in history[1:]:
        if is_better(metric, value, than=best):
            step, best = other, value
    return step


def is_over(config: EarlyStoppingConfig, history: History) -> bool:
    """Whether the last `patience` validations brought no improvement by more than `min_delta` over the best before.

    As transformers' EarlyStoppingCallback counts: an improvement that is too small does not reset the count, but it
    raises the bar for later ones.
    """
    if not history:
        return False
    best, waited = history[0][1], 0
    for _, value in history[1:]:
        waited = 0 if is_better(config.metric, value, best, config.min_delta) else waited + 1
        best = value if is_better(config.metric, value, best) else best
        if waited >= config.patience:
            return True
    return False
