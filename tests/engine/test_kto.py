"""KTO: single answers with a label, and a point of reference from other prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.algorithm import Batch
from engine.algorithms.kto import KTO
from engine.schema import ELSEWHERE
from tests.oracles import TOLERANCE, keywords, name_of, rows_of
from tests.tables import given, only_row

LABELS = KTO(data="labels")


def tokens(text: str) -> list[int]:
    return [*map(ord, text), 9]


def batch_of(log_ratio: list[list[float]], win_rate: list[list[float]], dtype: torch.dtype = torch.float64) -> Batch:
    """Rows whose last answer belongs to another prompt; the reference says -10 nats to everything."""
    reference = torch.full((len(log_ratio), len(log_ratio[0])), -10.0, dtype=dtype)
    logps = (reference + torch.tensor(log_ratio, dtype=dtype)).requires_grad_()
    targets = torch.tensor([[*row, 0.5] for row in win_rate], dtype=dtype)
    return Batch(logps, reference, torch.ones_like(reference), targets, torch.full_like(reference[:, :1], 0.5))


def slopes(algorithm: KTO, batch: Batch) -> Tensor:
    return torch.autograd.grad(algorithm.loss(batch).sum(), batch.logps)[0]


# ---- which rows it makes ----


def test_each_row_carries_an_answer_of_the_next_prompt_chosen_and_rejected_ones_in_turn():
    """Of one kind alone, z0 would follow the log-ratios of that kind. The last prompt's next one is the first."""
    rows = KTO().select(given(("a", "b"), ("c", "d"), ("e", "f"))).rows.to_pylist()
    assert [row["answer_index"] for row in rows] == [[-1, -2, ELSEWHERE]] * 3
    assert [row["win_rate"] for row in rows] == [[1.0, 0.0, 0.5]] * 3
    texts = [("a", "b", "c"), ("c", "d", "f"), ("e", "f", "a")]
    assert [row["answer_token_ids"] for row in rows] == [[tokens(text) for text in row] for row in texts]


def test_an_answer_to_the_same_question_is_no_answer_to_another():
    """Where a data set asks the same twice, z0 would else be made of what the policy is taught to say."""
    rows = LABELS.select(given(("a",), ("b",), ("c",), prompt_token_ids=[[7], [7], [8]])).rows.to_pylist()
    assert [row["answer_token_ids"][1] for row in rows] == [tokens("c"), tokens("c"), tokens("a")]


def test_a_single_answer_has_its_label():
    table = given(("a",), ("b",), given_win_rates=[[1.0], [0.0]])
    rows = LABELS.select(table).rows.to_pylist()
    assert [row["answer_index"] for row in rows] == [[-1, ELSEWHERE]] * 2
    assert [row["win_rate"] for row in rows] == [[1.0, 0.5], [0.0, 0.5]]
    assert (KTO().given, LABELS.given) == (2, 1)
    assert KTO().stages(0) == LABELS.stages(5) == ()


def test_an_answer_that_is_neither_makes_no_row_but_still_serves_its_neighbour():
    table = given(("a", "b"), ("c", "d"), given_win_rates=[[1.0, 0.0], [0.5, 0.5]])
    selection = KTO().select(table)
    assert only_row(selection)["answer_token_ids"][-1] == tokens("c")
    assert selection.counts == {"prompts": 2, "ties": 1, "alone": 0}


@pytest.mark.parametrize("copies", [1, 3])
def test_a_shard_of_one_question_has_nothing_to_compare_with(copies):
    selection = KTO().select(given(*[("a", "b")] * copies, prompt_token_ids=[[7]] * copies))
    assert selection.rows.num_rows == 0
    assert selection.counts == {"prompts": copies, "ties": 0, "alone": copies}


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


def test_the_point_of_reference_is_never_negative():
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


def test_the_point_of_reference_is_the_batchs_mean():
    both = batch_of([[1.0, -2.0, 2.0], [0.5, 0.0, 4.0]], [[1.0, 0.0]] * 2)
    alike = batch_of([[1.0, -2.0, 3.0], [0.5, 0.0, 3.0]], [[1.0, 0.0]] * 2)
    assert KTO().loss(both).tolist() == pytest.approx(KTO().loss(alike).tolist(), rel=1e-12)


def test_each_kind_of_answer_has_its_weight():
    batch = batch_of([[1.0, -2.0, 0.0]], [[1.0, 0.0]])
    up, down, _ = slopes(KTO(), batch)[0].tolist()
    heavier = slopes(KTO(desirable_weight=4.0, undesirable_weight=0.0), batch)[0].tolist()
    assert heavier == pytest.approx([4 * up, 0.0, 0.0], rel=1e-12)
    assert down > 0
