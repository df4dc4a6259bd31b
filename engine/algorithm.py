"""What an algorithm is: which answers train and with which targets, and a loss on log-probabilities.

An algorithm knows nothing of roles, of Ray, of files or of batching across ranks. Its frozen
parameters are its config. Torch appears in annotations only, so that configs load without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B training rows of n answers each; log-probabilities in nats, summed over the answer's tokens."""

    logps: Tensor
    """[B, n] float32 or better, under the policy being trained; the only tensor with a gradient."""
    reference_logps: Tensor
    """[B, n] under the reference, the policy at the start of the iteration."""
    win_rate: Tensor
    """[B, n] in [0, 1], estimated P(answer beats the policy | prompt)."""
    baseline: Tensor
    """[B, 1] in units of a win rate; 1/2 unless the algorithm says otherwise."""

    @property
    def log_ratio(self) -> Tensor:
        """[B, n] log pi(y|x) - log pi_ref(y|x); exactly 0 before the first update."""
        return self.logps - self.reference_logps


@dataclass(frozen=True)
class Selection:
    """What an algorithm made of one scored shard."""

    rows: pa.Table
    """engine.schema.ROWS; at most one row per prompt."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many prompts or answers fell under each declared rule, e.g. {"ties": 3}."""


class Algorithm(BaseModel, ABC):
    """Parameters and the two functions of a preference-optimization algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @abstractmethod
    def select(self, scored: pa.Table) -> Selection:
        """Turn engine.schema.SCORED into training rows. Pure: the same shard gives the same rows."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return [B] losses, in the dtype of `batch.logps`, one per row; the learner averages them."""

    @abstractmethod
    def reward_scale(self) -> float:
        """Factor from a log-ratio to the implicit reward that is logged as `rewards/...` (beta in DPO)."""
