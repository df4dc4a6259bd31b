"""Which answers KTO trains on, what its point of reference is made of, and its loss in rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from engine.algorithm import Batch
from engine.algorithms.kto import KTO
from engine.maths import losses
from engine.schema import ELSEWHERE, ROWS
from tests.tables import given, only_row

LABELS = KTO(data="labels")


def tokens(letter: str) -> list[int]:
    return [ord(letter), 9]


def labelled(*answers: str, rates: list[float], **columns: list[Any]) -> pa.Table:
    """One prompt per answer, with its label."""
    return given(*[(answer,) for answer in answers], given_win_rates=[[rate] for rate in rates], **columns)


def test_it_needs_answers_of_a_data_set_and_no_stage_at_all():
    assert [(kto.given, kto.stages(0)) for kto in (KTO(), LABELS)] == [(2, ()), (1, ())]


# ---- which answers train ----


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


# ---- its loss ----


def batch_of(log_ratio: list[list[float]], win_rate: list[list[float]]) -> Batch:
    ratios = torch.tensor(log_ratio, dtype=torch.float64)
    return Batch(
        logps=(ratios - 30).requires_grad_(),
        reference_logps=torch.full_like(ratios, -30.0),
        num_tokens=torch.full_like(ratios, 10.0),
        win_rate=torch.tensor(win_rate, dtype=torch.float64),
        baseline=torch.full_like(ratios[:, :1], 0.5),
    )


def slope_of(algorithm: KTO, batch: Batch) -> torch.Tensor:
    return torch.autograd.grad(algorithm.loss(batch).sum(), batch.logps)[0]


def test_a_row_is_the_mean_of_its_own_answers_against_the_batchs_divergence():
    """z0 = (0.3 + 0.5) / 2 = 0.4."""
    batch = batch_of([[0.5, -1.0, 0.3], [2.0, 0.9, 0.5]], [[1.0, 0.0, 0.5]] * 2)
    desirable = torch.tensor([[True, False]] * 2)
    each = losses.kto(batch.log_ratio[:, :2], desirable, 0.4, beta=0.1)
    assert KTO().loss(batch).tolist() == pytest.approx(each.mean(dim=1).tolist(), rel=1e-12)


def test_a_negative_divergence_counts_as_none():
    rates = [[1.0, 0.0, 0.5]]
    below, none = (batch_of([[0.5, -1.0, z]], rates) for z in (-3.0, 0.0))
    assert torch.equal(KTO().loss(below), KTO().loss(none))


def test_nothing_is_learnt_from_the_mismatched_answer():
    batch = batch_of([[0.5, -1.0, 0.3], [2.0, 0.9, 0.5]], [[1.0, 0.0, 0.5]] * 2)
    slope = slope_of(KTO(), batch)
    assert torch.count_nonzero(slope[:, 2]) == 0
    assert (slope[:, 0] < 0).all() and (slope[:, 1] > 0).all()


@pytest.mark.parametrize(("rate", "sign"), [(1.0, -1), (0.6, -1), (0.4, 1), (0.0, 1)])
def test_one_labelled_answer_goes_where_its_label_points(rate, sign):
    slope = slope_of(LABELS, batch_of([[0.2, 0.1]], [[rate, 0.5]]))
    assert slope[0, 0].sign() == sign


def test_each_kind_has_its_weight():
    batch = batch_of([[0.5, -1.0, 0.3]], [[1.0, 0.0, 0.5]])
    even, uneven = KTO(), KTO(desirable_weight=2.0, undesirable_weight=3.0)
    assert torch.allclose(slope_of(uneven, batch), slope_of(even, batch) * torch.tensor([2.0, 3.0, 0.0]))


def test_what_policy_and_reference_share_does_not_count():
    batch = batch_of([[0.5, -1.0, 0.3]], [[1.0, 0.0, 0.5]])
    elsewhere = replace(batch, logps=batch.logps - 5, reference_logps=batch.reference_logps - 5)
    assert KTO().loss(elsewhere).tolist() == pytest.approx(KTO().loss(batch).tolist(), rel=1e-12)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"desirable_weight": -1.0}, {"data": "singles"}, {"eta": 1.0}])
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KTO(**wrong)
