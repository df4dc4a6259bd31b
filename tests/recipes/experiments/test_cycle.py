"""A game without a best answer: what theory says of it, and that the real learner does the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from engine.algorithms.dpo import DPO
from engine.algorithms.sppo import SPPO
from recipes.experiments.cycle import game
from recipes.experiments.cycle.experiment import TOLERANCE, average_from, figures_of, play_apart, step_errors
from recipes.experiments.cycle.game import NASH, START, WINS
from recipes.experiments.cycle.policy import Settings, dpo_rows, sppo_rows


def test_two_answers_win_against_each_other_with_complementary_probabilities():
    assert np.allclose(WINS + WINS.T, 1.0)


def test_no_answer_gains_against_nash_and_some_answer_gains_against_any_other_policy():
    assert game.exploitability(NASH) == pytest.approx(0.0, abs=1e-12)
    assert NASH.sum() == pytest.approx(1.0)
    corners = [game.exploitability(corner) for corner in np.eye(3)]
    assert corners == pytest.approx([0.2, 0.4, 0.3])
    random = np.random.default_rng(0).dirichlet(np.ones(3), size=100)
    assert min(map(game.exploitability, random)) > 0.0


@pytest.mark.parametrize(("eta", "expected"), [(1.0, 0.00728), (0.5, 0.01203)])
def test_the_average_of_multiplicative_weights_is_nearly_nash(eta, expected):
    policies = game.trajectory(START, game.sppo_update(eta), 200)
    assert game.average_exploitability(policies[:-1])[-1] == pytest.approx(expected, abs=5e-6)


def test_the_last_iterate_circles_around_nash():
    policies = game.trajectory(START, game.sppo_update(1.0), 200)
    assert game.revolutions(policies) > 3
    late = [game.exploitability(policy) for policy in policies[150:]]
    assert max(late) > 0.2


def test_bradley_terry_fits_each_answers_expected_wins():
    """The likelihood's stationary point: every answer is expected to win as often as it does."""
    weights = np.outer(START, START)
    rewards = game.bradley_terry_rewards(weights)
    fitted = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))
    assert (weights * (WINS - fitted)).sum(axis=1) == pytest.approx([0.0] * 3, abs=1e-12)


def test_iterated_dpo_ends_with_one_answer_although_another_beats_it():
    policies = game.trajectory(START, game.dpo_update(1.0), 40)
    assert policies[-1] == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert game.exploitability(policies[-1]) == pytest.approx(0.2, abs=1e-6)


def test_iterated_dpo_with_rewards_fitted_again_on_the_policys_own_pairs_does_not_converge():
    policies = game.trajectory(START, game.refitted_update(1.0), 40)
    assert max(game.exploitability(policy) for policy in policies[30:]) > 0.2


def test_the_targets_of_a_row_can_be_reached_exactly():
    """With log Z under pi_t itself the new log-probabilities are those of a policy: they sum to 1."""
    (row,) = sppo_rows(2.0, START)
    log_ratio = 2.0 * (np.array(row["win_rate"]) - row["baseline"])
    assert (START * np.exp(log_ratio)).sum() == pytest.approx(1.0, abs=1e-12)
    assert START * np.exp(log_ratio) == pytest.approx(game.reweighted(START, game.sppo_update(2.0)(START)))


def test_labelled_pairs_represent_the_win_probabilities_exactly():
    wins = np.zeros((3, 3))
    for row in dpo_rows(START):
        wins[tuple(row["completion_index"])] += 1
    assert wins / (wins + wins.T + 10 * np.eye(3)) + 0.5 * np.eye(3) == pytest.approx(WINS)


def test_the_claims_hold_for_the_closed_form_and_fail_for_a_deviation_from_it():
    sppo = game.trajectory(START, game.sppo_update(1.0), 200)
    dpo = game.trajectory(START, game.dpo_update(1.0), 40)
    assert all(figures_of(sppo, dpo)["claims"].values())
    wrong = game.trajectory(START, game.sppo_update(1.01), 200)
    claims = figures_of(wrong, dpo)["claims"]
    assert [name for name, holds in claims.items() if not holds] == ["every SPPO iterate is the closed form's"]


def test_the_average_counts_as_under_the_goal_only_once_it_stays_there():
    assert average_from(np.array([0.1, 0.01, 0.1, 0.01, 0.01])) == 4
    assert average_from(np.array([0.01, 0.01])) == 1
    assert average_from(np.array([0.01, 0.1])) is None


@pytest.mark.real
def test_the_real_learner_makes_the_closed_forms_steps(tmp_path):
    algorithm = SPPO(eta=1.0, baseline="logpartition", train_on="all")
    policies = play_apart(tmp_path, algorithm, partial(sppo_rows, 1.0), Settings(iterations=5))
    assert policies[0] == pytest.approx(START, abs=1e-6)
    assert policies.sum(axis=1) == pytest.approx([1.0] * 6, abs=1e-5)
    assert step_errors(policies, game.sppo_update(1.0)).max() < TOLERANCE
    assert policies[-1] == pytest.approx(game.trajectory(START, game.sppo_update(1.0), 5)[-1], abs=1e-4)


@pytest.mark.real
def test_the_real_learner_follows_dpos_closed_form_too(tmp_path):
    policies = play_apart(tmp_path, DPO(data="dataset", beta=1.0), dpo_rows, Settings(iterations=3))
    assert step_errors(policies, game.dpo_update(1.0)).max() < TOLERANCE
    assert (np.diff(policies[:, 0]) > 0).all()
