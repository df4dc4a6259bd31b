"""The bias of a judge, counted by hand, and the warnings about a judge whose verdicts say little."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from engine.evaluation.statistics import JudgeBias, judge_bias, null_model_win_rate
from engine.report.figures import judge_warnings

NAN = math.nan


def asked_in(matrix: np.ndarray, pairs: list[tuple[int, int]]) -> list[tuple[int, int, float]]:
    return [(i, j, float(matrix[i, j])) for i, j in pairs]


def every_order(k: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(k) for j in range(k) if i != j]


def rates(bias: JudgeBias) -> dict[str, float]:
    """The rates that there are, by name."""
    names = [name for name, kind in vars(JudgeBias).items() if isinstance(kind, property)]
    return {name: rate for name in names if (rate := getattr(bias, name)) is not None}


def test_orders_agree_where_both_prefer_the_same_answer_or_neither():
    matrix = np.array([[0.0, 2.0, 1.0, 0.0], [-1.0, 0.0, 1.0, 0.0], [1.0, -3.0, 0.0, NAN], [0.0, 1.0, 2.0, 0.0]])
    bias = judge_bias(matrix, asked_in(matrix, every_order(4)), [1] * 4)
    # (0, 1) and (1, 2) agree, (0, 2) names the first twice, (0, 3) ties twice, (1, 3) ties once; (2, 3) lacks an order.
    assert (bias.num_both_orders, bias.num_consistent) == (5, 3)
    assert (bias.num_asked, bias.num_missing, bias.num_compared, bias.num_ties) == (12, 1, 11, 3)
    assert bias.verdicts == Counter(first=6, second=2, tie=3)
    assert bias.consistency == pytest.approx(3 / 5)
    assert bias.missing_rate == pytest.approx(1 / 12)
    assert bias.commonest_verdict == pytest.approx(6 / 11)


def test_position_bias_is_zero_for_a_fair_judge_and_half_for_one_that_only_sees_the_first():
    fair = np.array([[0.0, 1.5], [-1.5, 0.0]])
    assert judge_bias(fair, asked_in(fair, every_order(2)), [1, 1]).position_bias == pytest.approx(0.0)
    first = np.array([[0.0, 50.0], [50.0, 0.0]])
    assert judge_bias(first, asked_in(first, every_order(2)), [1, 1]).position_bias == pytest.approx(0.5)
    p = 1 / (1 + math.exp(-1.0))
    one = np.array([[0.0, 1.0], [NAN, 0.0]])
    assert judge_bias(one, asked_in(one, [(0, 1)]), [1, 1]).position_bias == pytest.approx(p - 0.5)


def test_the_order_that_was_never_asked_is_not_missing():
    matrix = np.array([[0.0, 1.0], [NAN, 0.0]])
    bias = judge_bias(matrix, asked_in(matrix, [(0, 1)]), [2, 1])
    assert bias.missing_rate == 0
    assert bias.consistency is None
    assert bias.longer_preferred == 1


def test_longer_answers_are_counted_among_decided_pairs_of_unequal_length():
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    matrix = scores[:, None] - scores[None, :]
    questions = [(i, -1, score) for i, score in enumerate(scores)]
    bias = judge_bias(matrix, questions, [10, 10, 20, 5])
    # (0, 2) and (1, 3): shorter wins; (0, 3) and (1, 2): longer wins; (0, 1) equal length, (2, 3) equal score.
    assert (bias.num_unequal_length, bias.num_longer_preferred) == (4, 2)
    assert (bias.num_compared, bias.num_ties) == (6, 1)
    assert bias.position_bias is None
    assert bias.verdicts == Counter({"2": 2, "3": 1, "1": 1})


def test_an_abstention_is_a_tie_whatever_number_was_read():
    matrix = np.zeros((2, 2))
    bias = judge_bias(matrix, [(0, 1, 0.1), (1, 0, -0.1)], [1, 2])
    assert bias.tie_rate == 1
    assert bias.num_unequal_length == 0


def test_judgements_that_cannot_be_read_are_missing_one_by_one():
    scores = np.array([3.0, NAN])
    matrix = scores[:, None] - scores[None, :]
    np.fill_diagonal(matrix, 0)
    bias = judge_bias(matrix, [(0, -1, 3.0), (0, -1, NAN), (1, -1, NAN), (1, -1, NAN)], [1, 2])
    assert (bias.num_asked, bias.num_missing, bias.num_compared) == (4, 3, 0)
    assert rates(bias) == {"missing_rate": 0.75, "commonest_verdict": 1.0}


def test_nothing_asked_gives_no_rates_and_prompts_add_up():
    assert rates(JudgeBias()) == {}
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]])
    one = judge_bias(matrix, asked_in(matrix, every_order(2)), [1, 2])
    two = one + one
    assert two.num_asked == 4
    assert two.verdicts == Counter(first=2, second=2)
    assert rates(two) == pytest.approx(rates(one))


def test_the_null_model_baseline_wins_ties_and_loses():
    assert null_model_win_rate([0.9, 0.5, 0.1, NAN]) == pytest.approx(0.5)
    assert null_model_win_rate([0.9, 0.6]) == 1
    assert null_model_win_rate([NAN]) is None
    assert null_model_win_rate([]) is None


def figures_of(matrix: np.ndarray, k: int, prompts: int) -> dict[str, float]:
    total = sum((judge_bias(matrix, asked_in(matrix, every_order(k)), [1] * k) for _ in range(prompts)), JudgeBias())
    return {"judge/num_asked": float(total.num_asked)} | {f"judge/{n}": v for n, v in rates(total).items()}


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[0.0, 3.0], [3.0, 0.0]], "the answer shown first"),
        ([[0.0, -3.0], [-3.0, 0.0]], "the answer shown second"),
        ([[0.0, 0.0], [0.0, 0.0]], "a tie"),
    ],
)
def test_a_judge_that_always_says_the_same_is_named(matrix, words):
    (warning,) = judge_warnings(figures_of(np.array(matrix), 2, prompts=4))
    assert f"always says the same ({words}, 8 times)" in warning
    assert judge_warnings(figures_of(np.array(matrix), 2, prompts=3)) == [], "six times may be a coincidence"


def test_one_score_for_every_answer_is_named():
    same = judge_bias(np.zeros((4, 4)), [(i, -1, 4.0) for i in range(4)] * 3, [1] * 4)
    (warning,) = judge_warnings({"judge/num_asked": 12.0} | {f"judge/{n}": v for n, v in rates(same).items()})
    assert "always says the same (one score for all, 12 times)" in warning


def test_a_judge_that_decides_is_left_alone_and_a_null_model_that_wins_is_not():
    good = figures_of(np.array([[0.0, 3.0], [-3.0, 0.0]]), 2, prompts=9)
    assert judge_warnings(good | {"judge/null_model_win_rate": 0.5}) == []
    assert "prefers an answer that says nothing" in judge_warnings(good | {"judge/null_model_win_rate": 0.75})[0]
    assert "60% of the judge's replies could not be read" in judge_warnings(good | {"judge/missing_rate": 0.6})[0]
    assert "no verdict on 60% of the held-out prompts" in judge_warnings({"evaluate/missing_rate": 0.6})[0]
    assert judge_warnings({"select/rows": 3.0, "evaluate/missing_rate": 0.0}) == []
