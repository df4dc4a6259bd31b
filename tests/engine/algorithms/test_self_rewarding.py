"""Self-rewarding: iterative DPO as published, the remedies of later papers, and the ranking functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from engine.algorithms.dpo import DPO
from engine.algorithms.self_rewarding import (
    SelfRewarding,
    consistency,
    kendall_tau,
    longest,
    quality_tiers,
    shortest,
)
from engine.errors import DataError
from engine.schema import PREVIOUS_SCORES
from tests.oracles import ORACLES
from tests.tables import logits_of, only_row, rated, scored

CREAM = ORACLES["cream"]
SCORES = [4.5, 4.2, 3.9, 2.0, 2.6, 4.4, 1.8]
LENGTHS = [2400, 1500, 1300, 900, 1700, 2100, 1200]


def of_lengths(*lengths: int) -> dict[str, list[Any]]:
    """Token ids of answers with these lengths."""
    return {"completion_token_ids": [[[i] * length for i, length in enumerate(lengths)]]}


def test_by_default_it_is_iterative_dpo_as_published():
    """Best against worst by the mean score, equal scores dropped, beta 0.1, each round from the one before."""
    algorithm = SelfRewarding()
    assert (algorithm.losses, algorithm.reward_scale(), algorithm.nll_weight) == ({"sigmoid": 1.0}, 0.1, 0.0)
    assert (algorithm.reference, algorithm.ties, algorithm.num_dataset_completions) == ("previous", "drop", 0)
    table = rated([3.0, 4.5, 1.25, 4.5], **of_lengths(9, 8, 7, 6))
    assert only_row(algorithm.select(table))["completion_index"] == [1, 2]
    assert algorithm.select(table).rows.equals(DPO().select(table).rows)
    assert algorithm.select(rated([2.0, 2.0])).counts["ties"] == 1


@pytest.mark.parametrize("rejected_from", ["policy", "start"])
@pytest.mark.parametrize("consistency", ["none", "per_prompt"])
def test_the_first_iteration_has_no_policy_before_it(rejected_from, consistency):
    algorithm = SelfRewarding(rejected_from=rejected_from, consistency=consistency, soft_labels=True)
    assert algorithm.stages(0) == ("completions", "scores")
    from_start, consistent_only = rejected_from == "start", consistency == "per_prompt"
    later = ("completions", *["start_completions"] * from_start, "scores", *["previous_scores"] * consistent_only)
    assert algorithm.stages(1) == algorithm.stages(2) == later


# ---- lengths ----


@pytest.mark.parametrize("row", ORACLES["length_control"], ids=lambda row: f"rho={row['rho']}")
def test_length_control_sets_the_shortest_good_answer_against_the_longest_bad_one(row):
    table = rated(row["scores"], **of_lengths(*row["lengths"]))
    selected = only_row(SelfRewarding(length_tier=row["rho"]).select(table))
    assert selected["completion_index"] == [row["chosen"], row["rejected"]]


def test_an_answer_that_is_too_long_is_never_chosen_but_may_be_rejected():
    table = rated([5.0, 4.0, 1.0], **of_lengths(50, 40, 90))
    assert only_row(SelfRewarding(max_chosen_tokens=45).select(table))["completion_index"] == [1, 2]


def test_without_an_answer_that_is_short_enough_the_prompt_makes_no_pair():
    selection = SelfRewarding(max_chosen_tokens=10).select(rated([5.0, 4.0], **of_lengths(50, 40)))
    assert (selection.rows.num_rows, selection.counts["no_pair"]) == (0, 1)


def test_a_short_answer_that_is_worse_than_all_others_is_not_chosen_over_them():
    selection = SelfRewarding(max_chosen_tokens=10).select(rated([5.0, 4.0, 1.0], **of_lengths(50, 40, 5)))
    assert (selection.rows.num_rows, selection.counts["no_pair"]) == (0, 1)


def test_tiers_without_a_short_answer_among_the_best_make_no_pair():
    """Meta-Rewarding drops such prompts rather than choose from below the tier."""
    algorithm = SelfRewarding(length_tier=0.2, max_chosen_tokens=10)
    selection = algorithm.select(rated([5.0, 3.0, 1.0], **of_lengths(50, 5, 5)))
    assert (selection.rows.num_rows, selection.counts["no_pair"]) == (0, 1)


# ---- consistency ----


def consistent(**parameters: Any) -> SelfRewarding:
    return SelfRewarding(consistency="per_prompt", soft_labels=True, **parameters)


def test_the_target_is_how_alike_two_policies_rank_the_answers():
    table = rated(CREAM["J"], schema=PREVIOUS_SCORES, previous_scores=[CREAM["K"]])
    row = only_row(consistent().select(table))
    assert row["completion_index"] == [0, 1]
    assert row["win_rate"] == pytest.approx([CREAM["consistency"], 1 - CREAM["consistency"]], rel=1e-12)


def test_opposite_rankings_turn_the_label_round():
    row = only_row(
        consistent().select(rated([1.0, 2.0, 3.0], schema=PREVIOUS_SCORES, previous_scores=[[3.0, 2.0, 1.0]]))
    )
    assert row["win_rate"] == [0.0, 1.0]


def test_answers_that_one_policy_could_not_rate_are_left_out_of_the_ranking():
    scores, before = [1.0, 2.0, 3.0, math.nan], [1.0, 2.0, math.nan, 9.0]
    row = only_row(consistent().select(rated(scores, schema=PREVIOUS_SCORES, previous_scores=[before])))
    assert row["win_rate"] == [1.0, 0.0]
    unread = rated(scores, schema=PREVIOUS_SCORES, previous_scores=[[math.nan] * 4])
    assert only_row(consistent().select(unread))["win_rate"] == [0.5, 0.5]


def test_in_the_first_iteration_the_policy_agrees_with_itself():
    assert only_row(consistent().select(rated([1.0, 2.0, 3.0])))["win_rate"] == [1.0, 0.0]


def test_consistency_needs_scores_and_says_so():
    with pytest.raises(DataError, match="consistency = per_prompt compares scores"):
        consistent().select(scored(logits_of(1, 2, 3)))


# ---- anchored rejection: the rejected answer comes from the start policy ----


def anchored(scores: list[float], num_from_policy: int, **parameters: Any) -> list[int] | None:
    rows = (
        SelfRewarding(rejected_from="start", **parameters).select(rated(scores, num_from_policy=[num_from_policy])).rows
    )
    return rows["completion_index"].to_pylist()[0] if rows.num_rows else None


def test_the_rejected_answer_comes_from_the_start_policy():
    assert anchored([3.0, 5.0, 1.0, 2.0, 4.0, 6.0], num_from_policy=3) == [1, 3]


def test_before_there_are_anchors_all_answers_are_the_policys_own():
    assert anchored([3.0, 5.0, 1.0], num_from_policy=3) == [1, 2]


def test_a_start_policy_that_is_better_than_the_policy_gives_nothing_to_reject():
    assert anchored([1.0, 2.0, 4.0, 3.0], num_from_policy=2) is None
    assert anchored([1.0, 2.0, 2.0, 3.0], num_from_policy=2) is None, "equally good is a tie"


def test_tiers_and_anchors_work_together():
    """The tiers span all answers: own ones from the top, the start's from the bottom."""
    assert anchored([5.0, 1.0, 4.9, 1.2], num_from_policy=2, length_tier=0.1) == [0, 3]


