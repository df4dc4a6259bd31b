"""What an algorithm is: the stages it needs, which answers train with which targets, and a loss.

An algorithm is its section of the configuration: a frozen pydantic model with the methods that use its parameters.
Torch appears in annotations only, so that configurations load without it.
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
from engine.schema import SELECTED, conform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B training rows of n answers each. Log-probabilities are in nats, summed over the answer's tokens."""

    logps: Tensor
    """[B, n] float32 or float64, under the policy that is trained; the only tensor with a gradient."""
    ref_logps: Tensor
    """[B, n] under the reference, a policy that does not change during the iteration."""
    num_tokens: Tensor
    """[B, n] tokens of each answer, in the dtype of `logps`; at least 1."""
    win_rate: Tensor
    """[B, n] in [0, 1]: estimated P(answer beats the policy | prompt), or the label of a data set."""
    baseline: Tensor
    """[B, 1] in units of a win rate; 1/2 unless the algorithm says otherwise."""

    @property
    def log_ratio(self) -> Tensor:
        """[B, n] log pi(y|x) - log pi_ref(y|x); exactly 0 before the first update if the reference is `previous`."""
        return self.logps - self.ref_logps


@dataclass(frozen=True)
class Selection:
    """The training rows that an algorithm made of one shard, and the counts of its rules."""

    rows: pa.Table
    """engine.schema.SELECTED; at most one row per prompt. The chosen answer of a pair comes first."""
    counts: dict[str, int] = field(default_factory=dict)
    """{rule: number of prompts or answers to which it applied}, e.g. {"ties": 3}."""

    @classmethod
    def of(cls, rows: list[dict], counts: dict[str, int], where: str) -> Selection:
        """From rows as dicts, as `row_of` returns them. `where` names them in the SchemaError of a wrong row."""
        return cls(conform(pa.Table.from_pylist(rows, SELECTED), SELECTED, where), dict(counts))


def row_of(
    prompt: dict, index: list[int], token_ids: list[list[int]], win_rate: list[float], baseline: float = 0.5
) -> dict:
    """One row of engine.schema.SELECTED: the completions `index` of `prompt`, their tokens and targets, each [n]."""
    return {
        "prompt_id": prompt["prompt_id"],
        "prompt_token_ids": prompt["prompt_token_ids"],
        "completion_index": index,
        "completion_token_ids": token_ids,
        "win_rate": win_rate,
        "baseline": baseline,
    }


Stages = tuple[str, ...]
"""Names of stages in engine/loop/stages.py, in dataflow order."""


class Algorithm(BaseModel, ABC):
    """Parameters and methods of a preference-optimization algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    reference: Literal["previous", "start"] = "previous"
    """The policy that log-ratios compare with: the one at the start of the iteration, or of the run."""

    @property
    def num_dataset_completions(self) -> int:
        """G, the number of answers that each training prompt brings: 0, 1 (a demonstration) or 2 (a preference)."""
        return 0

    @property
    def min_samples(self) -> int:
        """The smallest K, answers sampled per prompt, with which `select` can make a row."""
        return 2

    @property
    def max_samples(self) -> int | None:
        """The largest K that `select` makes use of; None: no limit."""
        return None

    @property
    def min_micro_batch(self) -> int:
        """The smallest number of rows that `loss` needs together; above 1 where it compares rows with each other."""
        return 1

    def stages(self, iteration: int) -> Stages:
        """The stages that a shard of prompts passes before `select`; () where the data set holds all it needs.

        iteration: counted from 0.
        """
        return ("completions", "scores")

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
        return "scores" in self.stages(0)

    @property
    def compares_with_previous_policy(self) -> bool:
        """Whether the previous policy scores the same answers, from the second iteration on."""
        return "previous_scores" in self.stages(1)

    @property
    def win_estimator(self) -> str:
        """How it reads win probabilities from pair logits, a key of preference.ESTIMATORS."""
        return "pairwise"

    @abstractmethod
    def select(self, table: pa.Table) -> Selection:
        """Turn a shard, as the last of `stages` left it (PROMPTS if there is none), into training rows.

        A pure function: the same shard gives the same rows.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """[B] losses in the dtype of `batch.logps`, one per row; the learner averages them."""

    @abstractmethod
    def reward_scale(self) -> float:
        """Factor from a log-ratio to the implicit reward (beta in DPO)."""

    def rewards(self, batch: Batch) -> Tensor:
        """[B, n] implicit rewards of the answers, logged as `rewards/...`; only their differences have a meaning."""
        return self.reward_scale() * batch.log_ratio

    @property
    def num_heldout_completions(self) -> int:
        """Answers that each row of evaluation.preferences brings: 2, or 1 where single answers with a label train."""
        return 2

    def heldout_rows(self, prompts: pa.Table) -> Selection:
        """Rows of a shard of held-out preferences (PROMPTS), chosen before rejected; ties have none to agree with."""
        counts: Counter[str] = Counter(prompts=prompts.num_rows, ties=0)
        rows = []
        for prompt in prompts.to_pylist():
            rates = prompt["dataset_win_rates"]
            if rates[0] == rates[1]:
                counts["ties"] += 1
            else:
                rows.append(row_of(prompt, [-1, -2], prompt["dataset_token_ids"], rates))
        return Selection.of(rows, counts, f"{self.name} held-out rows")

    def heldout_loss(self, batch: Batch) -> Tensor:
        """[B] the loss of held-out rows: that of training, as far as the answers of a data set have one."""
        return self.loss(batch)


