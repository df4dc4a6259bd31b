"""The split of a preference set: by prompt, seeded, exact, and refused where it leaves too little."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.holdout import check_preferences, content_of, hold_out, num_shared
from engine.errors import DataError
from engine.schema import PROMPTS


def pairs(*ids: str, rates: tuple[float, ...] = (1.0, 0.0)) -> pa.Table:
    rows = [
        {
            "prompt_id": name,
            "messages": [{"role": "user", "content": name}],
            "prompt_text": name,
            "prompt_token_ids": [1],
            "dataset_completions": [f"{name} answer {i}" for i in range(len(rates))],
            "dataset_token_ids": [[i] for i in range(len(rates))],
            "dataset_win_rates": list(rates),
        }
        for name in ids
    ]
    return pa.Table.from_pylist(rows, PROMPTS)


def ids(table: pa.Table) -> list[str]:
    return table["prompt_id"].to_pylist()


MANY = [f"{i:04x}-0" for i in range(200)]


def test_the_share_of_different_prompts_is_held_out_exactly_and_every_row_goes_one_way() -> None:
    (training,), heldout = hold_out([pairs(*MANY)], 0.1, seed=3)
    assert heldout.num_rows == 20
    assert sorted(ids(training) + ids(heldout)) == MANY
    assert heldout.schema.equals(PROMPTS)


def test_all_pairs_of_a_prompt_go_the_same_way() -> None:
    several = [f"{i:04x}-{n}" for i in range(40) for n in range(i % 4 + 1)]
    (training,), heldout = hold_out([pairs(*several)], 0.25, seed=0)
    assert not {content_of(name) for name in ids(training)} & {content_of(name) for name in ids(heldout)}
    assert len({content_of(name) for name in ids(heldout)}) == 10


@given(order=st.permutations(MANY[:30]), seed=st.integers(0, 5))
def test_which_prompts_are_held_out_depends_on_the_seed_and_not_on_the_order(order: list[str], seed: int) -> None:
    expected = set(ids(hold_out([pairs(*MANY[:30])], 0.2, seed)[1]))
    assert set(ids(hold_out([pairs(*order)], 0.2, seed)[1])) == expected


def test_another_seed_holds_out_other_prompts() -> None:
    assert ids(hold_out([pairs(*MANY)], 0.1, seed=0)[1]) != ids(hold_out([pairs(*MANY)], 0.1, seed=1)[1])


def test_where_every_iteration_has_all_prompts_a_held_out_pair_trains_in_none_and_is_counted_once() -> None:
    training, heldout = hold_out([pairs(*MANY[:20]), pairs(*reversed(MANY[:20]))], 0.25, seed=0)
    assert len(ids(heldout)) == len(set(ids(heldout))) == 5
    assert all(not set(ids(table)) & set(ids(heldout)) for table in training)


def test_a_share_that_leaves_nothing_on_one_side_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"evaluation\.preferences\.share = 0\.1 of 4 different prompts holds out none"):
        hold_out([pairs(*MANY[:4])], 0.1, seed=0)
    with pytest.raises(DataError, match=r"share = 0\.9 holds out all 1 rows of iteration \d"):
        hold_out([pairs(name) for name in MANY[:4]], 0.9, seed=0)


def test_held_out_pairs_that_are_all_ties_are_refused() -> None:
    with pytest.raises(DataError, match="none of 3 held-out rows prefers one answer"):
        check_preferences(pairs(*MANY[:3], rates=(0.5, 0.5)))
    assert check_preferences(pa.concat_tables([pairs("a-0", rates=(0.5, 0.5)), pairs("b-0")])) == []


def test_labelled_answers_of_one_class_are_noted() -> None:
    (warning,) = check_preferences(pairs(*MANY[:3], rates=(1.0,)))
    assert "all 3 held-out answers are labelled desirable" in warning
    assert check_preferences(pa.concat_tables([pairs("a-0", rates=(1.0,)), pairs("b-0", rates=(0.0,))])) == []


def test_held_out_rows_that_are_trained_on_are_counted_by_their_prompt() -> None:
    assert num_shared([pairs("a-0", "b-0"), pairs("c-0")], pairs("a-0", "a-1", "d-0", "c-7")) == 3
