"""Sums of one optimizer step over micro-batches and ranks, and the metrics computed from them.

Two all-reduces per step, independent of the number of micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from engine.algorithms.base import Batch

SUMMED = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
"""Means over the step's rows. The chosen answer of a row is the one with the highest win rate, the rejected one that
with the lowest."""


class StepTotals:
    """Sums and maxima of one step on one rank; `reduce` turns them into those of the group."""

    def __init__(self, num_passes: int, rank: int, world_size: int, device: torch.device):
        self.rank = rank
        self.sums = torch.zeros(len(SUMMED) + 1, dtype=torch.float64, device=device)
        self.largest_log_ratio = torch.zeros((), dtype=torch.float64, device=device)
        self.nonfinite = torch.zeros(num_passes, world_size, 2, dtype=torch.float64, device=device)
        """[passes][ranks][loss, gradient]: 1 where it is NaN or infinite."""

    @torch.no_grad()
    def add(self, batch: Batch, losses: Tensor, rewards: Tensor) -> None:
        """B training rows with their losses [B] and implicit rewards [B, n]."""
        chosen = batch.win_rate.argmax(dim=1, keepdim=True)
        # Of equal win rates the last, so that chosen and rejected are two different answers.
        rejected = batch.win_rate.shape[1] - 1 - batch.win_rate.flip(1).argmin(dim=1, keepdim=True)
        best, worst = rewards.gather(1, chosen)[:, 0], rewards.gather(1, rejected)[:, 0]
        logps = [batch.logps.gather(1, index)[:, 0] for index in (chosen, rejected)]
        values = [losses, best, worst, best - worst, best > worst, *logps]
        self.sums[:-1] += torch.stack([value.double().sum() for value in values])
        self.largest_log_ratio = torch.maximum(self.largest_log_ratio, batch.log_ratio.abs().max().double())

    def add_tokens(self, count: int) -> None:
        self.sums[-1] += count

    def mark(self, index: int, loss_finite: Tensor, gradient_finite: Tensor) -> None:
        """Record whether loss and gradient of this rank's micro-batch in pass `index` were finite."""
        self.nonfinite[index, self.rank, 0] = (~loss_finite).double()
        self.nonfinite[index, self.rank, 1] = (~gradient_finite).double()

    def reduce(self) -> None:
        """Reduce over ranks; afterwards all ranks hold the same numbers. Called by all ranks."""
        maxima = torch.cat([self.largest_log_ratio.reshape(1), self.nonfinite.flatten()])
        dist.all_reduce(self.sums, dist.ReduceOp.SUM)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        self.largest_log_ratio = maxima[0]
        self.nonfinite = maxima[1:].view_as(self.nonfinite)

    def metrics(self, num_rows: int) -> dict[str, float]:
        """{metric: value} of the step; num_tokens counts prompt and answer tokens without padding."""
        *sums, tokens = self.sums.tolist()
        means = {name: value / num_rows for name, value in zip(SUMMED, sums, strict=True)}
        return {**means, "log_ratio/max_abs": self.largest_log_ratio.item(), "num_tokens": int(tokens)}

    def culprits(self) -> list[tuple[int, int, str]]:
        """(pass, rank, "loss" or "gradient") of every micro-batch that was not finite."""
        entries = self.nonfinite.nonzero().tolist()
        return [(index, rank, ("loss", "gradient")[kind]) for index, rank, kind in entries]


class GradientWatch:
    """Checks every gradient for NaN and infinity when it is computed, before it is summed and before any step.

    A hook works in all ZeRO stages, which remove the gradients from the parameters.
    """

    def __init__(self, module: torch.nn.Module):
        self.finite: Tensor | None = None
        self._handles = [p.register_hook(self._look) for p in module.parameters() if p.requires_grad]

    def _look(self, gradient: Tensor) -> None:
        finite = gradient.isfinite().all()
        self.finite = finite if self.finite is None else self.finite & finite

    def take(self, default: Tensor) -> Tensor:
        """Whether every gradient since the last call was finite; `default` if there was none."""
        finite, self.finite = self.finite, None
        return default if finite is None else finite
