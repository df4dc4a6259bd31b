"""Read the figures of one iteration from its committed tables.

Only committed tables are read, so a resumed run and an undisturbed run report the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.base import Algorithm
from engine.evaluation import statistics
from engine.evaluation.gate import STAGE
from engine.evaluation.preferences import Validation
from engine.evaluation.statistics import JudgeBias, judge_bias, null_model_win_rate
from engine.schema import (
    AGREEMENT,
    COMPLETIONS,
    GATE,
    HELDOUT_START_LOGPS,
    HELDOUT_WIN_RATES,
    NULL_MODEL,
    SCORES,
    VALIDATION,
)
from engine.store.reader import RunReader


@dataclass(frozen=True)
class WinRate:
    """A share of comparisons won, ties counting half, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    num_prompts: int | None = None
    """Held-out prompts with a verdict."""


class IterationTables:
    """What the committed tables say about iteration `t`, counted from 0, and the policy version t + 1 that it made.

    A figure is None if the tables that it needs are not there.
    """

    def __init__(self, store: RunReader, algorithm: Algorithm, t: int) -> None:
        self._store, self._algorithm, self._t = store, algorithm, t
        self._version = t + 1

    @property
    def number(self) -> int:
        """The iteration, counted from 1."""
        return self._t + 1

    @property
    def weights(self) -> str | None:
        """Digest of the policy that the iteration made."""
        return self._store.recorded_digest(self._version)

    @property
    def reference(self) -> str | None:
        """Digest of the reference policy."""
        return self._store.recorded_digest(0 if self._algorithm.reference == "start" else self._previous)

    @cached_property
    def _previous(self) -> int:
        """The version from which the iteration's was trained."""
        return next((table["previous"][0].as_py() for table in self._win_rates(self._version)), self._t)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The algorithm's counts, e.g. {"prompts": 640, "rows": 600, "ties": 40}."""
        return self._store.counts(self._t, "selected")

    def win_rate(self, against: str) -> WinRate | None:
        """Of the version over the policy `against`, on held-out prompts with a verdict.

        against: "start"; "previous", the version from which it was trained; "current", the one promoted last.
        """
        return _interval(self._judged(self._version, against).values())

    def mixture_win_rate(self) -> WinRate | None:
        """Over the start, of the uniform mixture of versions 1 to t + 1, which picks one of them for each answer.

        On each prompt that is the mean of the versions' win rates. Prompts on which a version has no verdict do not
        count.
        """
        judged = [self._judged(version, "start") for version in range(1, self._version + 1)]
        return _interval(
            math.fsum(rates.get(prompt, math.nan) for rates in judged) / len(judged) for prompt in judged[-1]
        )

    def missing_rate(self) -> float | None:
        """Share of held-out prompts on which the evaluator gave no verdict against the start, in [0, 1]."""
        rates = self._judged(self._version, "start").values()
        return sum(map(math.isnan, rates)) / len(rates) if rates else None

    def mean_length(self) -> float | None:
        """Tokens per held-out answer."""
        return self._answers.mean_length if self._answers else None

    def length_ratio(self) -> float | None:
        """The same in units of the start policy's; None where that is 0."""
        answers, start = self._answers, self._start_answers
        return answers.mean_length / start.mean_length if answers and start and start.mean_length else None

    def entropy(self) -> float | None:
        """Mean -log p per token of held-out answers, in nats: an estimate of the policy's entropy if they are sampled
        at temperature 1."""
        return self._answers.entropy if self._answers else None

    def entropy_ratio(self) -> float | None:
        """The same in units of the start policy's; None where that is 0."""
        answers, start = self._answers, self._start_answers
        return answers.entropy / start.entropy if answers and start and start.entropy else None

    def truncated_rate(self) -> float | None:
        """Share of held-out answers that the length limit cut, in [0, 1]."""
        return self._answers.truncated if self._answers else None

    def truncation_rise(self) -> float | None:
        """The same, less the start policy's."""
        answers, start = self._answers, self._start_answers
        return answers.truncated - start.truncated if answers and start else None

    def kl(self) -> float | None:
        """Estimate of KL(policy || start) in nats per answer: the mean of log p / p_start over held-out answers.

        They must be sampled at temperature 1.
        """
        logps = _logps(self._store.tables(self._version, "heldout_completions", COMPLETIONS), "completion_logps")
        start = _logps(self._store.tables(self._version, "heldout_start_logps", HELDOUT_START_LOGPS), "start_logps")
        return float(np.mean(np.subtract(logps, start))) if start and len(start) == len(logps) else None

    def tie_rate(self) -> float | None:
        """Share of training prompts on which the scorer does not tell the best answer from the worst."""
        prompts = self.counts.get("prompts")
        return self.counts["ties"] / prompts if prompts and "ties" in self.counts else None

    @cached_property
    def _answers(self) -> _Answers | None:
        return _read_answers(self._store, self._version)

    @cached_property
    def _start_answers(self) -> _Answers | None:
        return _read_answers(self._store, 0)

    @cached_property
    def validation(self) -> Validation | None:
        """On held-out preferences, of the step whose weights the version has."""
        if self.step not in self._store.shards(self._t, "validation"):
            return None
        return Validation(self._store.read(self._t, "validation", self.step, VALIDATION))

    @property
    def step(self) -> int | None:
        """The optimizer step of the iteration whose weights the version has."""
        return self._store.trained_steps(self._version)

    def heldout_accuracy(self) -> WinRate | None:
        """Share of held-out preferences of which the chosen answer has the higher implicit reward."""
        accuracy = self.validation.accuracy if self.validation else None
        return WinRate(accuracy.mean, accuracy.low, accuracy.high) if accuracy else None

    def agreement(self) -> float | None:
        """Share of answer pairs on which the scorer prefers the evaluator's choice, ties of the scorer at 1/2."""
        tables = list(self._store.tables(self._t, "agreement", AGREEMENT))
        comparable = sum(pc.sum(table["comparable"]).as_py() or 0 for table in tables)
        return sum(pc.sum(table["agreements"]).as_py() or 0 for table in tables) / comparable if comparable else None

    @cached_property
    def judge_bias(self) -> JudgeBias:
        """Counts over the verdicts of an LLM judge; without any, all are 0."""
        tables = self._store.tables(self._t, "scores", SCORES)
        return sum((_judge_bias(row) for table in tables for row in _judged_rows(table)), JudgeBias())

    def null_model_win_rate(self) -> float | None:
        """Share of prompts on which the judge prefers the null-model baseline, ties at 1/2."""
        tables = self._store.tables(self._t, "null_model", NULL_MODEL)
        return null_model_win_rate([prob for table in tables for prob in table["win_prob"].to_pylist()])

    def promoted(self) -> bool | None:
        """Whether the gate promoted the version."""
        return next((table["promoted"][0].as_py() for table in self._store.tables(self._version, STAGE, GATE)), None)

    def _judged(self, version: int, against: str) -> dict[str, float]:
        """{held-out prompt_id: win rate in [0, 1]}; NaN without a verdict."""
        rates: dict[str, float] = {}
        for table in self._win_rates(version):
            for row in table.select(["prompt_id", "opponents", "win_rates", "previous", "current"]).to_pylist():
                opponent = 0 if against == "start" else row[against]
                rates[row["prompt_id"]] = row["win_rates"][row["opponents"].index(opponent)]
        return rates

    def _win_rates(self, version: int) -> Iterator[pa.Table]:
        return self._store.tables(version, "heldout_win_rates", HELDOUT_WIN_RATES)


