"""How the policy answers the requests of lm-evaluation-harness: likelihoods of given texts, and written texts."""

from __future__ import annotations

import math
from typing import Any

from actors.vllm_engine import GivenToken, SampleRequest, VLLMEngine
from engine.schema import arrow_safe
from engine.seeds import derive_seed

Row = dict[str, Any]
"""A row of engine.schema.REQUESTS."""


def respond(engine: VLLMEngine, rows: list[Row], seed: int) -> dict[str, list[Any]]:
    """The columns `logps`, `greedy` and `texts` of engine.schema.RESPONSES, one value per row.

    seed: of the run; that of a row is derived from it and the row's name. Raises vLLM's own errors.
    """
    given = [row for row in rows if not row["num_samples"]]
    likelihoods, texts = iter(_likelihoods(engine, given)), iter(_texts(engine, rows, seed))
    columns: dict[str, list[Any]] = {"logps": [], "greedy": [], "texts": []}
    for row in rows:
        tokens = [] if row["num_samples"] else next(likelihoods)
        columns["logps"].append([math.fsum(token.logp for token in answer) for answer in tokens])
        columns["greedy"].append([all(token.likeliest for token in answer) for answer in tokens])
        columns["texts"].append(next(texts) if row["num_samples"] else [])
    return columns


def _likelihoods(engine: VLLMEngine, rows: list[Row]) -> list[list[list[GivenToken]]]:
    """[rows][K][tokens] of the given continuations.

    Continuations of one token, as in MMLU, take one request per context together, which may reuse the cached beginning
    of an earlier context; others take one request each, in which vLLM reads the whole context again.
    """
    short = [all(len(ids) == 1 for ids in row["continuation_token_ids"]) for row in rows]
    one = [row for row, is_short in zip(rows, short, strict=True) if is_short]
    pairs = [
        (row["context_token_ids"], ids)
        for row, is_short in zip(rows, short, strict=True)
        if not is_short
        for ids in row["continuation_token_ids"]
    ]
    followed = iter(
        engine.follow(
            [row["context_token_ids"] for row in one],
            [[token for (token,) in row["continuation_token_ids"]] for row in one],
        )
    )
    scored = iter(engine.score([context for context, _ in pairs], [ids for _, ids in pairs]))
    return [
        [[token] for token in next(followed)] if is_short else [next(scored) for _ in row["continuation_token_ids"]]
        for row, is_short in zip(rows, short, strict=True)
    ]


def _texts(engine: VLLMEngine, rows: list[Row], seed: int) -> list[list[str]]:
    """[rows that are to be written][num_samples] texts; the one of `until` that ended a text may be in it."""
    requests = [
        SampleRequest(
            row["context_token_ids"],
            row["num_samples"],
            derive_seed(seed, "respond", row["task"], row["document"], row["request"]),
            row["temperature"],
            row["max_new_tokens"],
            tuple(row["until"]),
        )
        for row in rows
        if row["num_samples"]
    ]
    return [[arrow_safe(engine.decode(sample.token_ids)) for sample in samples] for samples in engine.sample(requests)]
