"""The stages of an iteration: which role turns which table into which, and what is checked on the way.

    prompts -> completions -> anchored -> scored -> rescored -> referenced -> learner
                                             └─> audited, canary

An algorithm names those it needs, in this order; each reads what the one before it committed. Each stage of
each shard is a function of its input shard, the weights that its role serves, the config and seeds derived
from names. Nothing else may enter, or a restart would compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.base import Algorithm
from engine.algorithms.preference import pairwise_win_probabilities
from engine.config.evaluation import EvaluationConfig
from engine.config.run import RunConfig
from engine.errors import WeightsError
from engine.evaluation import statistics
from engine.loop.roles import Answered, Pool, Stage
from engine.schema import AUDITED, CANARY, COMPLETIONS, JUDGED, PROMPTS, REFERENCED, RESCORED, SCORED, append
from engine.store.run import Policy

Versions = Callable[[int], Policy]
"""version -> that policy, committed and intact."""
Earlier = Callable[[int, int], pa.Table]
"""(version, shard) -> that version's answers to a shard of held-out prompts."""

SCHEMAS = {
    "prompts": PROMPTS,
    "completions": COMPLETIONS,
    "anchored": COMPLETIONS,
    "scored": SCORED,
    "rescored": RESCORED,
}
"""What lies in the store under each name from which `select` may read."""
CANARY_PROMPTS = 8
"""Prompts per shard on which the canary is tried."""


def selected_from(algorithm: Algorithm, iteration: int) -> str:
    """The stage whose shards the algorithm selects from."""
    return (*("prompts",), *algorithm.stages(iteration))[-1]


def training_stages(config: RunConfig, version: Versions, iteration: int) -> list[Stage]:
    """What the algorithm asks for, the reference's log-probabilities, and second opinions on the scorer."""
    algorithm = config.algorithm
    stages, source = [], "prompts"
    for name in algorithm.stages(iteration):
        stages.append(MAKERS[name](config, version, iteration, source))
        source = name
        if name == "scored" and config.null_model:  # beside it, while the same weights judge
            stages.append(_canary(config, version(iteration)))
    reference = version(0 if algorithm.reference == "start" else iteration)
    stages.append(_referenced(algorithm, reference, source))
    if "scored" in algorithm.stages(iteration) and config.audits:
        stages.append(_audited(config))
    return stages


def heldout_stages(config: RunConfig, policy: Policy, earlier: Earlier) -> list[Stage]:
    """heldout -> answers -> judged, for one version of the policy; version 0 has nobody to be compared with."""
    assert config.evaluation is not None
    stages = [_heldout_answers(config.evaluation, policy)]
    return [*stages, _judged(config, policy, earlier)] if policy.version else stages


def _completions(config: RunConfig, version: Versions, iteration: int, source: str) -> Stage:
    policy = version(iteration)
    return Stage(
        name="completions",
        role="generator",
        policy=policy,
        source=source,
        source_schema=PROMPTS,
        schema=COMPLETIONS,
        submit=lambda pool, prompts, shard: pool.submit("generate", prompts, iteration),
        finish=lambda prompts, answer: _made_by(answer.value, policy),
        amounts=lambda table: {"tokens": _num_tokens(table), "answers": len(pc.list_flatten(table["answers"]))},
    )


def _anchored(config: RunConfig, version: Versions, iteration: int, source: str) -> Stage:
    """The start policy's answers behind the policy's own: K of each (anchored rejection, arXiv 2508.06026)."""
    start = version(0)

    def finish(completions: pa.Table, answer: Answered) -> pa.Table:
        return side_by_side(completions, _made_by(answer.value, start))

    return Stage(
        name="anchored",
        role="generator",
        policy=start,
        source=source,
        source_schema=COMPLETIONS,
        schema=COMPLETIONS,
        submit=lambda pool, table, shard: pool.submit(
            "generate", table.select(PROMPTS.names), iteration, None, None, "anchor"
        ),
        finish=finish,
        amounts=lambda table: {"tokens": _num_tokens(table)},
    )


