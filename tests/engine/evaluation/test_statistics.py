"""Evaluation: every expected number is derived by hand in the test's docstring, or published by others."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest

from engine.evaluation import statistics
from engine.evaluation.statistics import Agreement


def logits_of(utilities: list[float]) -> np.ndarray:
    """[K, K] pair logits of a scorer that judges by utilities alone (Bradley-Terry): u_i - u_j."""
    return np.subtract.outer(np.array(utilities, float), np.array(utilities, float))


def test_win_rate_of_one_prompt_counts_wins_ties_and_losses_over_all_answer_pairs():
    """A = (3, 1), B = (1, 0): 3>1, 3>0, 1=1, 1>0 give 1 + 1 + 1/2 + 1 = 3.5 of 4 pairs."""
    assert statistics.win_rate_from_margins([[2, 3], [0, 1]]) == 3.5 / 4


def test_win_rates_of_two_policies_on_the_same_answers_add_up_to_one():
    draw = np.random.default_rng(1)
    margins = np.subtract.outer(draw.integers(0, 3, size=7), draw.integers(0, 3, size=4))
    assert statistics.win_rate_from_margins(margins) + statistics.win_rate_from_margins(-margins.T) == 1.0


def test_pair_logits_are_symmetrised_so_that_a_bias_for_the_first_answer_cancels():
    """A scorer that adds 10 to whatever is shown first, over true differences 1 and -2.

    M[0,1] = 10 + 1, M[1,0] = 10 - 1: margin (11 - 9) / 2 = 1, a win. M[0,2] = 10 - 2, M[2,0] = 10 + 2: -2, a loss.
    """
    logits = [[0, 11, 8], [9, 0, 0], [12, 0, 0]]
    margins = statistics.margins_from_pair_logits(logits, num_a=1)
    assert margins.tolist() == [[1.0, -2.0]]
    assert statistics.win_rate_from_margins(margins) == 0.5


def test_a_policy_against_itself_is_at_one_half_with_an_interval_of_no_width():
    """With one answer each, equal to the other, every prompt is a tie: each resample's mean is 1/2."""
    interval = statistics.bootstrap([statistics.win_rate_from_margins([[0.0]]) for _ in range(20)])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_bootstrap_interval_of_a_coin_has_the_width_of_the_binomial():
    """100 wins and 100 losses: a resample's mean is Binomial(200, 1/2) / 200.

    Its standard deviation is sqrt(0.25 / 200) = 0.03536, so 95 % lie within 0.5 -+ 1.96 * 0.03536 = 0.4307 and 0.5693.
    2,000 resamples place a 2.5 % quantile within about 0.0023 (one standard error); 0.01 is four of them.
    """
    interval = statistics.bootstrap([1.0] * 100 + [0.0] * 100)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.4307, abs=0.01)
    assert interval.high == pytest.approx(0.5693, abs=0.01)


def test_bootstrap_is_the_same_for_the_same_seed_and_differs_for_another():
    values = np.linspace(0, 1, 37) ** 2
    first = statistics.bootstrap(values, seed=3)
    assert first == statistics.bootstrap(values, seed=3)
    assert first != statistics.bootstrap(values, seed=4)


def test_agreement_counts_only_pairs_on_which_the_oracle_differs_and_half_for_a_scorers_tie():
    """Oracle utilities (2, 1, 1): pairs (0,1) and (0,2) differ, (1,2) ties and does not count.

    Scorer utilities (5, 3, 5): it agrees on (0,1), ties on (0,2): 1 + 1/2 = 1.5 of 2 pairs.
    """
    result = statistics.agreement(logits_of([5, 3, 5]), logits_of([2, 1, 1]))
    assert result == Agreement(1.5, 2)
    assert result.rate == 0.75


def test_an_inverted_scorer_agrees_on_nothing_and_a_position_bias_changes_nothing():
    oracle = logits_of([4, 3, 2, 1])
    first_is_better = np.full((4, 4), 7.0)
    assert statistics.agreement(-oracle, oracle).rate == 0.0
    assert statistics.agreement(oracle + first_is_better, oracle) == Agreement(6.0, 6)


