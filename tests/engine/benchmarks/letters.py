"""A benchmark for tests: how many letters "a" the policy writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.config.evaluation import EvaluationConfig
from engine.config.prompts import PromptsConfig
from engine.data.ingest import Renderer, ingest, shards
from engine.errors import DataError
from engine.loop.heldout import HeldoutCompletions
from engine.loop.stages import Stage
from engine.schema import COMPLETIONS
from engine.store.reader import Policy

PROMPTS = str(Path(__file__).parents[3] / "recipes/configs/smoke_prompts.jsonl")


class Answers(HeldoutCompletions):
    name = "letters_completions"
    reads = "letters_input"


class Letters(Benchmark):
    name = "letters"
    broken = False
    """Whether its numbers cannot be computed."""

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        config = PromptsConfig(source=PROMPTS, limit=6)
        return list(shards(ingest(config, PROMPTS, chat, 512).table, 4))

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        return [Answers(policy, EvaluationConfig())]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        if self.broken:
            raise DataError("letters: broken")
        answers = [
            a for table in tables.of("letters_completions", COMPLETIONS) for (a,) in table["completions"].to_pylist()
        ]
        return [Result("a", sum(answer.count("a") for answer in answers) / len(answers), num=len(answers))]

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        return {"answers.txt": generator}