def _scored(config: RunConfig, version: Versions, iteration: int, source: str) -> Stage:
    return Stage(
        name="scored",
        role=config.scoring_role,
        policy=version(iteration),
        source=source,
        source_schema=COMPLETIONS,
        schema=SCORED,
        submit=lambda pool, completions, shard: pool.submit("score", completions),
        finish=lambda completions, answer: answer.value,
        amounts=lambda table: {"pairs": sum(len(answers) * (len(answers) - 1) for answers in table["answers"])},
    )


def _rescored(config: RunConfig, version: Versions, iteration: int, source: str) -> Stage:
    """The previous policy's scores of the same answers: how far does one judgement outlast an update?"""

    def finish(scored: pa.Table, answer: Answered) -> pa.Table:
        again = answer.value["scores"].to_pylist()
        return append(scored, RESCORED, f"iteration {iteration}, scores of the policy before", previous_scores=again)

    return Stage(
        name="rescored",
        role=config.scoring_role,
        policy=version(max(0, iteration - 1)),
        source=source,
        source_schema=SCORED,
        schema=RESCORED,
        submit=lambda pool, scored, shard: pool.submit("score", scored.select(COMPLETIONS.names)),
        finish=finish,
        amounts=lambda table: {"answers": len(pc.list_flatten(table["answers"]))},
    )


MAKERS: dict[str, Callable[[RunConfig, Versions, int, str], Stage]] = {
    "completions": _completions,
    "anchored": _anchored,
    "scored": _scored,
    "rescored": _rescored,
}
"""Every stage that an algorithm may name."""


def _referenced(algorithm: Algorithm, reference: Policy, source: str) -> Stage:
    """Training rows with the log-probabilities of the reference."""

    def submit(pool: Pool, table: pa.Table, shard: int) -> Future[Answered]:
        return pool.submit("reference", algorithm.select(table).rows)

    def finish(table: pa.Table, answer: Answered) -> pa.Table:
        rows = algorithm.select(table).rows
        return append(rows, REFERENCED, "reference log-probabilities", reference_logps=answer.value)

    return Stage(
        name="referenced",
        role="learner",
        policy=reference,
        source=source,
        source_schema=SCHEMAS[source],
        schema=REFERENCED,
        submit=submit,
        finish=finish,
        amounts=lambda table: {"rows": table.num_rows},
    )


def _audited(config: RunConfig) -> Stage:
    def finish(scored: pa.Table, answer: Answered) -> pa.Table:
        verdicts = zip(scored["pair_logits"].to_pylist(), answer.value["pair_logits"].to_pylist(), strict=True)
        counts = [statistics.agreement(np.array(ours), np.array(theirs)) for ours, theirs in verdicts]
        columns = [scored["prompt_id"], [c.agreed for c in counts], [c.num_pairs for c in counts]]
        return pa.table(columns, names=AUDITED.names)

    return Stage(
        name="audited",
        role=config.evaluating_role,
        policy=None,
        source="scored",
        source_schema=SCORED,
        schema=AUDITED,
        submit=lambda pool, scored, shard: pool.submit("score", scored.select(COMPLETIONS.names)),
        finish=finish,
        amounts=lambda table: {"pairs": pc.sum(table["comparable"]).as_py() or 0},
    )


def _canary(config: RunConfig, policy: Policy) -> Stage:
    """An answer that fits every question and none, against the policy's first: a judge must not fall for it."""

    def submit(pool: Pool, completions: pa.Table, shard: int) -> Future[Answered]:
        some = completions.take(list(range(min(CANARY_PROMPTS, completions.num_rows))))
        return pool.submit("score", _with_canary(some, config.null_model or ""))

    def finish(completions: pa.Table, answer: Answered) -> pa.Table:
        logits = [np.array(matrix) for matrix in answer.value["pair_logits"].to_pylist()]
        wins = [float(pairwise_win_probabilities(matrix)[1, 0]) for matrix in logits]
        return pa.table([answer.value["prompt_id"], wins], names=CANARY.names)

    return Stage(
        name="canary",
        role=config.scoring_role,
        policy=policy,
        source="completions",
        source_schema=COMPLETIONS,
        schema=CANARY,
        submit=submit,
        finish=finish,
        amounts=lambda table: {"pairs": 2 * table.num_rows},
    )