def test_agreements_of_several_prompts_add_up_by_pairs():
    """1 of 1 pair and 0 of 3 pairs make 1 of 4, not the mean of the rates 1 and 0."""
    assert (Agreement(1, 1) + Agreement(0, 3)).rate == 0.25


def test_agreement_without_any_pair_that_counts_is_not_a_number_rather_than_a_success():
    assert math.isnan(statistics.agreement(np.zeros((3, 3)), np.zeros((3, 3))).rate)


def test_spread_over_three_seeds_is_the_textbook_t_interval():
    """0.6, 0.7, 0.8: mean 0.7, s = 0.1, n = 3; half-width t(0.975, 2) * s / sqrt(3) = 4.303 * 0.057735 = 0.248434."""
    interval = statistics.spread([0.6, 0.7, 0.8])
    assert interval.mean == pytest.approx(0.7)
    assert interval.low == pytest.approx(0.7 - 0.248434, abs=1e-6)
    assert interval.high == pytest.approx(0.7 + 0.248434, abs=1e-6)


def test_spread_of_many_runs_uses_the_normal_quantile():
    """40 runs, half 0 and half 1: s^2 = 40 * 0.25 / 39, half-width 1.960 * sqrt(0.25 / 39) = 0.156925."""
    interval = statistics.spread([0.0, 1.0] * 20)
    assert interval.high - interval.mean == pytest.approx(0.156925, abs=1e-6)


def test_one_run_has_no_spread():
    with pytest.raises(ValueError, match="at least 2 runs"):
        statistics.spread([0.8])


def test_pairs_without_a_verdict_do_not_count():
    assert statistics.win_rate_from_margins([[1.0, math.nan], [-1.0, 2.0]]) == pytest.approx(2 / 3)
    assert math.isnan(statistics.win_rate_from_margins([[math.nan]]))


def test_one_order_decides_alone_where_the_other_has_no_verdict():
    logits = np.array([[0.0, 3.0, math.nan], [math.nan, 0.0, 1.0], [math.nan, 5.0, 0.0]])
    np.testing.assert_array_equal(statistics.margins_from_pair_logits(logits, 1), [[3.0, math.nan]])
    truth = np.array([[0.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]])
    result = statistics.agreement(logits, truth)
    assert (result.agreed, result.num_pairs) == (1, 2), "0 beats 1 as in truth, 2 beats 1 against it, 0 and 2 unknown"
    assert statistics.agreement(truth, logits) == result


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: statistics.win_rate_from_margins([]), "margins: there are none"),
        (lambda: statistics.bootstrap([0.5, math.nan]), "1 of 2 are NaN"),
        (lambda: statistics.agreement(np.zeros((2, 2)), np.zeros((3, 3))), "2 answers and the oracle 3"),
        (lambda: statistics.agreement(np.zeros((2, 3)), np.zeros((2, 2))), r"K x K matrix, got the shape \(2, 3\)"),
    ],
)
def test_unusable_input_is_refused_with_what_is_wrong(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()


def test_mean_preference_of_real_annotations_equals_the_published_win_rates():
    """AlpacaEval publishes win_rate = 100 * mean preference and its standard error, both in percent.

    A 95 % interval is then 2 * 1.96 standard errors wide; 500 resamples place its ends to about a tenth of that.
    """
    folder = os.environ.get("KUMITE_TEST_DATA")
    file = Path(folder or ".") / "alpaca_eval" / "annotations.parquet"
    if not folder or not file.exists():
        pytest.skip("KUMITE_TEST_DATA does not name a folder with alpaca_eval/annotations.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["model", "preference"])
    models = np.array(table["model"].cast("string").to_pylist())
    preferences = table["preference"].to_numpy()
    with file.with_name("leaderboard.csv").open(encoding="utf-8") as lines:
        published = {
            row["model"]: (float(row["win_rate"]), float(row["standard_error"])) for row in csv.DictReader(lines)
        }
    assert len(published) > 30
    for model, (win_rate, standard_error) in published.items():
        interval = statistics.bootstrap(preferences[models == model], resamples=500)
        assert 100 * interval.mean == pytest.approx(win_rate, abs=1e-6), model
        width = 100 * (interval.high - interval.low)
        assert width == pytest.approx(2 * 1.96 * standard_error, rel=0.2, abs=1e-9), model
