"""The figures of a validation: what they are for pairs, for labelled answers, and with several pairs per prompt."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from engine.evaluation.preferences import Validation
from engine.evaluation.statistics import clustered_share
from engine.schema import OTHER_PROMPT, VALIDATION

BETA = 0.5


def row(prompt: str, chosen: float, rejected: float, loss: float = 1.0, **changes: object) -> dict:
    """A pair whose log-ratios are `chosen` and `rejected`; the reference gives both answers -10 nats."""
    values = {
        "prompt_id": prompt,
        "completion_index": [-1, -2],
        "win_rate": [1.0, 0.0],
        "ref_logps": [-10.0, -10.0],
        "logps": [-10.0 + chosen, -10.0 + rejected],
        "rewards": [BETA * chosen, BETA * rejected],
        "loss": loss,
    }
    return values | changes


def validation(*rows: dict) -> Validation:
    return Validation(pa.Table.from_pylist(list(rows), VALIDATION))


def test_accuracy_is_the_share_of_pairs_with_the_higher_reward_on_the_chosen_side_and_a_tie_is_half() -> None:
    figures = validation(row("a-0", 2, 1), row("b-0", 1, 1), row("c-0", 0, 3), row("d-0", 4, 0)).metrics()
    assert figures["eval/rewards/accuracies"] == (1 + 0.5 + 0 + 1) / 4


def test_all_means_are_over_rows() -> None:
    figures = validation(row("a-0", 2.0, -1.0, loss=0.25), row("b-0", 0.0, -3.0, loss=0.75)).metrics()
    assert figures == {
        "eval/loss": 0.5,
        "eval/rewards/accuracies": 1.0,
        "eval/rewards/chosen": BETA * 1.0,
        "eval/rewards/rejected": BETA * -2.0,
        "eval/rewards/margins": BETA * 3.0,
        "eval/logps/chosen": -9.0,
        "eval/logps/rejected": -12.0,
        "eval/log_ratio/chosen": 1.0,
        "eval/log_ratio/rejected": -2.0,
    }


def test_the_chosen_answer_is_the_one_with_the_higher_label_wherever_it_stands() -> None:
    assert validation(row("a-0", 1, 2, win_rate=[0.25, 0.75])).metrics()["eval/rewards/margins"] == BETA


def test_labelled_answers_have_rewards_of_both_kinds_and_no_accuracy() -> None:
    good = {"completion_index": [-1, OTHER_PROMPT], "win_rate": [1.0, 0.5]}
    bad = {"completion_index": [-1, OTHER_PROMPT], "win_rate": [0.0, 0.5]}
    mixed = validation(row("a-0", 2, 9, **good), row("b-0", -1, 9, **bad), row("c-0", 4, 9, **good))
    assert mixed.metrics()["eval/rewards/chosen"] == BETA * 3
    assert mixed.metrics()["eval/rewards/margins"] == BETA * 4
    assert mixed.accuracy is None
    assert not any("accuracies" in name for name in mixed.metrics())
    one_class = validation(row("a-0", 2, 9, **good)).metrics()
    assert "eval/rewards/margins" not in one_class, "there is no undesirable answer to compare with"
    assert one_class["eval/loss"] == 1.0


def test_the_answer_to_another_prompt_with_which_kto_estimates_the_divergence_is_not_compared() -> None:
    pair = {"completion_index": [-1, -2, OTHER_PROMPT], "win_rate": [1.0, 0.0, 0.5]}
    values = {"ref_logps": [-1.0] * 3, "logps": [-1.0, -2.0, 7.0], "rewards": [0.0, -0.5, 9.0]}
    assert validation(row("a-0", 0, 0, **pair, **values)).metrics()["eval/rewards/margins"] == 0.5


def test_the_interval_is_over_prompts_not_over_pairs() -> None:
    """Ten pairs of one prompt are one observation."""
    wins = [row(f"{prompt}-{i}", 1, 0) for prompt in ("a", "b", "c") for i in range(10)]
    losses = [row(f"{prompt}-{i}", 0, 1) for prompt in ("d", "e", "f") for i in range(10)]
    dependent, independent = (
        validation(*wins, *losses),
        validation(*(r | {"prompt_id": f"p{i}-0"} for i, r in enumerate([*wins, *losses]))),
    )
    assert dependent.accuracy and independent.accuracy
    assert dependent.accuracy.mean == independent.accuracy.mean == 0.5
    width = dependent.accuracy.high - dependent.accuracy.low
    assert width > 2 * (independent.accuracy.high - independent.accuracy.low)


def test_without_groups_the_interval_is_wilsons() -> None:
    """Brown, Cai and DasGupta 2001, equation 4, with z = 1.96: 40 of 100."""
    n, z = 100, 1.960
    p = 0.4
    half = z / (n + z**2) * math.sqrt(n * p * (1 - p) + z**2 / 4)
    centre = (n * p + z**2 / 2) / (n + z**2)
    interval = clustered_share([1.0] * 40 + [0.0] * 60, [str(i) for i in range(n)])
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-3)


def test_three_pairs_that_all_agree_are_no_certainty() -> None:
    interval = clustered_share([1.0] * 3, list("abc"))
    assert interval.mean == interval.high == 1.0
    assert interval.low < 0.5
    assert clustered_share([1.0] * 400, list(map(str, range(400)))).low == pytest.approx(0.99, abs=0.001)
    assert clustered_share([1.0, 0.0], ["a", "a"]).low == 0.0, "one prompt alone says nothing about others"


@pytest.mark.parametrize(("share", "num_groups", "largest"), [(0.5, 60, 5), (0.9, 60, 5), (0.95, 40, 1), (0.7, 12, 2)])
def test_the_interval_covers_the_truth_as_often_as_it_says(share: float, num_groups: int, largest: int) -> None:
    """Groups of 1 to `largest` values that all agree with each other; 95 % intervals of 600 samples."""
    draw, covered = np.random.default_rng(5), 0
    for _ in range(600):
        sizes = draw.integers(1, largest + 1, num_groups)
        values = (draw.random(num_groups) < share).astype(float)
        groups = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
        interval = clustered_share(np.repeat(values, sizes), groups)
        covered += interval.low <= share <= interval.high
    assert 0.93 <= covered / 600 <= 0.99
