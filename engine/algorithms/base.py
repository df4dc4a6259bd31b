"""What an algorithm is: the stages it needs, which answers train with which targets, and a loss.

Its frozen parameters are its section of the configuration. Torch appears in annotations only, so that
configurations load without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from engine.algorithms import preference
from engine.schema import ROWS, conform

if TYPE_CHECKING:
    import pyarrow as pa
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
"""Names of stages in engine/loop/stages.py, in dataflow order."""


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

    def selects_from(self, iteration: int) -> str:
        """The stage whose shards `select` reads: the last one of `stages`, or the prompts."""
        return ("prompts", *self.stages(iteration))[-1]

    @property
    def samples(self) -> bool:
        """Whether the policy answers the training prompts."""
        return "completions" in self.stages(0)

    @property
    def needs_scorer(self) -> bool:
        """Whether a scorer compares the answers."""
        return "scored" in self.stages(0)

    @property
    def compares_with_previous_policy(self) -> bool:
        """Whether the previous policy scores the same answers, from the second iteration on."""
        return "rescored" in self.stages(1)

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


COUNTED = ("prompts", "ties", "no_pair", "missing", "duplicates", "truncated", "empty")
"""prompts seen; prompts without a preference, with fewer than two usable answers, without a verdict; answers that
repeat another, were cut by the length limit, hold no text."""


class ScoredAnswers(Algorithm):
    """An algorithm that makes at most one row of each prompt's scored answers."""

    ties: Literal["drop", "keep"] = "drop"
    """Prompts whose best and worst answer are equally good or are the same answer."""
    truncated: Literal["keep", "exclude"] = "keep"
    """Answers cut by the length limit: train on them, or leave them to the comparisons alone."""
    empty: Literal["keep", "exclude"] = "keep"
    """Answers without text, likewise."""

    def select(self, table: pa.Table) -> Selection:
        counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        rows = [row for prompt in table.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, f"{self.name} rows")

    @abstractmethod
    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """One training row, or None where the declared rules leave nothing to learn from; counts what they met."""

    def _eligible(self, prompt: dict, counts: Counter[str]) -> list[int]:
        """Indices of the answers that may train."""
        truncated = {i for i, reason in enumerate(prompt["finish_reasons"]) if reason == "length"}
        empty = {i for i, answer in enumerate(prompt["answers"]) if not answer.strip()}
        counts["prompts"] += 1
        counts["duplicates"] += len(prompt["answers"]) - len(set(prompt["answers"]))
        counts["truncated"] += len(truncated)
        counts["empty"] += len(empty)
        barred = (truncated if self.truncated == "exclude" else set()) | (empty if self.empty == "exclude" else set())
        return [i for i in range(len(prompt["answers"])) if i not in barred]

    def _is_tie(self, prompt: dict, best: int, worst: int, values: Sequence[float], counts: Counter[str]) -> bool:
        """Whether the rule for ties drops this pair."""
        tie = bool(values[best] == values[worst] or prompt["answers"][best] == prompt["answers"][worst])
        counts["ties"] += tie
        return tie and self.ties == "drop"


def best_and_worst(values: Sequence[float], eligible: Sequence[int]) -> tuple[int, int]:
    """Two different indices of `eligible`; among equals the first sampled, so ties never wobble."""
    best = max(eligible, key=lambda i: (values[i], -i))
    worst = min((i for i in eligible if i != best), key=lambda i: (values[i], i))
    return best, worst


def quality(prompt: dict) -> list[float]:
    """[K] how good each answer is: the scorer's own scores where it gives any, else its mean pair logit.

    NaN where there is no verdict.
    """
    return prompt["scores"] or preference.mean_logits(np.array(prompt["pair_logits"])).tolist()