@dataclass(frozen=True)
class _Answers:
    """Means over the held-out answers of one version."""

    mean_length: float
    """Tokens."""
    entropy: float
    """-log p per token, in nats; 0 where all answers are empty."""
    truncated: float
    """Share in [0, 1]."""


def _read_answers(store: RunReader, version: int) -> _Answers | None:
    """None without held-out answers."""
    lengths: list[int] = []
    logps: list[float] = []
    reasons: list[str] = []
    for table in store.tables(version, "heldout_completions", COMPLETIONS):
        lengths += pc.list_value_length(pc.list_flatten(table["completion_token_ids"])).to_pylist()
        logps += pc.list_flatten(table["completion_logps"]).to_pylist()
        reasons += pc.list_flatten(table["finish_reasons"]).to_pylist()
    if not lengths:
        return None
    entropy = -math.fsum(logps) / max(1, sum(lengths))
    return _Answers(float(np.mean(lengths)), entropy, reasons.count("length") / len(reasons))


def _logps(tables: Iterable[pa.Table], column: str) -> list[float]:
    return [logp for table in tables for logp in pc.list_flatten(table[column]).to_pylist()]


def _interval(rates: Iterable[float]) -> WinRate | None:
    """Mean and interval of one win rate per prompt. NaN does not count; None if there is nothing else."""
    judged = [rate for rate in rates if not math.isnan(rate)]
    if not judged:
        return None
    interval = statistics.bootstrap(np.array(judged))
    return WinRate(interval.mean, interval.low, interval.high, len(judged))


def _judged_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The prompts of a SCORES table on which an LLM judge was asked."""
    rows = table.select(["pair_logits", "verdicts", "completion_token_ids"]).to_pylist()
    return (row for row in rows if row["verdicts"])


def _judge_bias(row: dict[str, Any]) -> JudgeBias:
    questions = [(verdict["answer"], verdict["other"], verdict["value"]) for verdict in row["verdicts"]]
    return judge_bias(row["pair_logits"], questions, [len(ids) for ids in row["completion_token_ids"]])
