"""Differences of two policies: p-values against full enumeration, Holm's correction, errors of the first kind."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from engine.evaluation.differences import difference, holm, permutation_p_value, sign_flip_p_value

VALUES = [0.9, 0.2, -0.1, 0.4, 0.3, 0.5, -0.2, 0.6]


def test_the_sign_flip_test_agrees_with_all_sign_patterns():
    sums = [abs(float(np.dot(signs, VALUES))) for signs in product((-1, 1), repeat=len(VALUES))]
    exact = np.mean([value >= abs(sum(VALUES)) - 1e-12 for value in sums])
    assert sign_flip_p_value(VALUES) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_the_permutation_test_agrees_with_all_splits():
    one, other = VALUES[:4], VALUES[4:]
    gaps = [
        abs(np.mean([VALUES[k] for k in chosen]) - np.mean([v for k, v in enumerate(VALUES) if k not in chosen]))
        for chosen in combinations(range(8), 4)
    ]
    exact = np.mean([gap >= abs(np.mean(one) - np.mean(other)) - 1e-12 for gap in gaps])
    assert permutation_p_value(one, other) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_holm_corrects_as_in_the_published_example():
    """0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02 (p.adjust of R)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_policies_are_called_different_in_one_case_of_twenty():
    rng = np.random.default_rng(1)
    called = [sign_flip_p_value(rng.choice([-0.5, 0.0, 0.5], size=60), seed=k) < 0.05 for k in range(100)]
    assert sum(called) <= 12  # binomial(100, 0.05): above 12 in one case of a thousand


def test_prompts_that_both_have_are_paired_and_prompts_without_a_verdict_do_not_count():
    one = {"a": 1.0, "b": 0.5, "c": math.nan, "x": 0.0}
    other = {"a": 0.5, "b": 0.0, "c": 0.0, "y": 1.0}
    found = difference(one, other)
    assert found is not None and found.is_paired
    assert (found.mean, found.low, found.high, found.num_prompts) == (0.5, 0.5, 0.5, 2)


def test_a_small_difference_on_every_prompt_is_seen_only_when_paired():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.8, size=80)
    one = {f"p{k}": float(rate + 0.05) for k, rate in enumerate(base)}
    paired = difference(one, {f"p{k}": float(rate) for k, rate in enumerate(base)})
    unpaired = difference(one, {f"q{k}": float(rate) for k, rate in enumerate(base)})
    assert paired is not None and unpaired is not None
    assert (paired.is_paired, unpaired.is_paired) == (True, False)
    assert paired.mean == pytest.approx(unpaired.mean) == pytest.approx(0.05)
    assert paired.p_value < 0.001 and paired.low > 0
    assert unpaired.p_value > 0.05 and unpaired.low < 0 < unpaired.high


def test_without_a_verdict_there_is_no_difference():
    assert difference({"a": math.nan}, {"a": 1.0}) is None
