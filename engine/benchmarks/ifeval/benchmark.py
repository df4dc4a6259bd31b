"""IFEval (arXiv 2311.07911): the share of instructions in prompts that answers follow, checked by programs.

On any prompts in the form of google/IFEval's input_data.jsonl. Answers are greedy; accuracies are those of the paper,
per prompt and per instruction, strict and loose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.benchmarks.answers import Answers
from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import jsonl, read_objects
from engine.benchmarks.ifeval.checks import STRICTNESSES, Task, followed, read_tasks
from engine.config.benchmarks import IFEvalConfig
from engine.data.ingest import Renderer, content_id, shards
from engine.data.values import RowError
from engine.errors import DataError, ModelError
from engine.evaluation.statistics import clustered_mean, clustered_stderr
from engine.loop.stages import Stage, require_weights
from engine.schema import IFEVAL_ANSWERS, IFEVAL_PROMPTS, NO_DATASET_COMPLETIONS, append
from engine.store.reader import Policy

INPUT = "ifeval_input"
ANSWERS = "ifeval_answers"


@dataclass
class CheckedAnswers(Answers):
    """The policy's greedy answers, and which instructions each follows."""

    name = ANSWERS
    schema = IFEVAL_ANSWERS
    purpose = "ifeval"
    reads = INPUT
    reads_schema = IFEVAL_PROMPTS

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        require_weights(result, self.policy)
        answers = [answer for (answer,) in result["completions"].to_pylist()]
        ends = [end for (end,) in result["finish_reasons"].to_pylist()]
        return checked(table, answers, ends, self.policy.digest)

    def counts(self, table: pa.Table, result: pa.Table) -> dict[str, int]:
        return {"truncated": sum(end == "length" for (end,) in result["finish_reasons"].to_pylist())}

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"answers": table.num_rows}


class IFEval(Benchmark):
    """IFEval on the prompts of a file or hub data set."""

    name = "ifeval"
    input_schema = IFEVAL_PROMPTS

    def __init__(self, config: IFEvalConfig, shard_size: int):
        self._config, self._shard_size = config, shard_size

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        tasks = read_tasks(self._config.prompts)[: self._config.limit]
        rows, problems = [], []
        for task in tasks:
            try:
                rows.append(self._row(task, chat))
            except (DataError, ModelError) as error:
                problems.append(f"key {task.key}: {error}")
        if problems:
            raise DataError("\n  ".join([f"{self._config.prompts}: prompts that cannot be asked:", *problems[:10]]))
        return shards(pa.Table.from_pylist(rows, IFEVAL_PROMPTS), self._shard_size)

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        return [CheckedAnswers(policy, 0.0, self._config.max_new_tokens)]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        rows = list(_rows(tables))
        cut = sum(row["answer_end"] == "length" for row in rows)
        note = f"{cut} of {len(rows)} answers were cut at {self._config.max_new_tokens} tokens" if cut else ""
        results = []
        for strictness in STRICTNESSES:
            marks = [row[strictness] for row in rows]
            results.append(_result(f"prompt_level_{strictness}_acc", [[all(of_prompt)] for of_prompt in marks], note))
            results.append(_result(f"inst_level_{strictness}_acc", marks, note))
        return results

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """The files of google's evaluation_main: the answers, and what each follows."""
        rows = list(_rows(tables))
        files = {"input_response_data.jsonl": jsonl({"prompt": r["prompt"], "response": r["answer"]} for r in rows)}
        for strictness in STRICTNESSES:
            files[f"eval_results_{strictness}.jsonl"] = jsonl(
                {
                    "follow_all_instructions": all(row[strictness]),
                    "follow_instruction_list": row[strictness],
                    "instruction_id_list": row["instructions"],
                    "prompt": row["prompt"],
                    "response": row["answer"],
                }
                for row in rows
            )
        return files

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """From a file in the form of google's input_response_data.jsonl: `prompt` and `response`."""
        answers = dict(read_objects(str(path), _response, "prompt", lambda pair: pair[0]))
        asked = [prompt for table in inputs for prompt in table["prompt"].to_pylist()]
        if missing := [prompt for prompt in asked if prompt not in answers]:
            raise DataError(
                f"{path}: lacks answers to {len(missing)} of {len(asked)} prompts, first {missing[0][:80]!r}"
            )
        tables = []
        for table in inputs:
            texts = [answers[prompt] for prompt in table["prompt"].to_pylist()]
            tables.append(checked(table, texts, ["stop"] * len(texts), policy.digest))
        return {ANSWERS: tables}

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        from importlib.metadata import version

        names = [name for table in tables.input() for name in table["prompt_id"].to_pylist()]
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        return {
            "prompts": f"{len(names)} of {Path(self._config.prompts).name}, {digest}",
            "sampling": f"greedy, at most {self._config.max_new_tokens} tokens",
            "checkers": f"lm_eval {version('lm_eval')}",
        }

    def is_published(self, metric: str) -> bool:
        return self._config.prompts == "google/IFEval" and self._config.limit is None

    def _row(self, task: Task, chat: Renderer) -> dict[str, Any]:
        messages = [{"role": "user", "content": task.prompt}]
        text, token_ids = chat.render(messages)
        if len(token_ids) > self._config.max_prompt_tokens:
            raise DataError(
                f"{len(token_ids)} tokens; evaluation.benchmarks.ifeval.max_prompt_tokens is "
                f"{self._config.max_prompt_tokens}"
            )
        return {
            "prompt_id": f"{content_id(messages)}-{task.key}",
            "messages": messages,
            "prompt_text": text,
            "prompt_token_ids": token_ids,
            **NO_DATASET_COMPLETIONS,
            "prompt": task.prompt,
            "instructions": list(task.instructions),
            "kwargs": [json.dumps(arguments, sort_keys=True) for arguments in task.kwargs],
        }


def checked(table: pa.Table, answers: list[str], ends: list[str], weights: str) -> pa.Table:
    """IFEVAL_PROMPTS with answers as IFEVAL_ANSWERS."""
    marks = []
    for row, answer in zip(table.to_pylist(), answers, strict=True):
        kwargs = tuple(json.loads(arguments) for arguments in row["kwargs"])
        marks.append(followed(Task("", row["prompt"], tuple(row["instructions"]), kwargs), answer))
    return append(
        table,
        IFEVAL_ANSWERS,
        ANSWERS,
        answer=answers,
        answer_end=ends,
        strict=[mark["strict"] for mark in marks],
        loose=[mark["loose"] for mark in marks],
        weights=[weights] * table.num_rows,
    )


def _result(metric: str, marks: list[list[bool]], note: str) -> Result:
    """The mean of all marks. Those of one prompt are not independent."""
    values = [float(mark) for of_prompt in marks for mark in of_prompt]
    prompts = [number for number, of_prompt in enumerate(marks) for _ in of_prompt]
    mean = clustered_mean(values, prompts)
    return Result(metric, mean.mean, clustered_stderr(values, prompts), mean.low, mean.high, len(values), note)


def _rows(tables: BenchmarkTables) -> Iterator[dict[str, Any]]:
    for table in tables.of(ANSWERS, IFEVAL_ANSWERS):
        yield from table.to_pylist()


def _response(row: dict[str, Any]) -> tuple[str, str]:
    prompt, response = row.get("prompt"), row.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise RowError("expected texts in `prompt` and `response`")
    return prompt, response
