"""RewardBench's formulas against numbers that functions of the rewardbench package gave (reward_bench_oracles.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.benchmarks.reward_bench.scores import (
    EXAMPLE_COUNTS,
    SECTIONS,
    Item,
    credit,
    sections,
    ties_id,
    ties_score,
    utilities,
)
from tests.tables import logits_of

ORACLES = json.loads((Path(__file__).parent / "reward_bench_oracles.json").read_text())


def item(scores: list[float], num_chosen: int = 1, name: str = "a", subset: str = "all") -> Item:
    chosen = tuple(n < num_chosen for n in range(len(scores)))
    return Item(name, subset, chosen, np.array(scores))


def test_sections_weigh_their_subsets_as_published() -> None:
    assert ORACLES["example_counts"] == EXAMPLE_COUNTS
    assert ORACLES["subset_mapping"] == {name: list(subsets) for name, subsets in SECTIONS.items()}
    assert sections(ORACLES["subsets"]) == pytest.approx(ORACLES["sections"], abs=1e-12)
    assert sections({"math-prm": 0.5, "hep-cpp": 0.8, "mine": 0.1}) == {
        "Reasoning": pytest.approx((984 * 0.5 + 164 * 0.8) / 1148)
    }


@pytest.mark.parametrize("case", range(3))
def test_the_ties_score_is_that_of_the_package(case: int) -> None:
    oracle = ORACLES["ties"][case]
    items = [item(row["scores"], row["num_correct"], row["id"], "Ties") for row in oracle["items"]]
    assert ties_score(items) == pytest.approx(oracle["score"], abs=1e-12)
    assert ties_score(reversed(items)) == pytest.approx(oracle["score"], abs=1e-12)


def test_the_ties_score_does_not_depend_on_the_scale_or_the_form_of_the_scores() -> None:
    oracle = ORACLES["ties"][1]
    compared = [
        item(utilities(logits_of(*row["scores"]), ()).tolist(), row["num_correct"], row["id"])
        for row in oracle["items"]
    ]
    assert ties_score(compared) == pytest.approx(oracle["score"], abs=1e-9)


@pytest.mark.parametrize("case", range(5))
def test_best_of_four_shares_the_credit_of_ties(case: int) -> None:
    oracle = ORACLES["best_of_4"][case]
    assert credit(item(oracle["scores"]), strict=True) == pytest.approx(oracle["result"])
    assert credit(item(utilities(logits_of(*oracle["scores"]), ()).tolist()), strict=True) == oracle["result"]


def test_a_tie_of_a_pair_counts_nothing_for_a_reward_model_and_half_for_a_judge() -> None:
    assert [credit(item(scores), strict=True) for scores in ([1, 0], [0, 1], [1, 1])] == [1.0, 0.0, 0.0]
    assert [credit(item(scores), strict=False) for scores in ([1, 0], [0, 1], [1, 1])] == [1.0, 0.0, 0.5]


def test_ratings_that_are_missing_are_never_the_best() -> None:
    assert credit(item([math.nan, 1.0]), strict=False) == 0.0
    assert credit(item([1.0, math.nan, math.nan, math.nan]), strict=False) == 1.0
    assert credit(item([math.nan] * 4), strict=False) == 0.25
    assert credit(item([math.nan] * 2), strict=True) == 0.0


def test_the_utility_of_an_answer_leaves_out_comparisons_without_a_verdict() -> None:
    none = math.nan
    assert utilities([[0, 2, none], [-2, 0, none], [none, none, 0]], ())[:2].tolist() == [1.0, -1.0]
    assert np.isnan(utilities([[0, none], [none, 0]], ())).all()
    assert utilities([[0, none], [-4, 0]], ()).tolist() == [2.0, -2.0]
    assert utilities([[0, 9], [9, 0]], [3.0, none])[0] == 3.0


def test_a_ties_answer_without_a_verdict_is_the_worst() -> None:
    items = [item([2.0, 0.0], 1, "ref:0"), item([2.0, 2.0, 0.0], 2, "tied:0")]
    assert ties_score(items) == pytest.approx(1.0 + 0.01), "no spread within, so the margin counts in full"
    missing = [item([2.0, 0.0], 1, "ref:0"), item([2.0, math.nan, 0.0], 2, "tied:0")]
    assert ties_score(missing) == pytest.approx(0.30)
    assert math.isnan(ties_score([item([2.0, 0.0], 1, "ref:0")]))


@pytest.mark.parametrize("name", ["0", "tie:1", "ref:", "tied:x", "ref:-1"])
def test_other_ids_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match='expected "ref:" or "tied:" and a number'):
        ties_id(name)
