"""Early stopping and the best step, compared with transformers' own callback."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.learner import EarlyStoppingConfig
from engine.evaluation.stopping import best_step, is_over


def steps(*values: float) -> list[tuple[int, float]]:
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


def test_training_goes_on_while_the_loss_falls() -> None:
    assert not is_over(EarlyStoppingConfig(), [])
    assert not is_over(EarlyStoppingConfig(), steps(0.7))
    assert not is_over(EarlyStoppingConfig(), steps(0.7, 0.6, 0.5))


def test_it_ends_after_so_many_validations_without_an_improvement() -> None:
    history = steps(0.7, 0.6, 0.65, 0.62)
    assert [is_over(EarlyStoppingConfig(patience=p), history) for p in (1, 2, 3)] == [True, True, False]


def test_a_higher_accuracy_is_an_improvement() -> None:
    assert not is_over(EarlyStoppingConfig(metric="accuracy"), steps(0.5, 0.6, 0.7))
    assert is_over(EarlyStoppingConfig(metric="accuracy"), steps(0.5, 0.6, 0.6))


def test_the_best_step_is_the_first_of_equally_good_ones() -> None:
    assert best_step("loss", steps(0.7, 0.5, 0.5, 0.9)) == 20
    assert best_step("accuracy", steps(0.7, 0.5, 0.9, 0.9)) == 30


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.9]), min_size=1, max_size=10),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.06, 0.2]),
    metric=st.sampled_from(["loss", "accuracy"]),
)
def test_it_ends_where_transformers_would_end(values, patience, min_delta, metric) -> None:
    config = EarlyStoppingConfig(patience=patience, min_delta=min_delta, metric=metric)
    ours = next((n for n in range(1, len(values) + 1) if is_over(config, steps(*values[:n]))), None)
    assert ours == _transformers_ends(values, patience, min_delta, greater_is_better=metric == "accuracy")


def _transformers_ends(values: list[float], patience: int, threshold: float, greater_is_better: bool) -> int | None:
    """The number of validations after which EarlyStoppingCallback asks to stop; the trainer keeps the best metric."""
    transformers = pytest.importorskip("transformers")
    callback = transformers.EarlyStoppingCallback(patience, threshold)
    arguments = type("Arguments", (), {"metric_for_best_model": "m", "greater_is_better": greater_is_better})()
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    for number, value in enumerate(values, start=1):
        callback.on_evaluate(arguments, state, control, {"eval_m": value})
        best = state.best_metric
        if best is None or (value > best if greater_is_better else value < best):
            state.best_metric = value
        if control.should_training_stop:
            return number
    return None


def test_a_loss_that_is_no_number_is_never_an_improvement() -> None:
    assert best_step("loss", steps(0.7, math.nan)) == 10
    assert is_over(EarlyStoppingConfig(), steps(0.7, math.nan))
