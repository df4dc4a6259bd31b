"""Which answers to other prompts KTO's point of reference is made of."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from engine.algorithms.kto import KTO
from engine.schema import ELSEWHERE, ROWS
from tests.tables import given, only_row

LABELS = KTO(data="labels")


def tokens(letter: str) -> list[int]:
    return [ord(letter), 9]


def labelled(*answers: str, rates: list[float], **columns: list[Any]) -> pa.Table:
    """One prompt per answer, with its label."""
    return given(*[(answer,) for answer in answers], given_win_rates=[[rate] for rate in rates], **columns)


def test_a_pair_trains_with_an_answer_to_the_next_prompt_behind_it():
    first, second = KTO().select(given(("a", "b"), ("c", "d"))).rows.to_pylist()
    assert first["answer_index"] == second["answer_index"] == [-1, -2, ELSEWHERE]
    assert first["win_rate"] == second["win_rate"] == [1.0, 0.0, 0.5]
    assert first["answer_token_ids"][:2] == [tokens("a"), tokens("b")]
    assert second["answer_token_ids"][:2] == [tokens("c"), tokens("d")]


def test_chosen_and_rejected_answers_take_turns_at_the_point_of_reference():
    """Of one kind alone, z0 would follow the log-ratios of that kind."""
    rows = KTO().select(given(("a", "b"), ("c", "d"), ("e", "f"))).rows.to_pylist()
    assert [row["answer_token_ids"][2] for row in rows] == [tokens("c"), tokens("f"), tokens("a")]


def test_a_labelled_answer_trains_with_one_to_the_next_prompt():
    first, second = LABELS.select(labelled("a", "b", rates=[1.0, 0.0])).rows.to_pylist()
    assert (first["answer_index"], first["win_rate"]) == ([-1, ELSEWHERE], [1.0, 0.5])
    assert (second["answer_index"], second["win_rate"]) == ([-1, ELSEWHERE], [0.0, 0.5])
    assert first["answer_token_ids"] == [tokens("a"), tokens("b")]
    assert second["answer_token_ids"] == [tokens("b"), tokens("a")]


def test_an_answer_to_the_same_question_is_no_answer_to_another():
    """A data set asks the same twice; under z0 would then stand what the policy is taught to say."""
    table = labelled("a", "b", "c", rates=[1.0, 0.0, 1.0], prompt_token_ids=[[7], [7], [8]])
    rows = LABELS.select(table).rows.to_pylist()
    assert [row["answer_token_ids"][1] for row in rows] == [tokens("c"), tokens("c"), tokens("a")]


def test_a_tie_is_neither_desirable_nor_not():
    """It makes no row, but may be what another prompt is compared with."""
    selection = LABELS.select(labelled("a", "b", rates=[1.0, 0.5]))
    row = only_row(selection)
    assert (row["prompt_id"], row["answer_token_ids"][1]) == ("p0", tokens("b"))
    assert selection.counts == {"prompts": 2, "ties": 1, "alone": 0}


@pytest.mark.parametrize("copies", [1, 3])
def test_a_shard_of_one_question_has_nothing_to_compare_with(copies):
    table = labelled(*"abc"[:copies], rates=[1.0] * copies, prompt_token_ids=[[7]] * copies)
    selection = LABELS.select(table)
    assert selection.rows.equals(ROWS.empty_table())
    assert selection.counts == {"prompts": copies, "ties": 0, "alone": copies}
