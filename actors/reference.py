"""The reference pass: log-probabilities of a shard's answers under the policy as it was opened.

Computed by the engine that will train, in the micro-batches in which the shard will train. Knows
nothing of optimizers or losses.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import torch
from torch import distributed as dist

from actors.policy import collate
from actors.process_group import device
from engine.errors import NonFiniteError
from engine.maths.batches import MicroBatch, deal, micro_batches


def rows_of(table: pa.Table, piece: MicroBatch) -> list[dict]:
    """The rows of a micro-batch as Python values; none for a filler."""
    return table.slice(piece.start, piece.num_rows).to_pylist()


def reference_logps(
    engine: Any, rows: pa.Table, micro_batch_size: int, rank: int, world_size: int
) -> list[list[float]]:
    """[rows][n] nats, summed over tokens, of one shard (engine.schema.ROWS); the whole list on every rank.

    Called by all ranks. Raises NonFiniteError, on all of them, naming the prompts without finite values.
    """
    counts = [len(answers) for answers in rows["answer_token_ids"].to_pylist()]
    values = torch.zeros(sum(counts), dtype=torch.float64, device=device())
    with torch.no_grad():
        for ranks in deal(micro_batches([rows.num_rows], micro_batch_size), world_size):
            own = ranks[rank]
            logps = engine(**collate(rows_of(rows, own), device()))
            start, stop = sum(counts[: own.start]), sum(counts[: own.stop])
            values[start:stop] = logps[: stop - start]
    dist.all_reduce(values)  # every answer was computed by one rank and is 0 on the others
    split = [part.tolist() for part in values.split(counts)] if counts else []
    _require_finite(rows["prompt_id"].to_pylist(), split)
    return split


def _require_finite(prompt_ids: list[str], logps: list[list[float]]) -> None:
    bad = [name for name, values in zip(prompt_ids, logps, strict=True) if not all(map(math.isfinite, values))]
    if bad:
        raise NonFiniteError(
            f"reference log-probabilities of prompts {bad} are not finite: the opened weights give NaN or infinity; "
            "go back to the last policy folder whose log-probabilities are finite"
        )
