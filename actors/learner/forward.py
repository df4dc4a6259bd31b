"""Forward passes over a shard of rows without training: reference log-probabilities and validation.

All ranks call the same functions and return the same values. A shard is computed in the micro-batches of training, so
that the log-ratio before the first update is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch import distributed as dist

from actors.learner.batches import MicroBatch, deal, micro_batches
from actors.learner.deepspeed import device
from actors.learner.policy import collate
from engine.algorithms.base import Algorithm, Batch
from engine.errors import NonFiniteError
from engine.schema import VALIDATION, append


@dataclass(frozen=True)
class Ranks:
    """How a shard is divided among the ranks."""

    micro_batch_size: int
    rank: int
    world_size: int

    def own(self, num_rows: int) -> list[MicroBatch]:
        """This rank's micro-batch in each pass over `num_rows` rows; EMPTY where it has none."""
        return [ranks[self.rank] for ranks in deal(micro_batches([num_rows], self.micro_batch_size), self.world_size)]


def rows_of(table: pa.Table, piece: MicroBatch) -> list[dict]:
    """The rows of a micro-batch as Python values; [] for EMPTY."""
    return table.slice(piece.start, piece.num_rows).to_pylist()


def ref_logps(engine: Any, rows: pa.Table, ranks: Ranks) -> list[list[float]]:
    """[rows][n] log-probabilities of one shard (engine.schema.SELECTED), summed over tokens, in nats.

    Raises NonFiniteError on all ranks, naming the prompts without finite values.
    """
    counts = [len(answers) for answers in rows["completion_token_ids"].to_pylist()]
    starts = [0, *accumulate(counts)]
    values = torch.zeros(sum(counts), dtype=torch.float64, device=device())
    with torch.no_grad():
        for own in ranks.own(rows.num_rows):
            logps = engine(**collate(rows_of(rows, own), device()))
            start, stop = starts[own.start], starts[own.stop]
            values[start:stop] = logps[: stop - start]
    dist.all_reduce(values)  # each value was computed by one rank and is 0 on the others
    split = _split(values, counts)
    _require_finite(rows, split, "reference log-probabilities", "the opened weights give NaN or infinity")
    return split


def validate(engine: Any, algorithm: Algorithm, rows: pa.Table, ranks: Ranks) -> pa.Table:
    """Losses and implicit rewards of one shard (engine.schema.REF_LOGPS) as engine.schema.VALIDATION.

    Raises NonFiniteError on all ranks, naming the prompts without finite values.
    """
    counts = [len(answers) for answers in rows["completion_token_ids"].to_pylist()]
    starts = [0, *accumulate(counts)]
    answers = torch.zeros(2, sum(counts), dtype=torch.float64, device=device())  # log-probabilities and rewards
    losses = torch.zeros(rows.num_rows, dtype=torch.float64, device=device())
    with torch.no_grad():
        for own in ranks.own(rows.num_rows):
            piece = rows_of(rows, own)
            logps = engine(**collate(piece, device()))
            for members, batch in grouped(piece, logps):
                rewards, row_losses = algorithm.rewards(batch), algorithm.heldout_loss(batch)
                for i, member in enumerate(members):
                    row = own.start + member
                    answers[0, starts[row] : starts[row + 1]] = batch.logps[i]
                    answers[1, starts[row] : starts[row + 1]] = rewards[i]
                    losses[row] = row_losses[i]
    dist.all_reduce(answers)
    dist.all_reduce(losses)
    logps_of, rewards_of = (_split(values, counts) for values in answers)
    finite = [[*logps, loss] for logps, loss in zip(logps_of, losses.tolist(), strict=True)]
    _require_finite(rows, finite, "held-out log-probabilities or losses", "training diverged; lower the learning rate")
    kept = rows.select(["prompt_id", "completion_index", "win_rate", "ref_logps"])
    return append(kept, VALIDATION, "validation", logps=logps_of, rewards=rewards_of, loss=losses.tolist())


def _split(values: Tensor, counts: list[int]) -> list[list[float]]:
    return [part.tolist() for part in values.split(counts)] if counts else []


def _require_finite(rows: pa.Table, values: list[list[float]], what: str, why: str) -> None:
    ids = rows["prompt_id"].to_pylist()
    bad = [name for name, row in zip(ids, values, strict=True) if not all(map(math.isfinite, row))]
    if bad:
        raise NonFiniteError(
            f"{what} of prompts {bad} are not finite: {why}; use the last policy folder whose log-probabilities are "
            f"finite"
        )


def batches_of(rows: list[dict], logps: Tensor) -> Iterator[Batch]:
    """The batches of `grouped` alone."""
    return (batch for _, batch in grouped(rows, logps))


def grouped(rows: list[dict], logps: Tensor) -> Iterator[tuple[list[int], Batch]]:
    """The rows with 2 answers as one Batch, those with 3 as another, and so on, in the order of first appearance.

    Yields the positions of its rows with each batch. rows: engine.schema.REF_LOGPS. logps: [N] under the policy, the
    answers of all rows one after the other.
    Some losses (AOT, KTO, BCO) read all rows of a batch at once, so equal sizes stay together.
    """
    sizes = [len(row["completion_index"]) for row in rows]
    starts = [0, *accumulate(sizes)]
    for n in dict.fromkeys(sizes):
        members = [i for i, size in enumerate(sizes) if size == n]
        chosen = [rows[i] for i in members]
        lengths = [[max(1, len(answer)) for answer in row["completion_token_ids"]] for row in chosen]
        yield (
            members,
            Batch(
                logps=torch.stack([logps[starts[i] : starts[i] + n] for i in members]),
                ref_logps=logps.new_tensor([row["ref_logps"] for row in chosen]),
                num_tokens=logps.new_tensor(lengths),
                win_rate=logps.new_tensor([row["win_rate"] for row in chosen]),
                baseline=logps.new_tensor([[row["baseline"]] for row in chosen]),
            ),
        )
