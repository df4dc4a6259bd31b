"""Which rows train together, on which rank, in which order and at which learning rate: pure functions.

A micro-batch is up to `micro_batch_size` consecutive rows of one shard, fixed before the shuffle. So the reference pass
and the training pass batch the same rows, pad them to the same length, and compute the same floating-point numbers:
the log-ratio before the first update is exactly 0, not 1e-6. Every rank computes the whole order without communication.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.seeds import derive_seed


@dataclass(frozen=True)
class MicroBatch:
    """Rows [start, stop) of shard number `shard`."""

    shard: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


EMPTY = MicroBatch(0, 0, 0)
"""For a rank without rows in a pass. It runs the pass on an empty batch, since all ranks must gather under ZeRO-3."""

Passes = tuple[tuple[MicroBatch, ...], ...]
"""[passes][ranks] micro-batch of each rank in each forward pass."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    passes: Passes
    epoch: float
    """Number of epochs that are finished after this step, e.g. 1.5."""

    @property
    def num_rows(self) -> int:
        """Rows of all ranks; the loss is their exact mean, also in a smaller last step."""
        return sum(micro_batch.num_rows for ranks in self.passes for micro_batch in ranks)


def micro_batches(shard_sizes: Sequence[int], micro_batch_size: int) -> list[MicroBatch]:
    """Divide shards of these numbers of rows into micro-batches; the last one of a shard may be smaller."""
    return [
        MicroBatch(shard, start, min(start + micro_batch_size, size))
        for shard, size in enumerate(shard_sizes)
        for start in range(0, size, micro_batch_size)
    ]


def deal(pieces: Sequence[MicroBatch], num_ranks: int) -> Passes:
    """Distribute micro-batches over ranks, one each per pass; the last pass is filled up with EMPTY."""
    filled = [*pieces, *[EMPTY] * (-len(pieces) % num_ranks)]
    return tuple(tuple(filled[i : i + num_ranks]) for i in range(0, len(filled), num_ranks))


def count_steps(num_micro_batches: int, micro_batches_per_step: int, epochs: float) -> int:
    """Optimizer steps of `epochs` epochs, rounded up for a fraction; steps do not cross epochs."""
    per_epoch = math.ceil(num_micro_batches / micro_batches_per_step)
    return math.ceil(round(epochs * per_epoch, 9))


def training_order(
    shard_sizes: Sequence[int],
    *,
    micro_batch_size: int,
    batch_size: int,
    num_ranks: int,
    epochs: float,
    seed: int,
    max_steps: int | None = None,
) -> list[Step]:
    """The steps of an iteration, in order: those of `epochs`, or `max_steps` of them.

    Each epoch shuffles the micro-batches by (seed, epoch) and takes batch_size / micro_batch_size of them per step:
    batch_size rows, or fewer where a shard's last micro-batch or the epoch's last step is smaller. The rows of a step
    do not depend on num_ranks; only their distribution over ranks does.
    batch_size must be a multiple of micro_batch_size * num_ranks (engine.config.run checks it).
    """
    pieces = micro_batches(shard_sizes, micro_batch_size)
    if not pieces:
        return []
    per_step = batch_size // micro_batch_size
    per_epoch = count_steps(len(pieces), per_step, 1)
    steps = []
    for number in range(max_steps or count_steps(len(pieces), per_step, epochs)):
        epoch, within = divmod(number, per_epoch)
        if within == 0:
            shuffled = random.Random(derive_seed(seed, "epoch", epoch)).sample(pieces, len(pieces))
        chosen = shuffled[within * per_step : (within + 1) * per_step]
        steps.append(Step(deal(chosen, num_ranks), (number + 1) / per_epoch))
    return steps


def fingerprint(steps: Sequence[Step]) -> str:
    """Hex digest of an order; a checkpoint stores it, so that it is loaded for the same order only."""
    return hashlib.sha256(repr(list(steps)).encode()).hexdigest()


def lr_at(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: float = 0.0,
    kind: Literal["linear", "cosine", "constant"] = "linear",
) -> float:
    """Learning rate of the update after `step` finished updates, in [0, peak].

    Rises linearly over the first warmup_steps updates, a number that need not be whole, then falls to 0 at
    `total_steps` linearly or as half a cosine, or stays constant. As in transformers' schedules the first update of a
    warm-up has rate 0.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if kind == "constant":
        return peak
    remaining = max(0.0, (total_steps - step) / max(total_steps - warmup_steps, 1e-12))
    return peak * (remaining if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining)))
