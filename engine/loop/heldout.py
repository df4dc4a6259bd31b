"""The stages of evaluation: held-out prompts -> completions -> win rates, once per version of the policy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.config.evaluation import EvaluationConfig
from engine.config.run import RunConfig
from engine.evaluation import statistics
from engine.loop.roles import Generator, RoleName, Roles, Scorer, Timed
from engine.loop.stages import Stage, join_completions, matrices, num_tokens, require_weights
from engine.schema import COMPLETIONS, HELDOUT_START_LOGPS, HELDOUT_WIN_RATES, PROMPTS, append
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
class HeldoutStartLogps(Stage[list[list[float]]]):
    """Log-probabilities of the policy's held-out answers under the start policy, for the KL divergence."""

    name = "heldout_start_logps"
    of = "version"
    schema = HELDOUT_START_LOGPS
    role = "generator"
    policy: Policy
    """The start policy."""
    reads = "heldout_completions"
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[list[list[float]]]]:
        return roles.generator.submit(Generator.answer_logps, table)

    def finish(self, table: pa.Table, result: list[list[float]]) -> pa.Table:
        return pa.table([table["prompt_id"], result], names=HELDOUT_START_LOGPS.names)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"completions": len(pc.list_flatten(table["start_logps"]))}


@dataclass
class HeldoutWinRates(Stage[pa.Table]):
    """Win rates of the policy's held-out answers against those of earlier versions."""

    name = "heldout_win_rates"
    of = "version"
    schema = HELDOUT_WIN_RATES
    role: RoleName
    policy: Policy
    previous: int
    """The version from which the policy was trained."""
    current: int
    """The version that the gate promoted last."""
    ladder: bool
    """Compare with every earlier version; else with the start, `previous` and `current`."""
    answers: HeldoutAnswers
    reads = "heldout_completions"
    reads_schema = COMPLETIONS

    @property
    def opponents(self) -> list[int]:
        return list(range(self.policy.version)) if self.ladder else sorted({0, self.previous, self.current})

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        """One row per opponent and prompt: a scorer compares all answers of a row, so versions share no row."""
        rows = [join_completions(table, self.answers(version, shard)) for version in self.opponents]
        return roles.evaluator.submit(Scorer.score, pa.concat_tables(rows))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        n, m = table.num_rows, len(table["completions"][0])
        rates = [_win_rate(matrix, m) for matrix in matrices(result)]
        return append(
            table,
            HELDOUT_WIN_RATES,
            f"version {self.policy.version} on held-out prompts",
            opponents=[self.opponents] * n,
            win_rates=[rates[row::n] for row in range(n)],
            previous=[self.previous] * n,
            current=[self.current] * n,
            evaluator=result["scorer"].to_pylist()[:n],
        )

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"prompts": table.num_rows}


def heldout_stages(
    config: RunConfig, policy: Policy, previous: int, current: int, answers: HeldoutAnswers
) -> list[Stage[Any]]:
    """The stages from held-out prompts to the win rates of one version; the start has nothing to be compared with."""
    assert config.evaluation is not None
    stages: list[Stage[Any]] = [HeldoutCompletions(policy, config.evaluation)]
    if policy.version:
        ladder = config.evaluation.ladder
        stages.append(HeldoutWinRates(config.evaluating_role, policy, previous, current, ladder, answers))
    return stages


def _win_rate(logits: np.ndarray, m: int) -> float:
    """Share of the pairs that the first m answers win against the others."""
    return statistics.win_rate_from_margins(statistics.margins_from_pair_logits(logits, m))
