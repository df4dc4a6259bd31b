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
from engine.evaluation.statistics import JudgeBias, judge_bias, null_model_win_rate
from engine.schema import (
    AGREEMENT,
    COMPLETIONS,
    HELDOUT_WIN_RATES,
    NULL_MODEL,
    OTHER_PROMPT,
    SCORES,
    SELECTABLE,
    SELECTED,
)
from engine.store.reader import RunReader

NUM_SAMPLES = 8
"""Prompts shown in the report."""


@dataclass(frozen=True)
class WinRate:
    """A share of comparisons won, ties counting half, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    num_prompts: int | None = None
    """Held-out prompts with a verdict."""


@dataclass(frozen=True)
class Sample:
    """A prompt with the answers of the highest and the lowest estimated win rate, in [0, 1]."""

    prompt: str
    best: str
    worst: str
    best_win_rate: float | None = None
    worst_win_rate: float | None = None


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
        return self._store.recorded_digest(0 if self._algorithm.reference == "start" else self._t)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The algorithm's counts, e.g. {"prompts": 640, "rows": 600, "ties": 40}."""
        return self._store.counts(self._t, "selected")

    def samples(self) -> tuple[Sample, ...]:
        """The answers that were trained on for the first prompts."""
        return tuple(_samples(self._store, self._algorithm, self._t))

    def win_rate(self, against: str) -> WinRate | None:
        """Of the version over the policy `against` ("start" or "previous"), on held-out prompts with a verdict."""
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
        lengths = [
            len(answer)
            for table in self._store.tables(self._version, "heldout_completions", COMPLETIONS)
            for answers in table["completion_token_ids"].to_pylist()
            for answer in answers
        ]
        return float(np.mean(lengths)) if lengths else None

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

    def _judged(self, version: int, against: str) -> dict[str, float]:
        """{held-out prompt_id: win rate in [0, 1]}; NaN without a verdict."""
        rates: dict[str, float] = {}
        for table in self._store.tables(version, "heldout_win_rates", HELDOUT_WIN_RATES):
            rates |= zip(table["prompt_id"].to_pylist(), table[f"win_vs_{against}"].to_pylist(), strict=True)
        return rates


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


def _samples(store: RunReader, algorithm: Algorithm, t: int) -> list[Sample]:
    """What iteration t trained on for its first prompts: the answers with the highest and the lowest target."""
    samples: list[Sample] = []
    stage = algorithm.selects_from(t)
    for shard in store.shards(t, "selected"):
        rows = store.read(t, "selected", shard, SELECTED).slice(0, NUM_SAMPLES - len(samples)).to_pylist()
        prompts = {row["prompt_id"]: row for row in store.read(t, stage, shard, SELECTABLE[stage]).to_pylist()}
        for row in rows:
            prompt, rates = prompts[row["prompt_id"]], row["win_rate"]
            compared = [i for i, index in enumerate(row["completion_index"]) if index != OTHER_PROMPT]
            best, worst = max(compared, key=rates.__getitem__), min(reversed(compared), key=rates.__getitem__)
            texts = [_text(prompt, row["completion_index"][i]) for i in (best, worst)]
            samples.append(Sample(prompt["messages"][-1]["content"], texts[0], texts[1], rates[best], rates[worst]))
        if len(samples) == NUM_SAMPLES:
            break
    return samples


def _text(prompt: dict[str, Any], index: int) -> str:
    """The text behind an `completion_index`."""
    return prompt["completions"][index] if index >= 0 else prompt["dataset_completions"][-1 - index]
