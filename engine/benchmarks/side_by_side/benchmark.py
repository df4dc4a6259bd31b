"""Side by side: the answers of policies to the same instructions, for people to read.

No published benchmark, and no number that says which policy is better: beside the answers stand their lengths, the
annotator's scores, and whether an instruction was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms.preference import pairwise_win_probabilities
from engine.benchmarks.alpaca_eval.files import read_outputs
from engine.benchmarks.alpaca_eval.items import with_baseline
from engine.benchmarks.answers import (
    Answers,
    answered,
    is_from_file,
    prompt_rows,
    sampling_facts,
    truncated_result,
)
from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import dataset_file, read_objects, shown
from engine.benchmarks.side_by_side import comparison
from engine.benchmarks.side_by_side.comparison import Answer, Comparison
from engine.config.benchmarks import SideBySideConfig
from engine.config.run import RoleName
from engine.data.ingest import Renderer, shards
from engine.data.values import text_of
from engine.loop.roles import Roles, Scorer, Timed
from engine.loop.stages import Stage
from engine.schema import COMPLETIONS, NO_DATASET_COMPLETIONS, PROMPTS, SIDE_BY_SIDE_SCORES
from engine.store.reader import Policy

KEY = "evaluation.benchmarks.side_by_side"
INPUT, ANSWERS, SCORES = "side_by_side_input", "side_by_side_completions", "side_by_side_scores"
SCORE_NOTE = (
    "mean of the annotator's own scores, or, where it compares answers, of P(the answer beats the one in the file)"
)


@dataclass
class SideBySideAnswers(Answers):
    """The policy's answers."""

    name = ANSWERS
    purpose = "side_by_side"
    reads = INPUT
    reads_schema = PROMPTS


@dataclass
class SideBySideScores(Stage[pa.Table]):
    """The annotator's score of each answer, alone or beside the one that the file brings."""

    name = SCORES
    of = "version"
    schema = SIDE_BY_SIDE_SCORES
    role: RoleName
    policy = None
    reads = ANSWERS
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        has_answer = table.num_rows > 0 and len(table["dataset_completions"][0]) > 0
        return roles.annotator.submit(Scorer.score, with_baseline(table) if has_answer else table)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        scores = [_score(row) for row in result.select(["scores", "pair_logits"]).to_pylist()]
        return pa.table([table["prompt_id"], scores, result["scorer"]], names=SIDE_BY_SIDE_SCORES.names)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"completions": table.num_rows}


