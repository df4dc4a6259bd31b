"""The stages of an iteration: the role that does the work, the input table, the output table, the checks.

    prompts -> completions -> start_completions -> scores -> previous_scores -> selected -> ref_logps -> learner
                    |                                |
                null_model                       agreement

An algorithm names the first four that it needs, in this order; each stage reads what the one before it committed. A
stage of a shard is a function of its input shard, the weights that its role serves, the config and seeds derived from
names. It may depend on nothing else, or a restart would compute something different.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.base import Algorithm, Selection
from engine.algorithms.preference import pairwise_win_probabilities
from engine.config.run import RunConfig
from engine.errors import WeightsError
from engine.evaluation import statistics
from engine.loop.roles import Generator, Learner, RoleName, Roles, Scorer, Timed
from engine.schema import (
    AGREEMENT,
    COMPLETIONS,
    NULL_MODEL,
    PREVIOUS_SCORES,
    PROMPTS,
    REF_LOGPS,
    SCORES,
    SELECTED,
    append,
)
from engine.store.reader import Owner, Policy

T = TypeVar("T")
Versions = Callable[[int], Policy]
"""version -> that policy, which is committed and undamaged."""


class Stage(ABC, Generic[T]):
    """One step of a shard: its input, the role that works on it, its output.

    T is the type of the role's result; `finish` turns it into the table that is committed.
    """

    name: ClassVar[str]
    """Name of the output in the store, in logs and in reports."""
    schema: ClassVar[pa.Schema]
    of: ClassVar[Owner] = "iteration"
    """Whether the output belongs to an iteration or to a version of the policy."""
    role: RoleName | None
    """The role that does the work; None: the driver."""
    policy: Policy | None
    """The version that the role must serve; None where it holds no policy."""
    reads: str
    """Name of the stage whose committed shards are the input."""
    reads_schema: pa.Schema
    reads_iteration: int | None = None
    """Iteration of the input; None: the iteration that is being computed."""

    @abstractmethod
    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[T]]:
        """Submit the work on shard number `shard` to the role."""

    @abstractmethod
    def finish(self, table: pa.Table, result: T) -> pa.Table:
        """Make the output table from input and result, in the driver. Raises if the result must not be used."""

    def counts(self, table: pa.Table, result: T) -> dict[str, int]:
        """Counts committed with the output: the number of prompts or answers to which each declared rule applied."""
        return {}

    @abstractmethod
    def amounts(self, table: pa.Table) -> dict[str, float]:
        """Size of the output in tokens, pairs or rows, for rates."""


@dataclass
class Completions(Stage[pa.Table]):
    """K answers of the policy to each prompt."""

    name = "completions"
    schema = COMPLETIONS
    role = "generator"
    policy: Policy
    iteration: int
    reads: str = "prompts"
    reads_schema = PROMPTS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.generator.submit(Generator.generate, table, iteration=self.iteration)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return require_weights(result, self.policy)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"tokens": num_tokens(table), "completions": _num_answers(table)}


@dataclass
class StartCompletions(Stage[pa.Table]):
    """Appends K answers of the start policy to the policy's own (anchored rejection, arXiv 2508.06026)."""

    name = "start_completions"
    schema = COMPLETIONS
    role = "generator"
    policy: Policy
    """The start policy."""
    iteration: int
    reads: str = "completions"
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        prompts = table.select(PROMPTS.names)
        return roles.generator.submit(Generator.generate, prompts, iteration=self.iteration, purpose="anchor")

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return join_completions(table, require_weights(result, self.policy))

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"tokens": num_tokens(table)}


@dataclass
class Scores(Stage[pa.Table]):
    """The scorer compares the answers to each prompt."""

    name = "scores"
    schema = SCORES
    role: RoleName
    policy: Policy
    reads: str = "completions"
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.scorer.submit(Scorer.score, table)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return result

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"pairs": sum(len(answers) * (len(answers) - 1) for answers in table["completions"])}


@dataclass
class PreviousScores(Stage[pa.Table]):
    """The policy of the iteration before scores the same answers."""

    name = "previous_scores"
    schema = PREVIOUS_SCORES
    role: RoleName
    policy: Policy
    """The version before the iteration's."""
    reads: str = "scores"
    reads_schema = SCORES

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.scorer.submit(Scorer.score, table.select(COMPLETIONS.names))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return append(
            table, PREVIOUS_SCORES, "scores of the policy before", previous_scores=result["scores"].to_pylist()
        )

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"completions": _num_answers(table)}


@dataclass
class Selected(Stage[Selection]):
    """The training rows, with the counts of the algorithm; computed once, in the driver."""

    name = "selected"
    schema = SELECTED
    role = None
    policy = None
    algorithm: Algorithm
    reads: str
    reads_schema: pa.Schema

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[Selection]]:
        future: Future[Timed[Selection]] = Future()
        start = time.monotonic()
        selection = self.select(table)
        future.set_result(Timed(selection, start, time.monotonic()))
        return future

    def select(self, table: pa.Table) -> Selection:
        """The rows of a shard."""
        return self.algorithm.select(table)

    def finish(self, table: pa.Table, result: Selection) -> pa.Table:
        return result.rows

    def counts(self, table: pa.Table, result: Selection) -> dict[str, int]:
        counts = {**result.counts, "rows": result.rows.num_rows}
        if "num_truncated" in table.column_names:
            counts["scorer_truncated"] = pc.sum(table["num_truncated"]).as_py() or 0
        return counts

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"rows": table.num_rows}


