"""The losses against numbers that were computed without Kumite; loss_oracles.json states its conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.algorithm import Algorithm, Batch
from engine.algorithms import ALGORITHMS
from engine.algorithms.sppo import SPPO
from engine.maths import losses

ORACLES = json.loads((Path(__file__).parent / "loss_oracles.json").read_text())
RELEASED = [row for row in ORACLES["losses"] if row["loss"] == "sppo_soft_official"]
TRL = [row for row in ORACLES["losses"] if row["loss"] == "sppo_hard_trl"]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def name_of(row: dict[str, Any]) -> str:
    return f"{row['loss']}-{row['case']}-{row.get('eta', row.get('beta'))}"


def pair(row: dict[str, Any], win_rate: list[float], dtype: torch.dtype = torch.float64) -> Batch:
    """One row of a chosen and a rejected answer."""
    return Batch(
        logps=torch.tensor([[row["policy_chosen_logps"], row["policy_rejected_logps"]]], dtype=dtype).requires_grad_(),
        reference_logps=torch.tensor([[row["ref_chosen_logps"], row["ref_rejected_logps"]]], dtype=dtype),
        win_rate=torch.tensor([win_rate], dtype=dtype),
        baseline=torch.tensor([[0.5]], dtype=dtype),
    )


def gradients(row: dict[str, Any]) -> list[float]:
    return [row["gradients"]["policy_chosen_logps"], row["gradients"]["policy_rejected_logps"]]


def test_there_are_rows_to_compare_with():
    assert (len(RELEASED), len(TRL)) == (4, 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", RELEASED, ids=name_of)
def test_the_loss_and_its_gradient_are_those_of_the_released_code(row, dtype):
    """The released code averages the pair's two squared errors; so does the row's loss."""
    batch = pair(row, [row["p_win"], row["p_lose"]], dtype)
    loss = SPPO(eta=row["eta"]).loss(batch)
    loss.sum().backward()
    assert loss.dtype == dtype
    assert loss.tolist() == pytest.approx([row["value"]], rel=TOLERANCE[dtype])
    # The printed gradients end after six decimals, hence the absolute part.
    assert batch.logps.grad[0].tolist() == pytest.approx(gradients(row), rel=TOLERANCE[dtype], abs=2e-6)


@pytest.mark.parametrize("row", TRL, ids=name_of)
def test_trls_sppo_hard_is_exactly_twice_ours_with_certain_win_rates(row):
    batch = pair(row, [1.0, 0.0])
    loss = 2 * SPPO(eta=1 / row["beta"]).loss(batch)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([row["value"]], rel=1e-6)
    assert batch.logps.grad[0].tolist() == pytest.approx(gradients(row), rel=1e-6, abs=2e-6)


def test_each_answer_has_its_own_squared_error():
    """By hand: (0.5 - 10 (0.8 - 0.5))^2 = 6.25 and (-1 - 10 (0.2 - 0.5))^2 = 4."""
    log_ratio, win_rate = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 0.2])
    assert losses.sppo(log_ratio, win_rate, 0.5, 10.0).tolist() == pytest.approx([6.25, 4.0], rel=1e-6)


def test_the_loss_of_many_answers_is_their_mean():
    batch = random_batch(rows=3, answers=7)
    algorithm = SPPO(train_on="all")
    each = losses.sppo(batch.log_ratio, batch.win_rate, batch.baseline, algorithm.eta)
    assert each.shape == (3, 7)
    assert torch.equal(algorithm.loss(batch), each.mean(dim=1))


def test_the_loss_is_zero_exactly_where_the_log_ratio_meets_its_target():
    algorithm = SPPO(eta=8.0)
    win_rate = torch.tensor([[0.75, 0.125]], dtype=torch.float64)
    reference = torch.tensor([[-16.0, -32.0]], dtype=torch.float64)
    baseline = torch.tensor([[0.5]], dtype=torch.float64)
    there = Batch(reference + 8.0 * (win_rate - 0.5), reference, win_rate, baseline)
    assert algorithm.loss(there).tolist() == [0.0]
    assert algorithm.loss(Batch(there.logps + 1, reference, win_rate, baseline)).tolist() == [1.0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_certain_preferences_and_impossible_answers_still_give_numbers(dtype):
    row = {
        "policy_chosen_logps": -1e5,
        "policy_rejected_logps": 0.0,
        "ref_chosen_logps": 0.0,
        "ref_rejected_logps": -1e5,
    }
    batch = pair(row, [1.0, 0.0], dtype)
    loss = SPPO(eta=1e6).loss(batch)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(batch.logps.grad).all()


def random_batch(rows: int = 5, answers: int = 2, dtype: torch.dtype = torch.float64) -> Batch:
    source = torch.Generator().manual_seed(7)
    reference = -100 * torch.rand(rows, answers, generator=source, dtype=dtype)
    return Batch(
        logps=(reference + torch.randn(rows, answers, generator=source, dtype=dtype)).requires_grad_(),
        reference_logps=reference,
        win_rate=torch.rand(rows, answers, generator=source, dtype=dtype),
        baseline=torch.full((rows, 1), 0.5, dtype=dtype),
    )


def taken(batch: Batch, rows: Any = slice(None), answers: Any = slice(None)) -> Batch:
    return Batch(
        logps=batch.logps[rows][:, answers],
        reference_logps=batch.reference_logps[rows][:, answers],
        win_rate=batch.win_rate[rows][:, answers],
        baseline=batch.baseline[rows],
    )


# What every algorithm promises


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return ALGORITHMS[request.param]()


def test_its_config_is_told_apart_by_its_name(algorithm):
    assert ALGORITHMS[algorithm.name] is type(algorithm)
    assert algorithm.reward_scale() > 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_batch_gives_one_loss_per_row_in_its_own_precision(algorithm, dtype):
    loss = algorithm.loss(random_batch(rows=5, dtype=dtype))
    assert (loss.shape, loss.dtype) == ((5,), dtype)


def test_rows_know_nothing_of_each_other(algorithm):
    batch, order = random_batch(), [3, 0, 4, 2, 1]
    whole = algorithm.loss(batch)
    assert torch.equal(algorithm.loss(taken(batch, rows=order)), whole[order])
    assert torch.equal(algorithm.loss(taken(batch, rows=[2])), whole[[2]])


def test_answers_that_trade_places_with_their_targets_change_nothing(algorithm):
    batch = random_batch()
    assert algorithm.loss(taken(batch, answers=[1, 0])).tolist() == pytest.approx(algorithm.loss(batch).tolist(), 1e-12)


def test_at_the_reference_equal_answers_ask_for_no_change(algorithm):
    reference = random_batch().reference_logps
    logps = reference.clone().requires_grad_()
    batch = Batch(logps, reference, torch.full_like(reference, 0.5), torch.full_like(reference[:, :1], 0.5))
    loss = algorithm.loss(batch)
    loss.sum().backward()
    assert torch.equal(batch.log_ratio, torch.zeros_like(reference))
    assert loss.tolist() == [0.0] * 5
    assert torch.count_nonzero(logps.grad) == 0


def test_at_the_reference_a_step_favours_the_better_answer(algorithm):
    reference = random_batch(rows=1).reference_logps
    logps = reference.clone().requires_grad_()
    win_rate = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    algorithm.loss(Batch(logps, reference, win_rate, torch.tensor([[0.5]], dtype=torch.float64))).sum().backward()
    better, worse = logps.grad[0].tolist()
    assert better < 0 < worse


def test_the_loss_reaches_nothing_but_the_policy(algorithm):
    batch = random_batch()
    algorithm.loss(batch).sum().backward()
    assert batch.logps.grad is not None
    assert all(t.grad is None for t in (batch.reference_logps, batch.win_rate, batch.baseline))
