"""One answer of the policy to each instruction of a benchmark: prompts, the stage that asks, answers from elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from engine.benchmarks.base import Result
from engine.benchmarks.files import quoted
from engine.data.ingest import Renderer, content_id
from engine.data.values import MAX_SHOWN
from engine.errors import DataError, ModelError
from engine.loop.roles import Generator, Roles, Timed
from engine.loop.stages import Stage, num_tokens, require_weights
from engine.schema import COMPLETIONS, PROMPTS, append
from engine.store.reader import Policy


@dataclass
class Answers(Stage[pa.Table]):
    """One answer to each instruction. A benchmark's own subclass names the stage, its input and its purpose."""

    of = "version"
    schema = COMPLETIONS
    role = "generator"
    purpose: ClassVar[str]
    """Enters the seeds."""
    policy: Policy
    temperature: float
    max_new_tokens: int
    reads_iteration = 0

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        # The same seeds for every version: two versions then differ by their weights alone.
        return roles.generator.submit(
            Generator.generate,
            table.select(PROMPTS.names),
            iteration=0,
            num_samples=1,
            temperature=self.temperature,
            purpose=self.purpose,
            max_new_tokens=self.max_new_tokens,
        )

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return require_weights(result, self.policy)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"tokens": num_tokens(table)}


def prompt_rows(instructions: Sequence[str], chat: Renderer, max_tokens: int, key: str) -> list[dict[str, Any]]:
    """The columns of engine.schema.PROMPTS, without those of the data set's answers, one row per instruction.

    key: of the benchmark's section. Raises one DataError for all that are longer than `max_tokens` with the chat
    template, or that it refuses.
    """
    rows, problems, occurrences = [], [], Counter[str]()
    for number, text in enumerate(instructions, start=1):
        messages = [{"role": "user", "content": text}]
        try:
            rendered, token_ids = chat.render(messages)
        except ModelError as error:
            problems.append(f"instruction {number}, {quoted(text)}: {error}")
            continue
        if len(token_ids) > max_tokens:
            problems.append(f"instruction {number}, {quoted(text)}: {len(token_ids)} tokens; the limit is {max_tokens}")
        digest = content_id(messages)
        rows.append(
            {
                "prompt_id": f"{digest}-{occurrences[digest]}",
                "messages": messages,
                "prompt_text": rendered,
                "prompt_token_ids": token_ids,
            }
        )
        occurrences[digest] += 1
    if problems:
        more = [f"... and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        lines = "\n".join(f"  {problem}" for problem in [*problems[:MAX_SHOWN], *more])
        raise DataError(f"{key}: {len(problems)} of {len(instructions)} instructions; see max_prompt_tokens:\n{lines}")
    return rows


def is_from_file(row: Mapping[str, Any]) -> bool:
    """Whether the first answer of a row of COMPLETIONS was made by `answered`, so that its sampling is not known."""
    return not row["completion_token_ids"][0]


def sampling_facts(
    rows: Iterable[Mapping[str, Any]], temperature: float, max_new_tokens: int, seed: int
) -> dict[str, str]:
    """How the answers in COMPLETIONS were sampled, for `provenance`. seed: of the run."""
    if any(is_from_file(row) for row in rows):
        return {"sampling": "not known, the answers come from a file"}
    return {
        "sampling": f"temperature {temperature:g}, top_p 1, at most {max_new_tokens} tokens",
        "seeds": f"derived from {seed}, the same for every version",
    }


def truncated_result(truncated: Sequence[bool], from_file: bool) -> Result:
    """How many answers were cut; NaN where they come from a file."""
    if from_file:
        return Result("truncated", math.nan, num=len(truncated), note="not known, the answers come from a file")
    return Result("truncated", sum(truncated), num=len(truncated), note="answers that were cut")


def answered(inputs: pa.Table, answers: Sequence[str], policy: Policy) -> pa.Table:
    """COMPLETIONS with answers that exist already, as `policy` stands for them. Their tokens are not known."""
    count = inputs.num_rows
    return append(
        inputs.select(PROMPTS.names),
        COMPLETIONS,
        f"answers of {policy.folder}",
        completions=[[answer] for answer in answers],
        completion_token_ids=[[[]]] * count,
        completion_logps=[[0.0]] * count,
        finish_reasons=[["stop"]] * count,
        seeds=[[0]] * count,
        weights=[policy.digest] * count,
        num_from_policy=[1] * count,
    )
