"""Check that the generator serves the learner's weights: both compute the log-probabilities of fixed tokens.

A digest shows that the right files arrived. Only this check shows that they were loaded, and that both sides compute
the same function of them. The roles compute the numbers; this module compares them.
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

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Default bound of the mean |difference| per token, in nats.

Measured with SmolLM2-135M-Instruct in bfloat16, vLLM against the learner, five probes: 0.03 to 0.05 with the right
weights, 0.09 to 0.11 with noise of 1 % on all of them, 0.3 to 0.8 with one matrix of one layer wrong. A change that is
smaller than rounding, as that of one iteration at a small learning rate may be, is not found in bfloat16.
"""


@dataclass(frozen=True)
class ProbeBatch:
    """B sequences on which generator and learner are compared."""

    prompt_token_ids: list[list[int]]
    """[B][tokens] beginnings of prompts of the run."""
    completion_token_ids: list[list[int]]
    """[B][at most num_tokens] how these prompts go on; pseudo-random ordinary tokens where nothing is left of them."""


def probe_batch(
    prompts: pa.Table,
    vocabulary: Collection[int],
    seed: int,
    *,
    max_length: int,
    num_prompts: int = 4,
    num_tokens: int = 16,
) -> ProbeBatch:
    """Pick a few prompts of PROMPTS and divide each into a prompt and an answer of at most `num_tokens` tokens.

    The answer is natural text, at most the second half of the prompt. On random tokens, which no model expects, two
    engines in bfloat16 differ nearly twice as much with the right weights (0.06 to 0.09 nats per token). A prompt of
    one token gets random ids of `vocabulary`, which holds the ids that may occur (no special ones).
    Depends on the arguments alone, so both sides and a resumed run get the same batch without sampling. Prompt and
    answer together are at most `max_length - 1` tokens (vLLM needs room for one more). Raises ValueError if there is
    no prompt, no vocabulary or no room.
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
    parts = [_divided(prompt[: max_length - 1], num_tokens) for prompt in chosen]
    return ProbeBatch([p for p, _ in parts], [answer or draw.choices(ids, k=num_tokens) for _, answer in parts])


def _divided(tokens: list[int], num_tokens: int) -> tuple[list[int], list[int]]:
    """The tokens without their last ones, and those: at most num_tokens, and at most half of them."""
    start = len(tokens) - min(num_tokens, len(tokens) // 2)
    return tokens[:start], tokens[start:]


def probe_tolerance(configured: float | None, dtype: Literal["float32", "bfloat16"]) -> float:
    """Return `generator.probe_tolerance` or the default for the policy's dtype, in nats per token."""
    return TOLERANCE[dtype] if configured is None else configured


def compare_probe(
    learner_logps: list[list[float]], generator_logps: list[list[float]], tolerance: float, *, replica: str
) -> float:
    """Return the mean |difference| per token, in nats, of two [B][tokens] log-probabilities.

    Raises WeightsError naming `replica` if it exceeds `tolerance`, if a number is not finite, or if the shapes differ.
    """
    shapes = [[len(row) for row in logps] for logps in (learner_logps, generator_logps)]
    if shapes[0] != shapes[1] or not sum(shapes[0]):
        raise WeightsError(
            f"{replica}: the probe has {shapes[1]} tokens per row, the learner's has {shapes[0]}; both must be equal"
        )
    differences = [
        abs(learner_logp - generator_logp)
        for learner_row, generator_row in zip(learner_logps, generator_logps, strict=True)
        for learner_logp, generator_logp in zip(learner_row, generator_row, strict=True)
    ]
    mean = math.fsum(differences) / len(differences) if all(map(math.isfinite, differences)) else math.nan
    if not mean <= tolerance:  # also true for NaN
        raise WeightsError(
            f"{replica}: log-probabilities differ from the learner's by {mean:.3g} nats per token on average "
            f"(tolerance {tolerance:g}, largest {max(differences):.3g}): it does not serve the learner's weights, or "
            f"computes with them differently. Load the weights again in a fresh replica; if the difference stays, "
            f"compare model.dtype and attention on both sides. Raise generator.probe_tolerance only if you know why"
        )
    return mean