def _with_canary(completions: pa.Table, text: str) -> pa.Table:
    """Two answers per prompt: the policy's first, and `text`."""
    columns = {name: completions[name].to_pylist() for name in COMPLETIONS.names}
    replaced = {"answers": text, "answer_token_ids": [], "answer_logps": 0.0, "finish_reasons": "stop", "seeds": 0}
    for name, value in replaced.items():
        columns[name] = [[row[0], value] for row in columns[name]]
    return pa.table(columns, schema=COMPLETIONS)


def _heldout_answers(config: EvaluationConfig, policy: Policy) -> Stage:
    def submit(pool: Pool, prompts: pa.Table, shard: int) -> Future[Answered]:
        # The same seeds for every version: two versions then differ by their weights alone.
        return pool.submit("generate", prompts, 0, config.num_samples, config.temperature, "evaluate")

    return Stage(
        name="heldout_answers",
        role="generator",
        policy=policy,
        source="heldout",
        source_iteration=0,
        source_schema=PROMPTS,
        schema=COMPLETIONS,
        submit=submit,
        finish=lambda prompts, answer: _made_by(answer.value, policy),
        amounts=lambda table: {"tokens": _num_tokens(table)},
    )


def _judged(config: RunConfig, policy: Policy, earlier: Earlier) -> Stage:
    version = policy.version

    def submit(pool: Pool, answers: pa.Table, shard: int) -> Future[Answered]:
        return pool.submit("score", side_by_side(answers, earlier(0, shard), earlier(version - 1, shard)))

    def finish(answers: pa.Table, answer: Answered) -> pa.Table:
        logits = [np.array(matrix) for matrix in answer.value["pair_logits"].to_pylist()]
        m = len(answers["answers"][0])
        others = [*range(m), *range(2 * m, 3 * m)]  # ours and the previous version's, without the start's
        return append(
            answers,
            JUDGED,
            f"version {version} on held-out prompts",
            win_vs_start=[_wins(matrix[: 2 * m, : 2 * m], m) for matrix in logits],
            win_vs_previous=[_wins(matrix[np.ix_(others, others)], m) for matrix in logits],
            evaluator=answer.value["scorer"],
        )

    return Stage(
        name="judged",
        role=config.evaluating_role,
        policy=policy,
        source="heldout_answers",
        source_schema=COMPLETIONS,
        schema=JUDGED,
        submit=submit,
        finish=finish,
        amounts=lambda table: {"prompts": table.num_rows},
    )


def _wins(logits: np.ndarray, m: int) -> float:
    """Share of the pairs won by the first m answers against the others."""
    return statistics.win_rate_from_margins(statistics.margins_from_pair_logits(logits, m))


def side_by_side(*tables: pa.Table) -> pa.Table:
    """One table whose answers are those of all tables, in this order; `weights` are the first one's."""
    first = tables[0]
    columns = {name: first[name].to_pylist() for name in COMPLETIONS.names}
    for name in ("answers", "answer_token_ids", "answer_logps", "finish_reasons", "seeds"):
        rows = zip(*(table[name].to_pylist() for table in tables), strict=True)
        columns[name] = [[value for part in row for value in part] for row in rows]
    return pa.table(columns, schema=COMPLETIONS)


def _made_by(table: pa.Table, policy: Policy) -> pa.Table:
    """Refuse answers of any other weights than the iteration's: they would train towards the wrong policy."""
    strangers = sorted(set(table["weights"].to_pylist()) - {policy.digest})
    if strangers:
        raise WeightsError(
            f"a generator answered with weights {strangers[0][:12]} instead of version {policy.version} "
            f"({policy.digest[:12]}); its shard was refused and nothing of it is kept"
        )
    return table


def _num_tokens(table: pa.Table) -> int:
    return len(pc.list_flatten(pc.list_flatten(table["answer_token_ids"])))
