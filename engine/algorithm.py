"""What an algorithm is: the stages it needs, which answers train with which targets, and a loss.

An algorithm knows nothing of roles, of Ray, of files or of batching across ranks. Its frozen
parameters are its config. Torch appears in annotations only, so that configs load without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from engine.schema import ROWS, conform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B training rows of n answers each; log-probabilities in nats, summed over the answer's tokens."""

    logps: Tensor
    """[B, n] float32 or better, under the policy being trained; the only tensor with a gradient."""
    reference_logps: Tensor
    """[B, n] under the reference, a policy that does not change during the iteration."""
    num_tokens: Tensor
    """[B, n] tokens of each answer, in the dtype of `logps`; at least 1."""
    win_rate: Tensor
    """[B, n] in [0, 1], estimated P(answer beats the policy | prompt), or the label of a data set."""
    baseline: Tensor
    """[B, 1] in units of a win rate; 1/2 unless the algorithm says otherwise."""

    @property
    def log_ratio(self) -> Tensor:
        """[B, n] log pi(y|x) - log pi_ref(y|x); exactly 0 before the first update if the reference is the start."""
        return self.logps - self.reference_logps


@dataclass(frozen=True)
class Selection:
    """What an algorithm made of one shard."""

    rows: pa.Table
    """engine.schema.ROWS; at most one row per prompt. A pair's chosen answer comes first."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many prompts or answers fell under each declared rule, e.g. {"ties": 3}."""

    @classmethod
    def of(cls, rows: list[dict], counts: dict[str, int], where: str) -> Selection:
        """From rows as dicts, as `row_of` makes them."""
        return cls(conform(pa.Table.from_pylist(rows, ROWS), ROWS, where), dict(counts))


Stages = tuple[str, ...]
"""Names of engine/loop/stages.py, in dataflow order."""


class Algorithm(BaseModel, ABC):
    """Parameters and the functions of a preference-optimization algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    reference: Literal["previous", "start"] = "previous"
    """The policy that log-ratios compare with: the one at the start of the iteration, or of the run."""

    @property
    def given(self) -> int:
        """G, the answers that each training prompt must bring along: 0, 1 (a demonstration) or 2 (a preference)."""
        return 0

    @property
    def min_samples(self) -> int:
        """The least K, answers of the policy per prompt, with which `select` can work."""
        return 2

    @property
    def max_samples(self) -> int | None:
        """The most K of which `select` makes use; None: any."""
        return None

    @property
    def min_micro_batch(self) -> int:
        """The least rows that `loss` must see together; more than 1 where rows are compared with each other."""
        return 1

    def stages(self, iteration: int) -> Stages:
        """What happens to a shard of prompts before `select` reads it; () for a data set that is complete."""
        return ("completions", "scored")

    @abstractmethod
    def select(self, table: pa.Table) -> Selection:
        """Turn a shard, as the last of `stages` left it (or PROMPTS), into training rows.

        Pure: the same shard gives the same rows.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return [B] losses, in the dtype of `batch.logps`, one per row; the learner averages them."""

    @abstractmethod
    def reward_scale(self) -> float:
        """Factor from a log-ratio to the implicit reward that is logged as `rewards/...` (beta in DPO)."""


def row_of(
    prompt: dict, index: list[int], token_ids: list[list[int]], win_rate: list[float], baseline: float = 0.5
) -> dict:
    """One row of ROWS: answers `index` of `prompt`, their tokens and their targets, all [n]."""
    return {
        "prompt_id": prompt["prompt_id"],
        "prompt_token_ids": prompt["prompt_token_ids"],
        "answer_index": index,
        "answer_token_ids": token_ids,
        "win_rate": win_rate,
        "baseline": baseline,
    }
