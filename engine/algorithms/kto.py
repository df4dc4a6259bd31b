"""KTO (arXiv 2402.01306): learns from single answers that are desirable or not, without pairs.

The reference point z0 is the policy's divergence from the reference, estimated on answers to other prompts. So the
last answer of each row belongs to the next prompt in its shard; of a pair, the chosen and the rejected one in turn.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engine.algorithms.base import Algorithm, Batch, Selection, Stages, row_of
from engine.algorithms.losses import kto
from engine.schema import OTHER_PROMPT

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class KTO(Algorithm):
    """Parameters of KTO."""

    name: Literal["kto"] = "kto"
    data: Literal["pairs", "labels"] = "pairs"
    """pairs: the chosen answer of each pair is desirable, the rejected one is not; labels: one answer with a label."""
    beta: float = Field(default=0.1, gt=0.0)
    desirable_weight: float = Field(default=1.0, ge=0.0)
    """lambda_D. If there are few desirable answers, raise it until the total weights are between 1 : 1 and 4 : 3."""
    undesirable_weight: float = Field(default=1.0, ge=0.0)
    """lambda_U."""

    @property
    def num_dataset_completions(self) -> int:
        return 2 if self.data == "pairs" else 1

    @property
    def num_heldout_completions(self) -> int:
        return self.num_dataset_completions

    @property
    def min_samples(self) -> int:
        return 1

    @property
    def min_micro_batch(self) -> int:
        """z0 is a mean over the micro-batch; one row would give a single log-ratio."""
        return 2

    def stages(self, iteration: int) -> Stages:
        return ()

    def select(self, prompts: pa.Table) -> Selection:
        table = prompts.to_pylist()
        counts = Counter(prompts=len(table), ties=0, alone=0)
        rows = []
        for i, prompt in enumerate(table):
            if any(rate == 0.5 for rate in prompt["dataset_win_rates"]):
                counts["ties"] += 1
            elif (other := _next_prompt(table, i)) is None:
                counts["alone"] += 1  # z0 needs an answer to another prompt, and the shard has one prompt only
            else:
                rows.append(self._row(prompt, other["dataset_token_ids"][i % self.num_dataset_completions]))
        return Selection.of(rows, counts, "kto rows")

    def heldout_rows(self, prompts: pa.Table) -> Selection:
        return self.select(prompts)

    def _row(self, prompt: dict, mismatched: list[int]) -> dict:
        own = prompt["dataset_token_ids"]
        index = [-1 - g for g in range(len(own))]
        return row_of(prompt, [*index, OTHER_PROMPT], [*own, mismatched], [*prompt["dataset_win_rates"], 0.5])

    def loss(self, batch: Batch) -> Tensor:
        """[B] mean over each row's own answers; z0 is max(0, mean log-ratio of the batch's mismatched answers)."""
        own, mismatched = batch.log_ratio[:, :-1], batch.log_ratio[:, -1]
        z0 = mismatched.mean().clamp(min=0.0).detach()
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        return kto(own, batch.win_rate[:, :-1] > 0.5, z0, beta=self.beta, **weights).mean(dim=-1)

    def reward_scale(self) -> float:
        return self.beta


def _next_prompt(table: list[dict], i: int) -> dict | None:
    """The first row after row i with another prompt, continued at the start of the shard; None if there is none.

    Tokens are compared, since a data set may hold the same prompt under two prompt ids.
    """
    others = itertools.chain(table[i + 1 :], table[:i])
    return next((row for row in others if row["prompt_token_ids"] != table[i]["prompt_token_ids"]), None)
