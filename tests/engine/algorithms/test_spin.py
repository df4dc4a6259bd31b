"""SPIN: a demonstration against the policy's own answer."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from engine.algorithms.spin import SPIN
from engine.schema import COMPLETIONS
from tests.oracles import TOLERANCE, batch_from, keywords, name_of, pairs_of_row, rows_of
from tests.tables import given, only_row


def shown(*demonstrations: str, **columns: Any) -> pa.Table:
    """One prompt per demonstration, to which the policy answered with the tokens of "said"."""
    said = {"completions": [["said"]] * len(demonstrations), "completion_token_ids": [[[*map(ord, "said"), 9]]]}
    said["completion_token_ids"] *= len(demonstrations)
    return given(*[(text,) for text in demonstrations], schema=COMPLETIONS, **(said | columns))


def expected_counts(**counts: int) -> dict[str, int]:
    return {"prompts": 1, "identical": 0, "disliked": 0, "truncated": 0, "empty": 0} | counts


def test_the_demonstration_trains_against_the_policys_answer():
    selection = SPIN().select(shown("good"))
    row = only_row(selection)
    assert (row["completion_index"], row["win_rate"]) == ([-1, 0], [1.0, 0.0])
    assert row["completion_token_ids"] == [[*map(ord, "good"), 9], [*map(ord, "said"), 9]]
    assert selection.counts == expected_counts()


def test_a_policy_that_says_the_demonstration_already_has_nothing_to_learn_from_it():
    selection = SPIN().select(shown("said", "good"))
    assert only_row(selection)["prompt_id"] == "p1"
    assert selection.counts == expected_counts(prompts=2, identical=1)


def test_an_answer_that_the_data_calls_bad_is_no_demonstration():
    selection = SPIN().select(shown("bad", "good", dataset_win_rates=[[0.0], [1.0]]))
    assert only_row(selection)["prompt_id"] == "p1"
    assert selection.counts == expected_counts(prompts=2, disliked=1)


def test_an_answer_that_was_cut_is_another_one_for_lack_of_an_end():
    cut = shown("said", completion_token_ids=[[[*map(ord, "said")]]], finish_reasons=[["length"]])
    assert only_row(SPIN().select(cut))["completion_index"] == [-1, 0]
    assert SPIN().select(cut).counts == expected_counts(truncated=1)


def test_empty_answers_train_and_are_counted():
    selection = SPIN().select(shown("good", completions=[[" "]], completion_token_ids=[[[9]]]))
    assert selection.rows.num_rows == 1
    assert selection.counts == expected_counts(empty=1)


def test_the_opponent_is_the_iteration_before():
    algorithm = SPIN()
    assert (algorithm.stages(0), algorithm.num_dataset_completions, algorithm.min_samples) == (("completions",), 1, 1)
    assert (algorithm.reference, algorithm.reward_scale()) == ("previous", 0.1)
    with pytest.raises(ValidationError, match="previous"):
        SPIN(reference="start")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of("sigmoid"), ids=name_of)
def test_the_logistic_loss_has_the_independent_value(row, dtype):
    loss = SPIN(**keywords(row)).loss(batch_from(pairs_of_row(row, dtype)))
    assert loss.dtype == dtype
    assert loss.tolist() == pytest.approx([row["value_full"]], rel=TOLERANCE[dtype])


@pytest.mark.parametrize("row", rows_of("hinge"), ids=name_of)
def test_the_hinge_loss_has_the_independent_value(row):
    loss = SPIN(loss_type="hinge", **keywords(row)).loss(batch_from(pairs_of_row(row)))
    assert loss.tolist() == pytest.approx([row["value_full"]], rel=1e-6)


def test_lambda_of_the_last_released_iteration_by_hand():
    """lambda = 5 and a margin of 1.5 nats: log(1 + e^-7.5) = 0.000552931."""
    batch = batch_from(pairs_of_row(rows_of("sigmoid")[0]))
    assert SPIN(beta=5.0).loss(batch).item() == pytest.approx(0.000552931, rel=1e-5)
    assert torch.equal(SPIN(beta=5.0, loss_type="hinge").loss(batch), torch.zeros(1, dtype=torch.float64))
