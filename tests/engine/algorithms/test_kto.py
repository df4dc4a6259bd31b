"""KTO: single answers with a label, and a reference point from other prompts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from engine.algorithms.base import Batch
from engine.algorithms.kto import KTO
from engine.schema import OTHER_PROMPT, SELECTED
from tests.oracles import TOLERANCE, keywords, name_of, rows_of
from tests.tables import given, only_row

LABELS = KTO(data="labels")


def tokens(letter: str) -> list[int]:
    return [ord(letter), 9]


def batch_of(log_ratio: list[list[float]], win_rate: list[list[float]], dtype: torch.dtype = torch.float64) -> Batch:
    """Rows whose last answer belongs to another prompt; the reference says -10 nats to everything."""
    reference = torch.full((len(log_ratio), len(log_ratio[0])), -10.0, dtype=dtype)
    logps = (reference + torch.tensor(log_ratio, dtype=dtype)).requires_grad_()
    targets = torch.tensor([[*row, 0.5] for row in win_rate], dtype=dtype)
    return Batch(logps, reference, torch.ones_like(reference), targets, torch.full_like(reference[:, :1], 0.5))


def slopes(algorithm: KTO, batch: Batch) -> Tensor:
    return torch.autograd.grad(algorithm.loss(batch).sum(), batch.logps)[0]


# ---- which rows it makes ----


def labelled(*answers: str, rates: list[float], **columns: list[Any]) -> pa.Table:
    """One prompt per answer, with its label."""
    return given(*[(answer,) for answer in answers], dataset_win_rates=[[rate] for rate in rates], **columns)


def test_a_pair_trains_with_an_answer_to_the_next_prompt_behind_it():
    first, second = KTO().select(given(("a", "b"), ("c", "d"))).rows.to_pylist()
    assert first["completion_index"] == second["completion_index"] == [-1, -2, OTHER_PROMPT]
    assert first["win_rate"] == second["win_rate"] == [1.0, 0.0, 0.5]
    assert first["completion_token_ids"][:2] == [tokens("a"), tokens("b")]
    assert second["completion_token_ids"][:2] == [tokens("c"), tokens("d")]


def test_the_reference_point_is_estimated_on_chosen_and_rejected_answers_in_turn():
    """Of one kind alone, z0 would follow the log-ratios of that kind."""
    rows = KTO().select(given(("a", "b"), ("c", "d"), ("e", "f"))).rows.to_pylist()
    assert [row["completion_token_ids"][2] for row in rows] == [tokens("c"), tokens("f"), tokens("a")]


def test_a_labelled_answer_trains_with_one_to_the_next_prompt():
    first, second = LABELS.select(labelled("a", "b", rates=[1.0, 0.0])).rows.to_pylist()
    assert (first["completion_index"], first["win_rate"]) == ([-1, OTHER_PROMPT], [1.0, 0.5])
    assert (second["completion_index"], second["win_rate"]) == ([-1, OTHER_PROMPT], [0.0, 0.5])
    assert first["completion_token_ids"] == [tokens("a"), tokens("b")]
    assert second["completion_token_ids"] == [tokens("b"), tokens("a")]


def test_an_answer_to_the_same_prompt_is_not_used_for_the_reference_point():
    """A data set asks the same twice; under z0 would then stand what the policy is taught to say."""
    table = labelled("a", "b", "c", rates=[1.0, 0.0, 1.0], prompt_token_ids=[[7], [7], [8]])
    rows = LABELS.select(table).rows.to_pylist()
    assert [row["completion_token_ids"][1] for row in rows] == [tokens("c"), tokens("c"), tokens("a")]


def test_a_tie_is_neither_desirable_nor_not():
    """It makes no row, but may be what another prompt is compared with."""
    selection = LABELS.select(labelled("a", "b", rates=[1.0, 0.5]))
    row = only_row(selection)
    assert (row["prompt_id"], row["completion_token_ids"][1]) == ("p0", tokens("b"))
    assert selection.counts == {"prompts": 2, "ties": 1, "alone": 0}


@pytest.mark.parametrize("copies", [1, 3])
def test_a_shard_with_one_prompt_makes_no_row(copies):
    table = labelled(*"abc"[:copies], rates=[1.0] * copies, prompt_token_ids=[[7]] * copies)
    selection = LABELS.select(table)
    assert selection.rows.equals(SELECTED.empty_table())
    assert selection.counts == {"prompts": copies, "ties": 0, "alone": copies}


def test_it_asks_for_a_pair_or_for_one_labelled_answer():
    assert (KTO().num_dataset_completions, LABELS.num_dataset_completions) == (2, 1)
    assert KTO().stages(0) == LABELS.stages(5) == ()


# ---- its loss ----


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of("kto"), ids=name_of)
def test_the_loss_has_the_independent_value(row, dtype):
    """Four labelled answers, each with one of the four mismatched ones; z0 = 0.425 comes out of the batch."""
    inputs, parameters = row["inputs"], keywords(row)
    z0 = parameters.pop("z0")
    own = [policy - reference for policy, reference in inputs["chosen_policy_ref"] + inputs["rejected_policy_ref"]]
    mismatched = [p - r for p, r in zip(inputs["kl_policy"], inputs["kl_ref"], strict=True)]
    assert sum(mismatched) / 4 == pytest.approx(z0)
    batch = batch_of([list(pair) for pair in zip(own, mismatched, strict=True)], [[1.0], [1.0], [0.0], [0.0]], dtype)
    loss = KTO(data="labels", **parameters).loss(batch)
    assert loss.dtype == dtype
    assert loss.mean().item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])
    pairs = batch_of([[own[0], own[2], z0], [own[1], own[3], z0]], [[1.0, 0.0]] * 2, dtype)
    assert KTO(**parameters).loss(pairs).mean().item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])


def test_the_reference_point_is_never_negative():
    """By hand, with z0 = 0: 1 - sg(0.1) = 0.475021 desirable, 1 - sg(0.2) = 0.450166 undesirable, on average."""
    below = batch_of([[1.0, -2.0, -7.0]], [[1.0, 0.0]])
    assert KTO().loss(below).tolist() == pytest.approx([(0.475021 + 0.450166) / 2], abs=1e-6)
    assert KTO().loss(batch_of([[1.0, -2.0, 0.0]], [[1.0, 0.0]])).tolist() == KTO().loss(below).tolist()


def test_mismatched_answers_move_the_loss_and_are_not_trained_on():
    near, far = (batch_of([[1.0, -2.0, nats]], [[1.0, 0.0]]) for nats in (0.0, 6.0))
    assert KTO().loss(near).item() != pytest.approx(KTO().loss(far).item(), abs=1e-3)
    for batch in (near, far):
        up, down, elsewhere = slopes(KTO(), batch)[0].tolist()
        assert up < 0 < down
        assert elsewhere == 0.0


def test_the_reference_point_is_the_batchs_mean():
    both = batch_of([[1.0, -2.0, 2.0], [0.5, 0.0, 4.0]], [[1.0, 0.0]] * 2)
    alike = batch_of([[1.0, -2.0, 3.0], [0.5, 0.0, 3.0]], [[1.0, 0.0]] * 2)
    assert KTO().loss(both).tolist() == pytest.approx(KTO().loss(alike).tolist(), rel=1e-12)


def test_each_kind_of_answer_has_its_weight():
    batch = batch_of([[1.0, -2.0, 0.0]], [[1.0, 0.0]])
    up, down, _ = slopes(KTO(), batch)[0].tolist()
    heavier = slopes(KTO(desirable_weight=4.0, undesirable_weight=0.0), batch)[0].tolist()
    assert heavier == pytest.approx([4 * up, 0.0, 0.0], rel=1e-12)
    assert down > 0
