"""SPAC's loss against numbers computed without Kumite, and which rows a preference set becomes."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch

from engine.algorithms.base import Batch
from engine.algorithms.spac import SPAC
from engine.schema import COMPLETIONS, conform

PAIRS = {"A": ([-20.5, -25.0], [-21.0, -24.0]), "B": ([-33.2, -30.1], [-31.7, -31.0])}
"""(policy, reference) log-probabilities of chosen and rejected."""
SAMPLES = ([-40.2, -22.5], [-41.0, -22.1])
"""Likewise of two answers that pi_t gave."""
ETA, LAMBDA = 10.0, 4.0
ORACLES = [
    # pure-Python float64, from the derivation in docs/spac.md; not numbers of the paper
    ("A", {"pref_weight": LAMBDA, "critic_weight": 1.0, "surrogate": "raw"}, 2.5038281911581284),
    ("B", {"pref_weight": LAMBDA, "critic_weight": 1.0, "surrogate": "raw"}, 3.301319866505704),
    ("A", {"lam": LAMBDA, "surrogate": "raw"}, 0.6259570477895321),
    ("B", {"lam": LAMBDA, "surrogate": "raw"}, 0.825329966626426),
    ("A", {"lam": LAMBDA, "surrogate": "softplus"}, 0.7968688146077351),
    ("B", {"lam": LAMBDA, "surrogate": "softplus"}, 0.996241733444629),
]


def batch_of(policy: list[float], reference: list[float]) -> Batch:
    logps = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    half = torch.full_like(logps, 0.5)
    return Batch(logps, torch.tensor([reference], dtype=torch.float64), torch.ones_like(logps), half, half[:, :1])


def example(case: str) -> Batch:
    policy, reference = PAIRS[case]
    return batch_of([*policy, *SAMPLES[0]], [*reference, *SAMPLES[1]])


@pytest.mark.parametrize(("case", "parameters", "value"), ORACLES)
def test_the_loss_is_that_of_the_derivation(case, parameters, value):
    assert SPAC(beta=1 / ETA, **parameters).loss(example(case)).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("surrogate", ["softplus", "spin", "raw"])
@pytest.mark.parametrize("case", PAIRS)
def test_its_gradient_agrees_with_central_differences(case, surrogate):
    algorithm, step = SPAC(beta=1 / ETA, lam=LAMBDA, surrogate=surrogate), 1e-5
    batch = example(case)
    algorithm.loss(batch).sum().backward()
    for i, slope in enumerate(batch.logps.grad[0].tolist()):
        ends = []
        for sign in (1, -1):
            shifted = batch.logps.detach().clone()
            shifted[0, i] += sign * step
            ends.append(algorithm.loss(batch_of(shifted[0].tolist(), batch.ref_logps[0].tolist())).item())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-9)


def test_without_pessimism_it_is_dpo_on_the_pair_of_the_data_set():
    (chosen, rejected), (reference_chosen, reference_rejected) = PAIRS["A"]
    margin = 0.1 * (chosen - reference_chosen - rejected + reference_rejected)
    loss = SPAC(beta=0.1, critic_weight=0.0).loss(example("A")).item()
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


def test_at_the_start_of_a_round_softplus_pulls_half_as_hard_as_the_raw_term():
    slopes = {}
    for surrogate in ("raw", "softplus"):
        batch = batch_of([-3.0, -4.0, -5.0], [-3.0, -4.0, -5.0])
        SPAC(surrogate=surrogate).loss(batch).sum().backward()
        slopes[surrogate] = batch.logps.grad[0, 2].item()
    assert slopes["raw"] == pytest.approx(2 * slopes["softplus"]) == pytest.approx(0.1)


def test_only_spin_ignores_a_constant_in_the_reward():
    """A constant per prompt changes neither preferences nor the policy; the other two pay for it."""
    policy, reference = [-3.0, -4.0, -5.0], [-3.5, -4.0, -5.5]
    lifted = [value + 1.0 for value in policy]
    unmoved = {
        surrogate: SPAC(surrogate=surrogate).loss(batch_of(policy, reference)).item()
        == pytest.approx(SPAC(surrogate=surrogate).loss(batch_of(lifted, reference)).item())
        for surrogate in ("softplus", "spin", "raw")
    }
    assert unmoved == {"softplus": False, "spin": True, "raw": False}


def test_lambda_weighs_the_preferences_so_the_penalty_gets_its_inverse():
    assert SPAC(lam=4.0).penalty_weight == 0.25
    assert SPAC(critic_weight=0.0).penalty_weight == 0.0
    assert SPAC().penalty_weight == 1.0
    with pytest.raises(ValueError, match=r"critic_weight = 0\.25; set one of the two"):
        SPAC(lam=4.0, critic_weight=1.0)


def test_the_reference_is_always_the_previous_iterate():
    with pytest.raises(ValueError, match="reference"):
        SPAC(reference="start")


def completions(**columns: list[Any]) -> pa.Table:
    """One prompt with a preference and one sampled answer; `columns` replace."""
    values: dict[str, list[Any]] = {
        "prompt_id": ["p"],
        "messages": [[{"role": "user", "content": "question"}]],
        "prompt_text": ["question"],
        "prompt_token_ids": [[7]],
        "dataset_completions": [["good", "bad"]],
        "dataset_token_ids": [[[1, 9], [2, 9]]],
        "dataset_win_rates": [[1.0, 0.0]],
        "completions": [["mine"]],
        "completion_token_ids": [[[3, 9]]],
        "completion_logps": [[-1.0]],
        "finish_reasons": [["stop"]],
        "seeds": [[0]],
        "weights": ["w" * 64],
        "num_from_policy": [1],
    }
    return conform(pa.Table.from_pydict(values | columns, COMPLETIONS), COMPLETIONS, "test")


def test_a_row_holds_the_pair_and_the_policys_own_answer():
    selection = SPAC().select(completions())
    (row,) = selection.rows.to_pylist()
    assert row["completion_index"] == [-1, -2, 0]
    assert row["completion_token_ids"] == [[1, 9], [2, 9], [3, 9]]
    assert row["win_rate"] == [1.0, 0.0, 0.5]
    assert selection.counts == {"prompts": 1, "ties": 0, "truncated": 0, "empty": 0}


def test_every_sample_takes_part():
    table = completions(
        completions=[["mine", ""]],
        completion_token_ids=[[[3, 9], []]],
        completion_logps=[[-1.0, -2.0]],
        finish_reasons=[["length", "stop"]],
        seeds=[[0, 1]],
        num_from_policy=[2],
    )
    selection = SPAC().select(table)
    assert selection.rows["completion_index"].to_pylist() == [[-1, -2, 0, 1]]
    assert selection.counts == {"prompts": 1, "ties": 0, "truncated": 1, "empty": 1}


@pytest.mark.parametrize(
    "columns",
    [{"dataset_win_rates": [[0.5, 0.5]]}, {"dataset_token_ids": [[[1, 9], [1, 9]]]}],
    ids=["label", "completions"],
)
def test_a_pair_without_a_preference_is_dropped_and_counted_by_default(columns):
    selection = SPAC().select(completions(**columns))
    assert (selection.rows.num_rows, selection.counts["ties"]) == (0, 1)
    assert SPAC(ties="keep").select(completions(**columns)).rows.num_rows == 1