@dataclass
class RefLogps(Stage[list[list[float]]]):
    """The selected rows with the log-probabilities of the reference policy."""

    name = "ref_logps"
    schema = REF_LOGPS
    role = "learner"
    policy: Policy
    """The reference."""
    reads = "selected"
    reads_schema = SELECTED

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[list[list[float]]]]:
        return roles.learner.submit(Learner.ref_logps, table)

    def finish(self, table: pa.Table, result: list[list[float]]) -> pa.Table:
        return append(table, REF_LOGPS, "reference log-probabilities", ref_logps=result)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"rows": table.num_rows}


@dataclass
class ScorerAgreement(Stage[pa.Table]):
    """The evaluator compares the same answers as the training scorer, to measure how often they agree."""

    name = "agreement"
    schema = AGREEMENT
    role: RoleName
    policy = None
    reads = "scores"
    reads_schema = SCORES

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.evaluator.submit(Scorer.score, table.select(COMPLETIONS.names))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        pairs = zip(matrices(table), matrices(result), strict=True)
        agreements = [statistics.agreement(scorer, evaluator) for scorer, evaluator in pairs]
        columns = [table["prompt_id"], [a.agreed for a in agreements], [a.num_pairs for a in agreements]]
        return pa.table(columns, names=AGREEMENT.names)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"pairs": pc.sum(table["comparable"]).as_py() or 0}


@dataclass
class NullModel(Stage[pa.Table]):
    """The null-model baseline: one constant answer without content against the policy's first (arXiv 2410.07137).

    The constant answers no prompt, so a judge that prefers it does not judge the content of answers.
    """

    name = "null_model"
    schema = NULL_MODEL
    role: RoleName
    policy: Policy
    text: str
    reads = "completions"
    reads_schema = COMPLETIONS
    num_prompts: ClassVar[int] = 8
    """Prompts per shard that are used."""

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        sample = table.take(list(range(min(self.num_prompts, table.num_rows))))
        return roles.scorer.submit(Scorer.score, self._with_baseline(sample))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        wins = [float(pairwise_win_probabilities(matrix)[1, 0]) for matrix in matrices(result)]
        return pa.table([result["prompt_id"], wins], names=NULL_MODEL.names)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"pairs": 2 * table.num_rows}

    def _with_baseline(self, completions: pa.Table) -> pa.Table:
        """Two answers per prompt: the policy's first, and `text`."""
        columns = {name: completions[name].to_pylist() for name in COMPLETIONS.names}
        baseline: dict[str, Any] = {
            "completions": self.text,
            "completion_token_ids": [],
            "completion_logps": 0.0,
            "finish_reasons": "stop",
            "seeds": 0,
        }
        for name, value in baseline.items():
            columns[name] = [[row[0], value] for row in columns[name]]
        return pa.table(columns, schema=COMPLETIONS)


def training_stages(config: RunConfig, version: Versions, iteration: int) -> list[Stage[Any]]:
    """The algorithm's stages, the reference's log-probabilities, and the checks of the scorer."""
    algorithm, role = config.algorithm, config.scoring_role
    stages: list[Stage[Any]] = []
    reads, reads_schema = "prompts", PROMPTS
    for name in algorithm.stages(iteration):
        stage: Stage[Any]
        if name == Completions.name:
            stage = Completions(version(iteration), iteration, reads)
        elif name == StartCompletions.name:
            stage = StartCompletions(version(0), iteration, reads)
        elif name == Scores.name:
            stage = Scores(role, version(iteration), reads)
        else:
            stage = PreviousScores(role, version(max(0, iteration - 1)), reads)
        stages.append(stage)
        reads, reads_schema = stage.name, stage.schema
        if name == Scores.name and config.null_model:  # right after it, while the same weights are loaded
            stages.append(NullModel(role, version(iteration), config.null_model))
    reference = version(0 if algorithm.reference == "start" else iteration)
    stages += [Selected(algorithm, reads, reads_schema), RefLogps(reference)]
    if Scores.name in algorithm.stages(iteration) and config.audits:
        stages.append(ScorerAgreement(config.evaluating_role))
    return stages


def join_completions(*tables: pa.Table) -> pa.Table:
    """Join the answers of all tables prompt by prompt, in this order; `weights` are those of the first table."""
    first = tables[0]
    columns = {name: first[name].to_pylist() for name in COMPLETIONS.names}
    for name in ("completions", "completion_token_ids", "completion_logps", "finish_reasons", "seeds"):
        rows = zip(*(table[name].to_pylist() for table in tables), strict=True)
        columns[name] = [[value for part in row for value in part] for row in rows]
    return pa.table(columns, schema=COMPLETIONS)


def require_weights(completions: pa.Table, policy: Policy) -> pa.Table:
    """Raise WeightsError for answers of other weights than those of `policy`; return the table."""
    others = sorted(set(completions["weights"].to_pylist()) - {policy.digest})
    if others:
        raise WeightsError(
            f"a generator answered with weights {others[0][:12]} instead of version {policy.version} "
            f"({policy.digest[:12]}); the shard was not committed"
        )
    return completions


def matrices(scores: pa.Table) -> list[np.ndarray]:
    """The [K, K] pair logits of each row."""
    return [np.array(matrix) for matrix in scores["pair_logits"].to_pylist()]


def _num_answers(table: pa.Table) -> int:
    return len(pc.list_flatten(table["completions"]))


def num_tokens(table: pa.Table) -> int:
    return len(pc.list_flatten(pc.list_flatten(table["completion_token_ids"])))
