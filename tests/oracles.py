"""Values and gradients that were computed without Kumite; the file's `meta` states its conventions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.algorithms.base import Batch
from engine.algorithms.losses import Pairs

ORACLES: dict[str, Any] = json.loads((Path(__file__).parent / "engine/algorithms/loss_oracles.json").read_text())
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative."""
PRINTED = 1e-6
"""Absolute: the file's gradients end after six decimals."""
WIN_RATES = ("p_win", "p_lose", "p_pair")
KEYWORDS = {"epsilon": "label_smoothing", "center_rewards_coefficient": "centre"}
"""The file's names of parameters where the losses have others."""


def name_of(row: dict[str, Any]) -> str:
    """For pytest's ids."""
    return "-".join([row["loss"], row["case"], *(f"{name}={value:.3g}" for name, value in row["params"].items())])


def rows_of(*losses: str) -> list[dict[str, Any]]:
    return [row for row in ORACLES["losses"] if row["loss"] in losses]


def keywords(row: dict[str, Any]) -> dict[str, float]:
    """The row's parameters, by the names that the loss has for them."""
    return {KEYWORDS.get(name, name): value for name, value in row["params"].items() if name not in WIN_RATES}


def pairs_of(
    inputs: dict[str, float] | Sequence[dict[str, float]],
    chosen_win: float = 1.0,
    rejected_win: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Pairs:
    """One pair of the file, or several; the policy's log-probabilities ask for a gradient."""
    cases = [inputs] if isinstance(inputs, dict) else inputs

    def column(name: str) -> Tensor:
        return torch.tensor([case[name] for case in cases], dtype=dtype)

    return Pairs(
        chosen=column("policy_chosen_logps").requires_grad_(),
        rejected=column("policy_rejected_logps").requires_grad_(),
        reference_chosen=column("ref_chosen_logps"),
        reference_rejected=column("ref_rejected_logps"),
        chosen_tokens=column("len_chosen"),
        rejected_tokens=column("len_rejected"),
        chosen_win=torch.full((len(cases),), chosen_win, dtype=dtype),
        rejected_win=torch.full((len(cases),), rejected_win, dtype=dtype),
    )


def pairs_of_row(row: dict[str, Any], dtype: torch.dtype = torch.float64) -> Pairs:
    """The pairs of a row with its own win rates; `p_pair` is the probability within the pair."""
    params = row["params"]
    chosen = params.get("p_win", params.get("p_pair", 1.0))
    return pairs_of(row["inputs"], chosen, params.get("p_lose", 1.0 - chosen), dtype)


def batch_from(pairs: Pairs) -> Batch:
    """Chosen in column 0, rejected in column 1, as rows have them."""

    def columns(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.stack([chosen, rejected], dim=1)

    return Batch(
        logps=columns(pairs.chosen, pairs.rejected),
        ref_logps=columns(pairs.reference_chosen, pairs.reference_rejected),
        num_tokens=columns(pairs.chosen_tokens, pairs.rejected_tokens),
        win_rate=columns(pairs.chosen_win, pairs.rejected_win),
        baseline=torch.full_like(pairs.chosen, 0.5)[:, None],
    )
