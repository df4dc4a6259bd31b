"""Shards as the stages of a run leave them, small enough to write down in a test."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from engine.algorithms.base import Selection
from engine.schema import NO_DATASET_COMPLETIONS, PROMPTS, SCORES, conform


def logits_of(*scores: float) -> list[list[float]]:
    """Pair logits of a scorer that compares scores."""
    return [[a - b for b in scores] for a in scores]


def shard(schema: pa.Schema, sizes: list[int], **columns: list[Any]) -> pa.Table:
    """One prompt per size K, with answers "answer 0", "answer 1", ... unless `columns` says otherwise."""
    values: dict[str, list[Any]] = {
        "prompt_id": [f"p{i}" for i in range(len(sizes))],
        "messages": [[{"role": "user", "content": f"question {i}"}] for i in range(len(sizes))],
        "prompt_text": [f"question {i}" for i in range(len(sizes))],
        "prompt_token_ids": [[100 + i] for i in range(len(sizes))],
        **{name: [[]] * len(sizes) for name in NO_DATASET_COMPLETIONS},
        "completions": [[f"answer {j}" for j in range(k)] for k in sizes],
        "completion_token_ids": [[[j, 9] for j in range(k)] for k in sizes],
        "completion_logps": [[-1.0] * k for k in sizes],
        "finish_reasons": [["stop"] * k for k in sizes],
        "seeds": [list(range(k)) for k in sizes],
        "weights": ["w" * 64] * len(sizes),
        "num_from_policy": sizes,
        "pair_logits": [logits_of(*range(k)) for k in sizes],
        "scores": [[]] * len(sizes),
        "num_truncated": [0] * len(sizes),
        "verdicts": [[]] * len(sizes),
        "scorer": ["test"] * len(sizes),
        "previous_scores": [[]] * len(sizes),
    }
    assert columns.keys() <= values.keys()
    values |= columns
    table = pa.Table.from_pydict({name: values[name] for name in schema.names}, schema)
    return conform(table, schema, "test")


def scored(*logits: list[list[float]], **columns: list[Any]) -> pa.Table:
    """One prompt per matrix of pair logits."""
    return shard(SCORES, [len(matrix) for matrix in logits], pair_logits=list(logits), **columns)


def rated(*scores: list[float], schema: pa.Schema = SCORES, **columns: list[Any]) -> pa.Table:
    """One prompt per list of scores that a judge gave one by one."""
    sizes, logits = [len(row) for row in scores], [logits_of(*row) for row in scores]
    return shard(schema, sizes, pair_logits=logits, scores=list(scores), **columns)


def given(*answers: tuple[str, ...], schema: pa.Schema = PROMPTS, **columns: list[Any]) -> pa.Table:
    """A prompt per tuple of data set completions, chosen first, and one sample; a letter is a token, 9 the end."""
    brought = {
        "dataset_completions": [list(row) for row in answers],
        "dataset_token_ids": [[[*map(ord, answer), 9] for answer in row] for row in answers],
        "dataset_win_rates": [[1.0, 0.0][: len(row)] for row in answers],
    }
    return shard(schema, [1] * len(answers), **(brought | columns))


def only_row(selection: Selection) -> dict[str, Any]:
    """The one row that was selected."""
    assert selection.rows.num_rows == 1
    return selection.rows.to_pylist()[0]
