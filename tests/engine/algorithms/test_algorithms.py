"""What every algorithm guarantees to the loop."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from actors.learner.forward import batches_of
from engine.algorithms import ALGORITHMS
from engine.algorithms.base import Algorithm, Batch
from engine.config.load import dump, load
from engine.schema import OTHER_PROMPT, PROMPTS, SELECTABLE, SELECTED
from tests.runs import fake_config
from tests.tables import logits_of, shard

DTYPES = [torch.float32, torch.float64]
DROPPED = ("no_pair", "missing", "identical", "disliked", "alone")
"""Counts of prompts that make no row, besides ties, which make none by default."""
NAN = float("nan")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return ALGORITHMS[request.param]()


def table_for(algorithm: Algorithm, samples: int = 3, iteration: int = 0) -> pa.Table:
    """Six prompts as the algorithm reads them: clean, tied, silent, cut, empty and copied ones."""
    k, none = samples, [[NAN] * samples] * samples
    demonstration = algorithm.num_dataset_completions == 1
    columns = {
        "dataset_completions": [["good", "bad"][: algorithm.num_dataset_completions]] * 6,
        "dataset_token_ids": [[[70 + i, 9], [80 + i, 9]][: algorithm.num_dataset_completions] for i in range(5)]
        + [[[0, 9]] * 2],
        "dataset_win_rates": [[1.0, 0.0]] * 4 + [[0.5, 0.5]] + [[1.0, 0.0]],
        "pair_logits": [logits_of(*range(k)), logits_of(*[0] * k), none, *[logits_of(*range(k, 0, -1))] * 3],
        "scores": [[float(i) for i in range(k)], [3.0] * k, [NAN] * k, *[[float(k - i) for i in range(k)]] * 3],
        "completions": [[f"answer {i}" for i in range(k)]] * 4 + [[""] * k, ["copy"] * k],
        "finish_reasons": [["stop"] * k] * 3 + [["length"] * k] + [["stop"] * k] * 2,
    }
    if demonstration:
        columns |= {
            "dataset_win_rates": [[1.0]] * 4 + [[0.0]] + [[1.0]],
            "dataset_token_ids": [[[70 + i, 9]] for i in range(5)] + [[[0, 9]]],
        }
    if algorithm.num_dataset_completions == 0:
        columns |= {name: [[]] * 6 for name in ("dataset_completions", "dataset_token_ids", "dataset_win_rates")}
    return shard(SELECTABLE[algorithm.selects_from(iteration)], [k] * 6, **columns)


def batch_of(algorithm: Algorithm, dtype: torch.dtype = torch.float64) -> Batch:
    """The rows that the algorithm makes, as the learner would see them; targets as clear as the algorithm has them."""
    rows = algorithm.select(table_for(algorithm)).rows.to_pylist()
    source = np.random.default_rng(4)
    n = len(rows[0]["completion_index"])
    rows = [row | {"ref_logps": source.uniform(-60, -20, n).tolist()} for row in rows]
    (batch,) = batches_of(rows, torch.tensor(source.uniform(-60, -20, len(rows) * n), dtype=dtype))
    batch.logps.requires_grad_()
    return batch


def taken(batch: Batch, rows: list[int]) -> Batch:
    return Batch(*(getattr(batch, f.name)[rows] for f in fields(Batch)))


# ---- its parameters ----


def test_its_config_survives_being_written_and_read(algorithm: Algorithm, tmp_path: Path) -> None:
    config = fake_config(tmp_path, algorithm={"name": algorithm.name})
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config
    assert config.algorithm == algorithm
    assert ALGORITHMS[algorithm.name] is type(algorithm)


def test_its_parameters_are_frozen_and_none_is_unknown(algorithm: Algorithm) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        algorithm.name = "other"
    with pytest.raises(ValidationError, match="bta"):
        type(algorithm)(bta=0.1)


def test_the_scale_of_its_rewards_is_a_positive_number(algorithm: Algorithm) -> None:
    assert 0 < algorithm.reward_scale() < float("inf")


# ---- held-out preferences ----


def heldout_batch(algorithm: Algorithm) -> tuple[Batch, dict[str, int]]:
    """Six held-out prompts, the last but one a tie, as the learner would see them."""
    count = algorithm.num_heldout_completions
    columns = {
        "dataset_completions": [["good", "bad"][:count]] * 6,
        "dataset_token_ids": [[[70 + i, 9], [80 + i, 9]][:count] for i in range(6)],
        "dataset_win_rates": [[1.0, 0.0][:count]] * 4 + [[0.5] * count] + [[1.0, 0.0][:count]],
    }
    selection = algorithm.heldout_rows(shard(PROMPTS, [0] * 6, **columns))
    rows = selection.rows.to_pylist()
    n = len(rows[0]["completion_index"])
    rows = [row | {"ref_logps": [-30.0] * n} for row in rows]
    (batch,) = batches_of(rows, torch.full((len(rows) * n,), -30.0, dtype=torch.float64))
    return batch, selection.counts


def test_held_out_preferences_become_rows_chosen_first_and_ties_are_counted(algorithm: Algorithm) -> None:
    batch, counts = heldout_batch(algorithm)
    assert (batch.logps.shape[0], counts["ties"], counts["prompts"]) == (5, 1, 6)
    assert batch.win_rate[:, 0].tolist() == [1.0] * 5


def test_a_policy_that_learns_the_preferences_has_a_smaller_validation_loss(algorithm: Algorithm) -> None:
    """Chosen answers one nat likelier and rejected ones one nat less likely than under the reference."""
    batch, _ = heldout_batch(algorithm)
    moved = batch.logps.clone()
    moved[:, 0] += 1.0
    moved[:, 1] -= 1.0
    better = replace(batch, logps=moved)
    assert (algorithm.heldout_loss(better) < algorithm.heldout_loss(batch)).all()
    rewards = algorithm.rewards(better)
    assert (rewards[:, 0] > rewards[:, 1]).all()
    assert (algorithm.rewards(batch)[:, 0] == algorithm.rewards(batch)[:, 1]).all()


# ---- which rows it makes ----


def test_the_stages_that_it_names_exist_and_leave_it_something_to_train_on(algorithm: Algorithm) -> None:
    order = list(SELECTABLE)
    for iteration in range(3):
        stages = algorithm.stages(iteration)
        assert list(stages) == sorted(stages, key=order.index), "in dataflow order"
        assert algorithm.num_dataset_completions in (1, 2) or "scores" in stages
        assert ("completions" in stages) == bool(stages), "all other stages read answers"
    assert algorithm.min_samples >= (2 if algorithm.num_dataset_completions == 0 else 1)


def test_the_least_number_of_samples_is_enough_for_a_row(algorithm: Algorithm) -> None:
    clean = table_for(algorithm, samples=algorithm.min_samples)
    assert "p0" in algorithm.select(clean).rows["prompt_id"].to_pylist()


def test_a_shard_gives_the_same_rows_twice_and_at_most_one_per_prompt(algorithm: Algorithm) -> None:
    table = table_for(algorithm)
    rows = algorithm.select(table).rows
    assert rows.equals(algorithm.select(table).rows)
    assert rows.schema.equals(SELECTED, check_metadata=True)
    ids = rows["prompt_id"].to_pylist()
    assert "p0" in ids
    assert ids == [prompt for prompt in table["prompt_id"].to_pylist() if prompt in set(ids)]


def test_every_prompt_is_a_row_or_is_counted(algorithm: Algorithm) -> None:
    selection = algorithm.select(table_for(algorithm))
    counts = selection.counts
    assert counts["prompts"] == 6
    assert selection.rows.num_rows + counts.get("ties", 0) + sum(counts.get(name, 0) for name in DROPPED) == 6
    assert selection.rows.num_rows < 6, "the table holds prompts that teach nothing"
    assert all(isinstance(count, int) and count >= 0 for count in counts.values())


def test_an_empty_shard_gives_an_empty_table(algorithm: Algorithm) -> None:
    selection = algorithm.select(table_for(algorithm).slice(0, 0))
    assert selection.rows.equals(SELECTED.empty_table())
    assert set(selection.counts.values()) == {0}


def test_its_rows_are_answers_of_their_prompt_with_targets_that_are_numbers(algorithm: Algorithm) -> None:
    table = {row["prompt_id"]: row for row in table_for(algorithm).to_pylist()}
    for row in algorithm.select(table_for(algorithm)).rows.to_pylist():
        prompt = table[row["prompt_id"]]
        for index, ids, rate in zip(row["completion_index"], row["completion_token_ids"], row["win_rate"], strict=True):
            known = prompt["completion_token_ids"][index] if index >= 0 else None
            if OTHER_PROMPT < index < 0:
                known = prompt["dataset_token_ids"][-1 - index]
            assert known is None or ids == known
            assert 0 <= rate <= 1
        assert len(set(row["completion_index"])) == len(row["completion_index"]), "no answer is set against itself"
        assert np.isfinite(row["baseline"])


# ---- its loss ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_gives_one_loss_per_row_in_its_own_precision(algorithm: Algorithm, dtype: torch.dtype) -> None:
    batch = batch_of(algorithm, dtype)
    loss = algorithm.loss(batch)
    assert (loss.shape, loss.dtype) == ((batch.logps.shape[0],), dtype)


def test_rows_do_not_influence_each_other_except_through_ktos_reference_point(algorithm: Algorithm) -> None:
    batch = batch_of(algorithm)
    rows = batch.logps.shape[0]
    whole, backwards = algorithm.loss(batch), list(range(rows))[::-1]
    assert torch.allclose(algorithm.loss(taken(batch, backwards)), whole[backwards], rtol=1e-12)
    alone = torch.cat([algorithm.loss(taken(batch, [i])) for i in range(rows)])
    assert torch.allclose(alone, whole, rtol=1e-12) == (algorithm.name != "kto" or rows == 1)


def test_at_the_reference_a_step_favours_the_better_answer(algorithm: Algorithm) -> None:
    batch = batch_of(algorithm)
    start = replace(batch, logps=batch.ref_logps.clone().requires_grad_())
    slope = torch.autograd.grad(algorithm.loss(start).sum(), start.logps)[0]
    assert (slope[:, 0] < 0).all()
    assert (slope[:, 1] > 0).all()
    step = replace(start, logps=start.logps - 1e-4 * slope / slope.abs().max())
    assert (algorithm.loss(step) < algorithm.loss(start)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nats", [-1e4, 0.0, 1e4])
def test_impossible_and_certain_answers_still_give_numbers(
    algorithm: Algorithm, dtype: torch.dtype, nats: float
) -> None:
    batch = batch_of(algorithm, dtype)
    signs = torch.ones_like(batch.logps)
    signs[:, 1::2] = -1.0
    for direction in (signs, -signs, signs.abs()):
        far = replace(batch, logps=(batch.ref_logps + nats * direction).detach().requires_grad_())
        loss = algorithm.loss(far)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), far.logps)[0]).all()
