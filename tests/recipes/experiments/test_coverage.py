"""The coverage world keeps what it promises, and all methods learn from it under one budget."""

from __future__ import annotations

import numpy as np
import pytest

from engine.algorithms.preference import sigmoid
from engine.algorithms.spac import SPAC
from recipes.experiments.coverage import world as coverage
from recipes.experiments.coverage.experiment import chosen_by_heldout, methods
from recipes.experiments.coverage.methods import BOUND, Learnt, Method, Rows, heldout_likelihood, train
from recipes.experiments.coverage.world import ACTIONS, COMMON, CONTEXTS, make_world, over_estimation, true_value


@pytest.fixture(scope="module")
def world():
    return make_world(1000, "best")


@pytest.fixture(scope="module")
def rows(world):
    return Rows([world, make_world(1001, "best")])


def seen(world, contexts) -> np.ndarray:
    """How often each action of the contexts is in a training pair."""
    counts = np.zeros_like(world.values)
    for actions in (world.training.chosen, world.training.rejected):
        np.add.at(counts, (world.training.context, actions), 1)
    return counts[contexts]


def test_the_same_seed_gives_the_same_world_and_another_seed_another_world(world):
    again, other = make_world(1000, "best"), make_world(1001, "best")
    assert np.array_equal(world.values, again.values)
    assert np.array_equal(world.training.chosen, again.training.chosen)
    assert not np.array_equal(world.values, other.values)


def test_pairs_are_counted_per_context_and_hold_two_actions(world):
    for pairs, (high, low) in ((world.training, coverage.PAIRS), (world.heldout, coverage.HELDOUT_PAIRS)):
        assert np.bincount(pairs.context).tolist() == [high] * CONTEXTS + [low] * CONTEXTS
        assert (pairs.chosen != pairs.rejected).all()


def test_the_well_covered_half_shows_every_action_and_the_other_one_few(world):
    assert (seen(world, slice(0, CONTEXTS)) > 0).all()
    low = seen(world, slice(CONTEXTS, None))
    assert (low <= 1).sum(axis=1).mean() > ACTIONS / 2
    common = np.sort(low, axis=1)[:, -COMMON:].sum() / low.sum()
    assert common > 0.85


@pytest.mark.parametrize(("covered", "always"), [("best", True), ("any", False)])
def test_the_best_action_is_common_where_the_guarantee_asks_for_it(covered, always):
    world = make_world(1000, covered)
    low = slice(CONTEXTS, None)
    mass = world.behaviour[low][np.arange(CONTEXTS), world.values[low].argmax(axis=1)]
    assert (mass > 0.3).all() == always
    assert world.behaviour.sum(axis=1) == pytest.approx(np.ones(2 * CONTEXTS))


def test_labels_are_wrong_as_often_as_bradley_terry_says():
    worlds = [make_world(seed, "any") for seed in range(1000, 1020)]
    right, expected = [], []
    for world in worlds:
        pairs = world.training
        gap = world.values[pairs.context, pairs.chosen] - world.values[pairs.context, pairs.rejected]
        right.append((gap > 0).mean())
        expected.append(sigmoid(np.abs(gap)).mean())
    assert np.mean(right) == pytest.approx(np.mean(expected), abs=0.01)
    assert 0.65 < np.mean(right) < 0.85


def test_the_value_of_the_best_policy_is_the_mean_of_the_best_values(world):
    best = np.eye(ACTIONS)[world.values.argmax(axis=1)]
    assert true_value(world, best) == pytest.approx(world.values.max(axis=1))
    halves = world.by_half(true_value(world, best))
    assert halves["all"] == pytest.approx((halves["high"] + halves["low"]) / 2)


def test_true_values_plus_a_constant_per_context_are_no_over_estimation(world):
    policy = coverage.most_wins(world)
    shifted = world.values + np.arange(2 * CONTEXTS)[:, None]
    assert over_estimation(world, policy, shifted) == pytest.approx(np.zeros(2 * CONTEXTS), abs=1e-9)
    flattered = world.values + policy  # one too much on what the policy plays
    played = (world.behaviour * policy).sum(axis=1)
    assert over_estimation(world, policy, flattered) == pytest.approx(1 - played)


def test_all_methods_have_the_same_budget(rows):
    spent = {method.name: train(method, rows, lr=0.01).spent for method in methods()}
    first = spent["DPO"]
    assert {name for name, each in spent.items() if each["gradient_steps"] != first["gradient_steps"]} == set()
    assert {name for name, each in spent.items() if each["pairs_read"] != first["pairs_read"]} == set()
    draws = {name: each["samples_drawn"] for name, each in spent.items()}
    per_round = sum(coverage.PAIRS) * CONTEXTS
    assert draws == {name: 10 * per_round if name.startswith("SPAC") else 0 for name in draws}


def test_worlds_trained_together_do_not_affect_each_other(world):
    method = Method("iterated DPO", SPAC(beta=1.0, critic_weight=0.0))
    alone = train(method, Rows([world]), lr=0.03).last[0]
    together = train(method, Rows([world, make_world(1001, "best")]), lr=0.03).last[0]
    assert np.allclose(alone, together, atol=1e-9)


def test_spac_without_its_penalty_learns_what_iterated_dpo_learns(rows):
    """The map's column without pessimism and the method of that name are one thing."""
    dpo = next(method for method in methods() if method.name == "iterated DPO")
    spac = Method("SPAC", SPAC(beta=dpo.algorithm.reward_scale(), critic_weight=0.0))
    assert np.allclose(train(dpo, rows, lr=0.01).last, train(spac, rows, lr=0.01).last, atol=1e-9)


def test_the_implicit_critic_is_the_mean_of_the_rounds_rewards(rows):
    learnt = train(Method("SPAC", SPAC(beta=0.5)), rows, lr=0.03)
    whole_way = 0.5 / 10 * (np.log(learnt.last) - np.log(1 / ACTIONS))
    assert learnt.critic == pytest.approx(whole_way, abs=1e-9)


def test_the_explicit_critic_is_bounded_and_the_policy_follows_it(rows):
    learnt = train(Method("critic", SPAC(beta=1.0, surrogate="raw"), form="critic"), rows, lr=0.1)
    assert np.abs(learnt.critic).max() <= BOUND
    followed = np.exp(10 * learnt.critic)
    assert learnt.last == pytest.approx(followed / followed.sum(axis=-1, keepdims=True), abs=1e-9)


def test_selection_uses_heldout_pairs_and_ignores_how_sharp_a_policy_is(world):
    truth = np.exp(world.values - world.values.max(axis=1, keepdims=True))
    truth /= truth.sum(axis=1, keepdims=True)
    sharper = truth**2 / (truth**2).sum(axis=1, keepdims=True)
    uniform = np.full_like(truth, 1 / ACTIONS)
    assert heldout_likelihood(world, uniform) == pytest.approx(-np.log(2))
    assert heldout_likelihood(world, sharper) == pytest.approx(heldout_likelihood(world, truth), abs=1e-3)
    runs = [Learnt(policy[None, None], None, {}) for policy in (uniform, truth, uniform)]
    assert chosen_by_heldout([world], runs) == [1]
    assert chosen_by_heldout([world], [runs[0], runs[2]]) == [0]
