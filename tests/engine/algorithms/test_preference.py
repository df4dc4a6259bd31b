"""From pair logits to win rates, against numbers that were computed without Kumite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.algorithms.preference import (
    bradley_terry_win_probabilities,
    log_partition,
    pairwise_win_probabilities,
    sigmoid,
    win_rates,
)
from tests.oracles import ORACLES

CASES = {row["case"]: row for row in ORACLES["pairrm_to_sppo"]}
ESTIMATORS = [pairwise_win_probabilities, bradley_terry_win_probabilities]

matrices = st.integers(2, 7).flatmap(lambda k: arrays(np.float64, (k, k), elements=st.floats(-50, 50)))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


def test_pairwise_win_rates_are_the_means_of_symmetrised_probabilities(case):
    rates = win_rates(pairwise_win_probabilities(np.array(case["pairrm_logits_M_ij"])))
    assert rates.tolist() == pytest.approx(case["symmetrised_pairwise_win_rates"], rel=1e-12)
    assert (rates.argmax(), rates.argmin()) == (case["paper_winner"], case["paper_loser"])


def test_the_scripts_estimator_gives_what_the_released_scripts_give(case):
    probabilities = bradley_terry_win_probabilities(np.array(case["pairrm_logits_M_ij"]))
    rates, (best, worst) = win_rates(probabilities), (case["code_winner"], case["code_loser"])
    assert (rates.argmax(), rates.argmin()) == (best, worst)
    assert probabilities[best, worst] == pytest.approx(case["code_chosen_probs"], rel=1e-12)
    assert rates[best] == pytest.approx(case["code_chosen_probs_win"], rel=1e-12)
    assert rates[worst] == pytest.approx(case["code_chosen_probs_lose"], rel=1e-12)


def test_the_scripts_probabilities_are_those_of_their_scores(case):
    scores = np.array(case["scores_code"])
    probabilities = bradley_terry_win_probabilities(np.array(case["pairrm_logits_M_ij"]))
    assert np.log(probabilities / (1 - probabilities)) == pytest.approx(scores[:, None] - scores[None, :], abs=1e-12)


def test_a_circle_of_preferences_survives_pairwise_and_is_lost_in_scores():
    """0 beats 1, 1 beats 2, 2 beats 0: only the pairwise form still says so."""
    logits = np.array(CASES["K3_intransitive"]["pairrm_logits_M_ij"])
    pairwise, scored = pairwise_win_probabilities(logits), bradley_terry_win_probabilities(logits)
    assert pairwise[0, 1] > 0.5 and pairwise[1, 2] > 0.5 and pairwise[2, 0] > 0.5
    assert scored[0, 1] > 0.5 and scored[1, 2] > 0.5 and scored[2, 0] < 0.5


def test_of_two_answers_the_scripts_add_both_orders_and_the_paper_averages_them():
    """By hand: (1.5 + 0.5) / 2 = 1 pairwise; scores (1.5 + 0.5) / 2 = 1 and -1, so 2 for the scripts."""
    logits = np.array([[0.0, 1.5], [-0.5, 0.0]])
    assert pairwise_win_probabilities(logits)[0, 1] == pytest.approx(1 / (1 + math.exp(-1.0)), rel=1e-12)
    assert bradley_terry_win_probabilities(logits)[0, 1] == pytest.approx(1 / (1 + math.exp(-2.0)), rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(logits=matrices)
def test_what_one_answer_wins_the_other_loses(estimator, logits):
    probabilities = estimator(logits)
    assert probabilities + probabilities.T == pytest.approx(np.ones_like(logits), abs=1e-12)
    assert np.diagonal(probabilities).tolist() == [0.5] * len(logits)
    rates = win_rates(probabilities)
    assert rates.mean() == pytest.approx(0.5, abs=1e-12)
    assert ((rates >= 0) & (rates <= 1)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(logits=matrices, seed=st.integers(0, 99))
def test_the_order_of_the_answers_does_not_matter(estimator, logits, seed):
    order = np.random.default_rng(seed).permutation(len(logits))
    rates = win_rates(estimator(logits))
    assert win_rates(estimator(logits[np.ix_(order, order)])) == pytest.approx(rates[order], abs=1e-12)


def test_enormous_logits_become_certainties_and_never_warn():
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e308, -800.0, 0.0, 800.0, 1e308])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
        assert np.isnan(sigmoid(np.array([math.nan]))).all()


@pytest.mark.parametrize("row", ORACLES["log_partition"][1:], ids=lambda row: f"eta={row['beta']:g}")
def test_the_log_partition_is_that_of_the_independent_computation(row):
    assert log_partition(np.array(row["x"]), row["beta"]) / row["beta"] == pytest.approx(row["value"], rel=1e-12)


def test_the_log_partition_of_two_answers_by_hand():
    """Rates 0.8 and 0.2 at eta = 2: log((e^1.6 + e^0.4) / 2) = log((4.953032 + 1.491825) / 2) = 1.170135."""
    assert log_partition(np.array([0.8, 0.2]), 2.0) == pytest.approx(1.170135, abs=1e-6)
    assert log_partition(np.array([0.8, 0.2]), 2.0) == pytest.approx(math.log((math.exp(1.6) + math.exp(0.4)) / 2))


def test_the_log_partition_lies_between_the_mean_and_the_best_answer():
    """Jensen's inequality; the mean at small eta, the maximum at large eta, where exp would overflow."""
    rates = np.array([0.1, 0.5, 0.9])
    assert log_partition(rates, 1e-6) / 1e-6 == pytest.approx(0.5, abs=1e-5)
    assert log_partition(rates, 1e6) / 1e6 == pytest.approx(0.9, abs=1e-5)
    assert 0.5 < log_partition(rates, 10.0) / 10.0 < 0.9