# ---- verdicts that are missing, and what is refused ----


def test_answers_without_a_readable_judgement_are_no_candidates():
    assert only_row(SelfRewarding().select(rated([math.nan, 2.0, 4.0])))["completion_index"] == [2, 1]
    selection = SelfRewarding().select(rated([math.nan, 2.0, math.nan]))
    assert (selection.rows.num_rows, selection.counts["missing"]) == (0, 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"consistency": "per_prompt"}, "set soft_labels = true too"),
        ({"length_tier": 0.5}, "less than 0.5"),
        ({"max_chosen_tokens": 0}, "greater than 0"),
        ({"data": "dataset"}, "data"),
        ({"losses": {"dpo": 1.0}}, "nearest"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        SelfRewarding(**parameters)


# ---- the ranking functions ----


@pytest.mark.parametrize(
    ("rho", "top", "bottom", "chosen", "rejected"),
    [
        (0.0, [0], [6], 0, 6),
        (0.32, [0, 1, 2, 5], [3, 4, 6], 2, 4),
        (0.4, [0, 1, 2, 5], [3, 4, 6], 2, 4),
    ],
)
def test_the_tiers_hold_the_scores_near_the_best_and_the_worst(rho, top, bottom, chosen, rejected):
    assert quality_tiers(SCORES, rho) == (top, bottom)
    assert (shortest(top, LENGTHS), longest(bottom, LENGTHS)) == (chosen, rejected)


def test_tiers_below_one_half_never_share_an_answer_unless_all_are_equal():
    top, bottom = quality_tiers([3.0, 2.0, 1.0], 0.499)
    assert not set(top) & set(bottom)
    assert quality_tiers([2.0, 2.0], 0.4) == ([0, 1], [0, 1])


def test_the_best_is_in_its_own_tier_whatever_the_rounding():
    scores = [0.1 + 0.2, 0.3, 0.1]
    for rho in (0.0, 0.1, 0.3):
        top, bottom = quality_tiers(scores, rho)
        assert 0 in top and 2 in bottom


def test_consistency_is_creams_where_no_scores_tie():
    one, other = [0.9, 0.1, 0.5, 0.7, 0.2], [0.8, 0.3, 0.2, 0.9, 0.1]
    assert kendall_tau(one, other) == pytest.approx(0.4)
    assert consistency(one, other) == pytest.approx(0.7)


def test_ties_are_corrected_for_and_a_scoring_without_differences_says_nothing():
    assert kendall_tau([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / (5 * 6) ** 0.5)
    assert kendall_tau([2, 2, 2], [1, 2, 3]) == 0.0
    assert consistency([2, 2, 2], [1, 2, 3]) == 0.5
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
