"""The stages of evaluation: held-out prompts -> completions -> win rates, once per version of the policy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.config.evaluation import EvaluationConfig
from engine.config.run import RunConfig
from engine.evaluation import statistics
from engine.loop.roles import Generator, RoleName, Roles, Scorer, Timed
from engine.loop.stages import Stage, join_completions, matrices, num_tokens, require_weights
from engine.schema import COMPLETIONS, HELDOUT_WIN_RATES, PROMPTS, append
from engine.store.reader import Policy

HeldoutAnswers = Callable[[int, int], pa.Table]
"""(version, shard) -> that version's answers to a shard of held-out prompts."""


@dataclass
class HeldoutCompletions(Stage[pa.Table]):
    """The policy's answers to held-out prompts."""

    name = "heldout_completions"
    of = "version"
    schema = COMPLETIONS
    role = "generator"
    policy: Policy
    config: EvaluationConfig
    reads = "heldout_prompts"
    reads_schema = PROMPTS
    reads_iteration = 0

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        # The same seeds for every version: two versions then differ by their weights alone.
        return roles.generator.submit(
            Generator.generate,
            table,
            iteration=0,
            num_samples=self.config.num_samples,
            temperature=self.config.temperature,
            purpose="evaluate",
        )

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return require_weights(result, self.policy)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"tokens": num_tokens(table)}


@dataclass
class HeldoutWinRates(Stage[pa.Table]):
    """Win rates of the policy's held-out answers against those of the start policy and of the version before."""

    name = "heldout_win_rates"
    of = "version"
    schema = HELDOUT_WIN_RATES
    role: RoleName
    policy: Policy
    answers: HeldoutAnswers
    reads = "heldout_completions"
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        start, previous = (self.answers(version, shard) for version in (0, self.policy.version - 1))
        return roles.evaluator.submit(Scorer.score, join_completions(table, start, previous))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        m = len(table["completions"][0])
        against_start = range(2 * m)
        against_previous = [*range(m), *range(2 * m, 3 * m)]
        return append(
            table,
            HELDOUT_WIN_RATES,
            f"version {self.policy.version} on held-out prompts",
            win_vs_start=[_win_rate(matrix[np.ix_(against_start, against_start)], m) for matrix in matrices(result)],
            win_vs_previous=[
                _win_rate(matrix[np.ix_(against_previous, against_previous)], m) for matrix in matrices(result)
            ],
            evaluator=result["scorer"],
        )

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"prompts": table.num_rows}


def heldout_stages(config: RunConfig, policy: Policy, answers: HeldoutAnswers) -> list[Stage[Any]]:
    """The stages from held-out prompts to win rates of one version; version 0 has no win rates."""
    assert config.evaluation is not None
    completions = HeldoutCompletions(policy, config.evaluation)
    win_rates = HeldoutWinRates(config.evaluating_role, policy, answers)
    return [completions, win_rates] if policy.version else [completions]


def _win_rate(logits: np.ndarray, m: int) -> float:
    """Share of the pairs that the first m answers win against the others."""
    return statistics.win_rate_from_margins(statistics.margins_from_pair_logits(logits, m))
