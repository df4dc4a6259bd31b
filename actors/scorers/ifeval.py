"""The share of instructions that an answer follows, as a reward that a program verifies."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from actors.scorers.base import PairScores, Scorer
from engine.benchmarks.ifeval.checks import Task, followed, read_tasks
from engine.config.scorer import IFEvalScorerConfig
from engine.errors import ConfigError, RoleError


class IFEvalScorer(Scorer):
    """Compares answers by the instructions that they follow; instructions are found by the text of the prompt."""

    def __init__(self, config: IFEvalScorerConfig):
        self._config = config

    def start(self) -> None:
        from importlib.metadata import version

        tasks = read_tasks(self._config.prompts)
        self._tasks = {task.prompt: task for task in tasks}
        if len(self._tasks) < len(tasks):
            raise ConfigError([f"scorer.prompts = {self._config.prompts}: some prompts occur more than once"])
        settings = [version("lm_eval"), self._config.strictness, self._config.scale, sorted(map(repr, tasks))]
        self.id = f"ifeval:{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}"

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        prompts = [row["messages"][-1]["content"] for row in rows]
        if unknown := [
            row["prompt_id"] for row, prompt in zip(rows, prompts, strict=True) if prompt not in self._tasks
        ]:
            raise RoleError(
                f"{self.id}: {len(unknown)} prompts are not in {self._config.prompts}, first prompt_id {unknown[0]}; "
                f"train on the prompts of that file"
            )
        return [self._scores(self._tasks[p], row["completions"]) for p, row in zip(prompts, rows, strict=True)]

    def _scores(self, task: Task, answers: list[str]) -> PairScores:
        shares = np.array([share(task, answer, self._config) for answer in answers])
        return PairScores(self._config.scale * (shares[:, None] - shares[None, :]), 0)


def share(task: Task, answer: str, config: IFEvalScorerConfig) -> float:
    """Share of the task's instructions that the answer follows, in [0, 1]."""
    marks = followed(task, answer)[config.strictness]
    return math.fsum(marks) / len(marks)
