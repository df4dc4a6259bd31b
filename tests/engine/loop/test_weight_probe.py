"""The check of delivered weights: the same tokens on both sides, and an error with the mean difference and advice."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from engine.errors import WeightsError
from engine.loop.weight_probe import compare_probe, probe_batch, probe_tolerance
from engine.schema import NO_DATASET_COMPLETIONS, PROMPTS


def prompts(lengths: list[int]) -> pa.Table:
    rows = [
        {"prompt_id": f"p{i}", "messages": [], "prompt_text": "", "prompt_token_ids": [i] * n} | NO_DATASET_COMPLETIONS
        for i, n in enumerate(lengths)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def test_the_mean_difference_per_token_is_returned_when_it_is_small() -> None:
    assert compare_probe(
        [[-1.0, -2.0], [-3.0]], [[-1.0, -2.003], [-3.0]], 2e-3, replica="generator 0"
    ) == pytest.approx(1e-3)


def test_a_replica_with_other_weights_is_named_with_numbers_and_advice() -> None:
    with pytest.raises(
        WeightsError, match=r"generator 1: .*0\.5 nats per token .*tolerance 0\.001, largest 1\)"
    ) as caught:
        compare_probe([[-1.0, -2.0]], [[-1.0, -3.0]], 1e-3, replica="generator 1")
    assert "generator.probe_tolerance" in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_never_passes(bad: float) -> None:
    with pytest.raises(WeightsError, match="generator 0"):
        compare_probe([[-1.0, bad]], [[-1.0, bad]], 1e9, replica="generator 0")


@pytest.mark.parametrize("other", [[[-1.0]], [[-1.0, -1.0], [-1.0]], []])
def test_other_tokens_or_no_tokens_never_pass(other: list[list[float]]) -> None:
    with pytest.raises(WeightsError, match="tokens per row"):
        compare_probe([[-1.0, -1.0]], other, 1e9, replica="generator 0")
    with pytest.raises(WeightsError, match="tokens per row"):
        compare_probe([], [], 1e9, replica="generator 0")


def test_the_default_tolerance_follows_the_dtype_and_the_config_overrides_it() -> None:
    assert probe_tolerance(None, "float32") == 1e-3
    assert probe_tolerance(None, "bfloat16") == 0.1
    assert probe_tolerance(0.2, "float32") == 0.2


def test_both_sides_pick_the_same_probe_from_the_runs_seed_alone() -> None:
    table = prompts([1] * 100)
    batch = probe_batch(table, range(10, 200), 7, max_length=64)
    assert batch == probe_batch(table, set(range(10, 200)), 7, max_length=64)
    assert batch != probe_batch(table, range(10, 200), 8, max_length=64)


def test_the_answer_of_a_probe_is_how_the_prompt_goes_on() -> None:
    table = pa.Table.from_pylist(
        [
            {"prompt_id": f"p{n}", "messages": [], "prompt_text": "", "prompt_token_ids": list(range(n))}
            | NO_DATASET_COMPLETIONS
            for n in (40, 7, 2)
        ],
        schema=PROMPTS,
    )
    batch = probe_batch(table, [999], 0, max_length=64)
    parts = sorted(zip(batch.prompt_token_ids, batch.completion_token_ids, strict=True), key=lambda part: len(part[0]))
    assert parts == [
        ([0], [1]),
        ([0, 1, 2, 3], [4, 5, 6]),
        (list(range(24)), list(range(24, 40))),
    ]


def test_a_prompt_of_one_token_is_followed_by_random_ordinary_tokens() -> None:
    batch = probe_batch(prompts([1] * 4), range(10, 200), 7, max_length=64)
    assert [len(row) for row in batch.completion_token_ids] == [16] * 4
    assert len({tuple(row) for row in batch.completion_token_ids}) == 4
    assert {token for row in batch.completion_token_ids for token in row} <= set(range(10, 200))


def test_long_prompts_are_cut_so_that_the_generator_has_room_for_one_more_token() -> None:
    batch = probe_batch(prompts([50, 3]), [7, 8], 0, max_length=32)
    lengths = {len(p): len(a) for p, a in zip(batch.prompt_token_ids, batch.completion_token_ids, strict=True)}
    assert lengths == {2: 1, 16: 15}


@pytest.mark.parametrize(("lengths", "vocabulary", "max_length"), [([], [1], 64), ([5], [], 64), ([5], [1], 17)])
def test_a_probe_without_prompts_tokens_or_room_is_refused(
    lengths: list[int], vocabulary: list[int], max_length: int
) -> None:
    with pytest.raises(ValueError, match="no probe from"):
        probe_batch(prompts(lengths), vocabulary, 0, max_length=max_length)
