"""Tiers of quality and the agreement of rankings, against numbers from elsewhere."""

from __future__ import annotations

import pytest

from engine.algorithms.self_rewarding import consistency, kendall_tau, longest, quality_tiers, shortest

SCORES = [4.5, 4.2, 3.9, 2.0, 2.6, 4.4, 1.8]
LENGTHS = [2400, 1500, 1300, 900, 1700, 2100, 1200]


@pytest.mark.parametrize(
    ("rho", "top", "bottom", "chosen", "rejected"),
    [
        (0.0, [0], [6], 0, 6),
        (0.32, [0, 1, 2, 5], [3, 4, 6], 2, 4),
        (0.4, [0, 1, 2, 5], [3, 4, 6], 2, 4),
    ],
)
def test_length_control_sets_the_shortest_good_answer_against_the_longest_bad_one(rho, top, bottom, chosen, rejected):
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
