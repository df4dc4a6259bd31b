"""SPIN, self-play fine-tuning (arXiv 2401.01335): a demonstration against the policy's own answer.

In each iteration the previous iterate answers, and the policy learns to distinguish the demonstrations from those
answers: equation 4.7, which with the logistic loss is DPO's loss on such pairs. Algorithm 1 of the paper trains on
answers of the previous iterate alone; the released code mixes in those of the iteration before.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engine.algorithms.base import Algorithm, Batch, Selection, Stages, row_of
from engine.algorithms.losses import relu, softplus

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class SPIN(Algorithm):
    """Parameters of SPIN."""

    name: Literal["spin"] = "spin"
    reference: Literal["previous"] = "previous"
    """The policy that also answers, the opponent in the game."""
    beta: float = Field(default=0.1, gt=0.0)
    """lambda of the paper; the released runs use 0.1, and 5 in their last iteration."""
    loss_type: Literal["logistic", "hinge"] = "logistic"
    """l of equation 4.7: log(1 + e^-z), or max(0, 1 - z)."""

    @property
    def num_dataset_completions(self) -> int:
        return 1

    @property
    def min_samples(self) -> int:
        return 1

    @property
    def max_samples(self) -> int:
        return 1

    def stages(self, iteration: int) -> Stages:
        return ("completions",)

    def select(self, completions: pa.Table) -> Selection:
        counts: Counter[str] = Counter(dict.fromkeys(("prompts", "identical", "disliked", "truncated", "empty"), 0))
        rows = [row for prompt in completions.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, "spin rows")

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """Demonstration against first sample; None where both are equal or the data set labels the answer as bad."""
        counts["prompts"] += 1
        counts["truncated"] += prompt["finish_reasons"][0] == "length"
        counts["empty"] += not prompt["completions"][0].strip()
        demonstration, sample = prompt["dataset_token_ids"][0], prompt["completion_token_ids"][0]
        if prompt["dataset_win_rates"][0] == 0.0:
            counts["disliked"] += 1
            return None
        if demonstration == sample:
            counts["identical"] += 1
            return None
        return row_of(prompt, [-1, 0], [demonstration, sample], [1.0, 0.0])

    def loss(self, batch: Batch) -> Tensor:
        """[B] l(beta (h(y) - h(y'))), h = log pi - log pi_t, y the demonstration and y' the policy's answer."""
        z = self.beta * (batch.log_ratio[:, 0] - batch.log_ratio[:, 1])
        return softplus(-z) if self.loss_type == "logistic" else relu(1.0 - z)

    def reward_scale(self) -> float:
        return self.beta