class SideBySide(Benchmark):
    """The answers of one version of the policy; `together` puts several beside each other."""

    name = "side_by_side"

    def __init__(self, config: SideBySideConfig, role: RoleName | None, seed: int, shard_size: int):
        """role: that of the annotator; None: there is none. seed: of the run. shard_size: instructions per shard."""
        self._config, self._role, self._seed, self._shard_size = config, role, seed, shard_size

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        config = self._config
        rows = read_objects(
            dataset_file(config.prompts, f"{KEY}.prompts"), self._row, "instruction", lambda row: row[0]
        )
        used = rows[: config.limit]
        prompts = prompt_rows([text for text, _ in used], chat, config.max_prompt_tokens, KEY)
        given = all(answer for _, answer in used)
        return shards(
            pa.Table.from_pylist(
                [
                    prompt | _dataset_columns(answer if given else "")
                    for prompt, (_, answer) in zip(prompts, used, strict=True)
                ],
                PROMPTS,
            ),
            self._shard_size,
        )

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        config = self._config
        asked: list[Stage[Any]] = [SideBySideAnswers(policy, config.temperature, config.max_new_tokens)]
        return [*asked, SideBySideScores(self._role)] if self._role else asked

    def results(self, tables: BenchmarkTables) -> list[Result]:
        answers = list(_answers(tables).values())
        lengths = [len(answer.text) for answer in answers]
        scores = [answer.score for answer in answers if not math.isnan(answer.score)]
        stderr = float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan
        overlap = tables.overlap()
        found = [
            Result("avg_length", float(np.mean(lengths)), num=len(answers), note="characters"),
            truncated_result([a.is_truncated for a in answers], any(map(is_from_file, _rows(tables)))),
            Result("empty", sum(not a.text for a in answers), num=len(answers), note="answers without text"),
        ]
        if scores:
            found.append(Result("score", float(np.mean(scores)), stderr, num=len(scores), note=SCORE_NOTE))
        if overlap:
            seen = len(overlap.exact) + len(overlap.similar)
            found.append(Result("trained_on", seen, num=overlap.num_prompts, note=str(overlap)))
        return found

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """Nothing for one policy alone."""
        return {}

    def together(self, tables: Mapping[str, BenchmarkTables]) -> dict[str, str]:
        comparisons = side_by_side(tables)
        return {
            "side_by_side.csv": comparison.to_csv(comparisons),
            "side_by_side.md": comparison.to_markdown(comparisons),
            "side_by_side.html": comparison.to_html(comparisons),
        }

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """The answers of a file in the form of model_outputs.json, which may hold others, too."""
        asked = [messages[0]["content"] for table in inputs for messages in table["messages"].to_pylist()]
        rows = read_objects(dataset_file(self._config.prompts, f"{KEY}.prompts"), self._row, "", lambda row: row[0])
        outputs = iter(read_outputs(path, asked, [text for text, _ in rows]).outputs)
        return {ANSWERS: [answered(table, [next(outputs) for _ in range(table.num_rows)], policy) for table in inputs]}

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        config = self._config
        scorers = {name for table in tables.of(SCORES, SIDE_BY_SIDE_SCORES) for name in table["scorer"].to_pylist()}
        return {
            "instructions": shown(config.prompts),
            "judge": ", ".join(sorted(scorers)) or "none",
            **sampling_facts(_rows(tables), config.temperature, config.max_new_tokens, self._seed),
        }

    def _row(self, row: dict[str, Any]) -> tuple[str, str]:
        """The instruction, and the answer that the file brings or ""."""
        names = [self._config.column] if self._config.column else ["instruction", "prompt", "question"]
        name = next((name for name in names if row.get(name)), names[0])
        answer = row.get("reference_output", row.get("output"))
        return text_of(row.get(name), name), text_of(answer or "", "output")


def side_by_side(tables: Mapping[str, BenchmarkTables]) -> list[Comparison]:
    """The committed answers of several policies, {name: tables}, to the same instructions."""
    first = next(iter(tables.values()))
    rows = (row for table in first.input() for row in table.select(["prompt_id", "messages"]).to_pylist())
    instructions = {row["prompt_id"]: row["messages"][0]["content"] for row in rows}
    known = [overlap for of_policy in tables.values() if (overlap := of_policy.overlap())]
    seen = {name: "n-gram" for overlap in known for name in overlap.similar}
    seen |= {name: "exact" for overlap in known for name in overlap.exact}
    answers = {policy: _answers(of_policy) for policy, of_policy in tables.items()}
    return comparison.compare(instructions, answers, seen if known else None)


def _answers(tables: BenchmarkTables) -> dict[str, Answer]:
    """{prompt id: answer} of one version, without white space around it."""
    scored: Iterable[tuple[str, float]] = (
        pair
        for table in tables.of(SCORES, SIDE_BY_SIDE_SCORES)
        for pair in zip(table["prompt_id"].to_pylist(), table["score"].to_pylist(), strict=True)
    )
    scores = dict(scored)
    return {
        row["prompt_id"]: Answer(
            row["completions"][0].strip(), row["finish_reasons"][0] == "length", scores.get(row["prompt_id"], math.nan)
        )
        for row in _rows(tables)
    }


def _rows(tables: BenchmarkTables) -> Iterator[dict[str, Any]]:
    return (row for table in tables.of(ANSWERS, COMPLETIONS) for row in table.to_pylist())


def _score(row: dict[str, Any]) -> float:
    """The annotator's own score of the first answer, else P(it beats the second); NaN where there is neither."""
    if row["scores"]:
        return float(row["scores"][0])
    logits = np.array(row["pair_logits"], dtype=np.float64)
    return float(pairwise_win_probabilities(logits)[0, 1]) if len(logits) > 1 else math.nan


def _dataset_columns(answer: str) -> dict[str, Any]:
    if not answer:
        return NO_DATASET_COMPLETIONS
    return {"dataset_completions": [answer], "dataset_token_ids": [[]], "dataset_win_rates": [1.0]}
