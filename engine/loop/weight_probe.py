"""Proof that the generator serves the learner's weights: the same log-probabilities on fixed tokens.

A digest proves that the right files arrived; only this proves that they were loaded, and that both
sides compute the same function of them. Pure: roles compute the numbers, this compares them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from engine.errors import WeightsError
from engine.seeds import derive_seed

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Default bound of the mean |difference| per token, in nats."""


@dataclass(frozen=True)
class ProbeBatch:
    """B sequences on which generator and learner are compared."""

    prompt_token_ids: list[list[int]]
    """[B][tokens] beginnings of prompts of the run."""
    completion_token_ids: list[list[int]]
    """[B][num_tokens] pseudo-random ordinary tokens, answered by nobody."""


def probe_batch(
    prompts: pa.Table,
    vocabulary: Collection[int],
    seed: int,
    *,
    max_length: int,
    num_prompts: int = 4,
    num_tokens: int = 16,
) -> ProbeBatch:
    """Pick a few prompts of PROMPTS and give each `num_tokens` ids of `vocabulary` as its answer.

    Depends on nothing but the arguments, so both sides and a resumed run agree on it without sampling.
    `vocabulary` holds the ids that may occur (no special ones). Prompt and answer together are at most
    `max_length - 1` tokens (vLLM needs room for one more); prompts are cut at their end to fit, because
    any text can be a probe. Raises ValueError if there is no prompt, no vocabulary or no room.
    """
    ids = sorted(vocabulary)
    room = max_length - 1 - num_tokens
    if not ids or not prompts.num_rows or room < 1 or num_tokens < 1:
        raise ValueError(
            f"no probe from {prompts.num_rows} prompts, {len(ids)} token ids and {num_tokens} of {max_length} tokens"
        )
    draw = random.Random(derive_seed(seed, "probe"))
    rows = sorted(draw.sample(range(prompts.num_rows), min(num_prompts, prompts.num_rows)))
    chosen = prompts["prompt_token_ids"].take(pa.array(rows, pa.int64())).to_pylist()
    return ProbeBatch([prompt[:room] for prompt in chosen], [draw.choices(ids, k=num_tokens) for _ in rows])


def probe_tolerance(configured: float | None, dtype: Literal["float32", "bfloat16"]) -> float:
    """Return `generator.probe_tolerance`, or the default for the policy's dtype; nats per token."""
    return TOLERANCE[dtype] if configured is None else configured


def compare_probe(
    learner_logps: list[list[float]], generator_logps: list[list[float]], tolerance: float, *, replica: str
) -> float:
    """Return the mean |difference| per token, in nats, of two [B][tokens] log-probabilities.

    Raises WeightsError naming `replica` if it exceeds `tolerance`, if a number is not finite or if the
    two were not computed for the same tokens.
    """
    shapes = [[len(row) for row in logps] for logps in (learner_logps, generator_logps)]
    if shapes[0] != shapes[1] or not sum(shapes[0]):
        raise WeightsError(f"{replica}: probe of {shapes[1]} tokens per row, the learner's has {shapes[0]}")
    gaps = [
        abs(ours - theirs)
        for learner, generator in zip(learner_logps, generator_logps, strict=True)
        for ours, theirs in zip(learner, generator, strict=True)
    ]
    mean = math.fsum(gaps) / len(gaps) if all(map(math.isfinite, gaps)) else math.nan
    if not mean <= tolerance:  # also true for NaN
        raise WeightsError(
            f"{replica}: log-probabilities differ from the learner's by {mean:.3g} nats per token on average "
            f"(tolerance {tolerance:g}, largest {max(gaps):.3g}): it does not serve the learner's weights, or computes "
            f"them differently. Load the weights again in a fresh replica; if the difference stays, compare "
            f"model.dtype and attention on both sides, or raise generator.probe_tolerance knowingly"
        )
    return mean
