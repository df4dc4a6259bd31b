"""One instruction of AlpacaEval with both answers and the verdict: from committed tables to alpaca_eval's records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms.preference import pairwise_win_probabilities
from engine.benchmarks.alpaca_eval.length_control import Gamed
from engine.benchmarks.answers import is_from_file
from engine.schema import COMPLETIONS

PREFERENCE = (
    "mean of preference - 1, with preference = 1 + sigmoid((m(policy, baseline) - m(baseline, policy)) / 2) of the "
    "annotator's logits m in both orders"
)


@dataclass(frozen=True)
class Item:
    """One instruction with both answers and the verdict."""

    row: dict[str, Any]
    """Of engine.schema.ALPACA_EVAL_INPUT."""
    output: str
    """The policy's answer, without white space around it."""
    is_truncated: bool
    is_from_file: bool
    """Whether the answer came from a file, so that its sampling is not known."""
    preference: float
    """In [1, 2], 2: the policy's answer is better, 1.5: a draw; NaN: no verdict."""
    annotator: str
    annotator_truncated: int
    """Comparisons in which a text was cut for the annotator."""

    @property
    def instruction(self) -> str:
        return self.row["messages"][0]["content"]

    @property
    def baseline(self) -> str:
        return self.row["dataset_completions"][0]


def with_baseline(answers: pa.Table) -> pa.Table:
    """COMPLETIONS of two answers each, the policy's without white space around it, then the baseline's."""
    columns = {name: answers[name].to_pylist() for name in COMPLETIONS.names}
    columns["completions"] = [
        [answer.strip(), baseline]
        for (answer,), (baseline,) in zip(columns["completions"], columns["dataset_completions"], strict=True)
    ]
    added = {"completion_token_ids": [], "completion_logps": 0.0, "finish_reasons": "stop", "seeds": 0}
    for name, value in added.items():
        columns[name] = [[of_policy, value] for (of_policy,) in columns[name]]
    return pa.table(columns, schema=COMPLETIONS)


def preference(logits: Sequence[Sequence[float]]) -> float:
    """1 + P(the first of two answers wins) of a scorer's pair logits in both orders; NaN without a verdict."""
    return 1.0 + float(pairwise_win_probabilities(np.array(logits, dtype=np.float64))[0, 1])


def items_of(inputs: Iterable[pa.Table], annotations: Iterable[pa.Table]) -> Iterator[Item]:
    """The items of ALPACA_EVAL_INPUT with their SCORES, shard by shard."""
    for shard, scores in zip(inputs, annotations, strict=True):
        for row, scored in zip(shard.to_pylist(), scores.to_pylist(), strict=True):
            yield Item(
                row,
                scored["completions"][0],
                scored["finish_reasons"][0] == "length",
                is_from_file(scored),
                preference(scored["pair_logits"]),
                scored["scorer"],
                scored["num_truncated"],
            )


def gamed_rows(items: Sequence[Item]) -> Gamed:
    """The rows of the gamed baselines in the order of their file, which decides about the folds of the fit."""
    rows = [(entry["row"], entry, item.row["difficulty"]) for item in items for entry in item.row["gamed"]]
    rows.sort(key=lambda row: row[0])
    return Gamed(
        np.array([entry["preference"] for _, entry, _ in rows]),
        np.array([entry["length"] for _, entry, _ in rows]),
        np.array([difficulty for _, _, difficulty in rows]),
    )


def output_records(items: Iterable[Item], generator: str) -> Iterator[dict[str, Any]]:
    """The rows of model_outputs.json."""
    for item in items:
        dataset = item.row["dataset"]
        yield {"instruction": item.instruction, "dataset": dataset, "output": item.output, "generator": generator}


def annotation_records(
    items: Sequence[Item], generator: str, predictions: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    """The rows of annotations.json. predictions: [items] P(wins) without the effect of length, if they are known."""
    for place, item in enumerate(items):
        row = {
            "instruction": item.instruction,
            "output_1": item.baseline,
            "generator_1": item.row["baseline"],
            "dataset": item.row["dataset"],
            "output_2": item.output,
            "generator_2": generator,
            "annotator": item.annotator,
            "preference": item.preference,
        }
        yield row if predictions is None else row | {"glm_preference": predictions[place]}
