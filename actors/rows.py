"""Training rows as tensors: the batches that an algorithm's loss reads, from rows as Python values.

Knows REFERENCED's columns; nothing of models, ranks or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from engine.algorithm import Batch


def batches_of(rows: list[dict], logps: Tensor) -> Iterator[Batch]:
    """The rows with n = 2 answers as one Batch, those with 3 as another, in the order in which sizes appear.

    rows: engine.schema.REFERENCED. logps: [N], the answers of all rows one after the other, under the policy.
    Some losses (AOT, KTO, BCO) look at all rows of a batch at once, so equal sizes are kept together.
    """
    sizes = [len(row["answer_index"]) for row in rows]
    starts = [0, *accumulate(sizes)]
    for n in dict.fromkeys(sizes):
        members = [i for i, size in enumerate(sizes) if size == n]
        chosen = [rows[i] for i in members]
        lengths = [[max(1, len(answer)) for answer in row["answer_token_ids"]] for row in chosen]
        yield Batch(
            logps=torch.stack([logps[starts[i] : starts[i] + n] for i in members]),
            reference_logps=logps.new_tensor([row["reference_logps"] for row in chosen]),
            num_tokens=logps.new_tensor(lengths),
            win_rate=logps.new_tensor([row["win_rate"] for row in chosen]),
            baseline=logps.new_tensor([[row["baseline"]] for row in chosen]),
        )
