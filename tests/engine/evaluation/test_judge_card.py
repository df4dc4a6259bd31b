"""The card of a judge: verdicts, position, length and calibration on pairs whose truth is known."""

from __future__ import annotations

import math

import pytest

from engine.evaluation.judge_card import (
    Pair,
    accuracy,
    brier,
    calibration,
    confusion,
    expected_calibration_error,
    length_bias,
    log_loss,
    verdict_counts,
)

NONE = math.nan


def pair(
    chosen_first: float | None, rejected_first: float | None, lengths: tuple[int, int] = (5, 5), item: str = ""
) -> Pair:
    pair.number = getattr(pair, "number", 0) + 1  # type: ignore[attr-defined]
    return Pair(item or str(pair.number), "all", chosen_first, rejected_first, *lengths)  # type: ignore[attr-defined]


def sure(probability: float, **keys) -> Pair:
    logit = math.log(probability / (1 - probability))
    return pair(logit, -logit, **keys)


def test_a_verdict_is_the_mean_of_both_orders_or_the_one_that_there_is() -> None:
    assert pair(2.0, 1.0).margin == 0.5
    assert pair(2.0, NONE).margin == 2.0
    assert pair(None, 3.0).margin == -3.0
    assert [p.verdict for p in (pair(2.0, 1.0), pair(1.0, 2.0), pair(1.0, 1.0), pair(NONE, None))] == [
        "chosen", "rejected", "tie", "none",
    ]  # fmt: skip
    assert pair(math.log(3.0), -math.log(3.0)).probability == pytest.approx(0.75)


def test_rates_count_ties_half_and_leave_out_what_has_no_verdict() -> None:
    pairs = [sure(0.9), sure(0.6), sure(0.2), sure(0.5), pair(NONE, NONE)]
    assert verdict_counts(pairs) == {"chosen": 2, "rejected": 1, "tie": 1, "none": 1}
    found = accuracy(pairs), log_loss(pairs), brier(pairs)
    assert [interval.mean for interval in found if interval] == pytest.approx(
        [2.5 / 4, -(math.log(0.9) + math.log(0.6) + math.log(0.2) + math.log(0.5)) / 4, (0.01 + 0.16 + 0.64 + 0.25) / 4]
    )
    assert accuracy([pair(NONE, NONE)]) is log_loss([]) is None


def test_a_certain_error_costs_a_finite_log_loss() -> None:
    loss = log_loss([pair(-1000.0, 1000.0)])
    assert loss is not None and loss.mean == pytest.approx(-math.log(1e-15))


def test_the_interval_resamples_items_and_not_their_pairs() -> None:
    alone = accuracy([sure(0.9) for _ in range(20)] + [sure(0.1) for _ in range(20)])
    together = accuracy([sure(0.9, item="one") for _ in range(20)] + [sure(0.1, item="two") for _ in range(20)])
    assert alone is not None and together is not None
    assert alone.mean == together.mean == 0.5
    assert together.low < 0.01 and together.high > 0.99, "two items cannot say more"
    assert alone.high - alone.low < 0.4


def test_the_confusion_matrix_shows_a_position_bias() -> None:
    first = [pair(1.0, 1.0), pair(2.0, 1.0), pair(1.0, None), pair(0.0, NONE)]
    assert confusion(first) == {
        "chosen": {"chosen": 3, "rejected": 0, "tie": 1, "none": 0},
        "rejected": {"chosen": 0, "rejected": 2, "tie": 0, "none": 1},
    }


def test_length_bias_compares_accuracy_where_the_longer_answer_is_right_and_where_it_is_wrong() -> None:
    lover = [pair(1.0, -1.0, (9, 5)), pair(1.0, -1.0, (9, 5)), pair(-1.0, 1.0, (5, 9)), pair(1.0, -1.0, (5, 5))]
    bias = length_bias(lover)
    assert (bias.num_longer, bias.num_shorter, bias.difference) == (2, 1, 1.0)
    fair = length_bias([sure(0.9, lengths=(9, 5)), sure(0.9, lengths=(5, 9))])
    assert fair.difference == 0.0
    assert math.isnan(length_bias(lover[:2]).difference)


def test_the_calibration_curve_bins_confidence() -> None:
    pairs = [sure(0.72), sure(0.73), sure(0.28), sure(0.74), sure(0.97), sure(0.5), pair(NONE, NONE)]
    bins = calibration(pairs)
    assert [b.num for b in bins] == [1, 0, 0, 0, 4, 0, 0, 0, 0, 1]
    assert (bins[4].low, bins[4].high) == (pytest.approx(0.7), pytest.approx(0.75))
    assert bins[4].accuracy == pytest.approx(0.75)
    assert bins[4].confidence == pytest.approx((0.72 + 0.73 + 0.72 + 0.74) / 4)
    assert math.isnan(bins[1].accuracy)
    expected = (4 * abs(0.75 - 0.7275) + abs(1.0 - 0.97) + abs(0.5 - 0.5)) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)
    assert math.isnan(expected_calibration_error(calibration([])))


def test_complete_certainty_is_in_the_last_bin() -> None:
    assert calibration([pair(900.0, -900.0)])[-1].num == 1