COUNTED = ("prompts", "ties", "no_pair", "missing", "duplicates", "truncated", "empty")
"""What ScoredAnswers counts. Prompts: all; without a preference; with fewer than two usable answers; without a
verdict. Answers: that repeat another one of the prompt; that were cut by the length limit; that hold no text."""


class ScoredAnswers(Algorithm):
    """An algorithm that makes at most one row of the scored answers to each prompt."""

    ties: Literal["drop", "keep"] = "drop"
    """Prompts whose best and worst answer are equally good or are the same text."""
    truncated: Literal["keep", "exclude"] = "keep"
    """Answers cut by the length limit: keep them, or exclude them from training; they stay opponents of the others."""
    empty: Literal["keep", "exclude"] = "keep"
    """Answers without text, likewise."""

    def select(self, table: pa.Table) -> Selection:
        counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        rows = [row for prompt in table.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, f"{self.name} rows")

    @abstractmethod
    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """The training row of one prompt, or None where a rule drops it; counts the rules that applied."""

    def _eligible(self, prompt: dict, counts: Counter[str]) -> list[int]:
        """Indices of the answers that `truncated` and `empty` let train; counts prompts and answers."""
        answers = prompt["completions"]
        truncated = {i for i, reason in enumerate(prompt["finish_reasons"]) if reason == "length"}
        empty = {i for i, answer in enumerate(answers) if not answer.strip()}
        counts["prompts"] += 1
        counts["duplicates"] += len(answers) - len(set(answers))
        counts["truncated"] += len(truncated)
        counts["empty"] += len(empty)
        excluded = (truncated if self.truncated == "exclude" else set()) | (empty if self.empty == "exclude" else set())
        return [i for i in range(len(answers)) if i not in excluded]

    def _is_dropped_tie(
        self, prompt: dict, best: int, worst: int, values: Sequence[float], counts: Counter[str]
    ) -> bool:
        """Whether the answers `best` and `worst` are tied and `ties` drops them; counts a tie in any case."""
        tie = bool(values[best] == values[worst] or prompt["completions"][best] == prompt["completions"][worst])
        counts["ties"] += tie
        return tie and self.ties == "drop"


def best_and_worst(values: Sequence[float], eligible: Sequence[int]) -> tuple[int, int]:
    """Indices of the answers with the largest and the smallest value, two different ones of `eligible`.

    Among equal values the answer that was sampled first is taken, so that the choice is reproducible.
    """
    best = max(eligible, key=lambda i: (values[i], -i))
    worst = min((i for i in eligible if i != best), key=lambda i: (values[i], i))
    return best, worst


def quality(prompt: dict) -> list[float]:
    """[K] how good each answer is: the scorer's own scores if it gives any, else its mean pair logit.

    NaN for an answer without a verdict.
    """
    return prompt["scores"] or preference.mean_logits(np.array(prompt["pair_logits"])).tolist()
