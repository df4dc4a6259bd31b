"""The learning-rate curve, at the values of published runs."""

from __future__ import annotations

import pytest

from actors.learner.batches import lr_at
from engine.config.learner import ScheduleConfig

PEAK, STEPS_PER_EPOCH = 5e-7, 312  # SPPO: 20 k prompts in batches of 64


@pytest.mark.parametrize(
    ("total_epochs", "expected"),
    [
        (1, 0.0),  # the scripts' 1-epoch schedule has just ended
        (6, 4.629629629629629e-07),  # the model cards': 5e-7 * (6 - 1) / (6 - 0.6)
        (18, 2.7777777777777776e-07),  # the paper's, still in its 1.8-epoch warm-up: 5e-7 * 1 / 1.8
    ],
)
def test_sppo_ends_its_first_epoch_at_three_different_rates(total_epochs, expected):
    total = total_epochs * STEPS_PER_EPOCH
    rate = lr_at(STEPS_PER_EPOCH, peak=PEAK, total_steps=total, warmup_steps=ScheduleConfig().warmup(total))
    assert rate == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_the_warm_up_rises_from_zero_to_the_peak_in_equal_steps():
    rates = [lr_at(step, peak=1.0, total_steps=20, warmup_steps=4) for step in range(5)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_zero_at_the_end_and_beyond():
    rates = [lr_at(step, peak=2.0, total_steps=10, kind="cosine") for step in (0, 5, 10, 12)]
    assert rates == pytest.approx([2.0, 1.0, 0.0, 0.0])


def test_constant_stays_at_the_peak_after_its_warm_up():
    rates = [lr_at(step, peak=2.0, total_steps=10, warmup_steps=2, kind="constant") for step in (1, 2, 9, 10)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_schedule_that_is_all_warm_up_never_divides_by_zero(kind):
    rates = [lr_at(step, peak=1.0, total_steps=4, warmup_steps=4, kind=kind) for step in range(4)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75])
