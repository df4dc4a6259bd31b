"""The stages of an iteration: which role turns which table into which, and what is checked on the way.

Each stage of each shard is a function of its input shard, the policy's weights, the config and seeds
derived from names. Nothing else may enter, or a restart would compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithm import Algorithm
from engine.config.model import EvaluationConfig
from engine.errors import WeightsError
from engine.loop.roles import Answered, Pool, Stage
from engine.maths import evaluation
from engine.schema import AUDITED, COMPLETIONS, JUDGED, PROMPTS, REFERENCED, SCORED, append
from engine.store.run import Policy


def training_stages(algorithm: Algorithm, policy: Policy, iteration: int, audit: bool) -> list[Stage]:
    """prompts -> completions -> scored -> referenced, and the scorer's verdicts against the evaluator's."""
    stages = [_completions(policy, iteration), _scored(), _referenced(algorithm)]
    return [*stages, _audited()] if audit else stages


Earlier = Callable[[pa.Table, int], pa.Table]
"""(answers to a held-out shard, version) -> that version's answers to the same shard."""


def heldout_stages(config: EvaluationConfig, policy: Policy, earlier: Earlier) -> list[Stage]:
    """heldout -> answers -> judged, for one version of the policy; version 0 has nobody to be compared with."""
    stages = [_heldout_answers(config, policy)]
    return [*stages, _judged(policy.version, earlier)] if policy.version else stages


def _completions(policy: Policy, iteration: int) -> Stage:
    return Stage(
        name="completions",
        role="generator",
        source="prompts",
        source_iteration=None,
        source_schema=PROMPTS,
        schema=COMPLETIONS,
        submit=lambda pool, prompts: pool.submit("generate", prompts, iteration),
        finish=lambda prompts, answer: _made_by(answer.value, policy),
        amounts=lambda table: {"tokens": _num_tokens(table), "answers": len(pc.list_flatten(table["answers"]))},
    )


def _scored() -> Stage:
    return Stage(
        name="scored",
        role="scorer",
        source="completions",
        source_iteration=None,
        source_schema=COMPLETIONS,
        schema=SCORED,
        submit=lambda pool, completions: pool.submit("score", completions),
        finish=lambda completions, answer: answer.value,
        amounts=lambda table: {"pairs": sum(len(answers) * (len(answers) - 1) for answers in table["answers"])},
    )


def _referenced(algorithm: Algorithm) -> Stage:
    """Training rows with the log-probabilities of the previous iterate, taken before its first update."""

    def submit(pool: Pool, scored: pa.Table) -> Future[Answered]:
        return pool.submit("reference", algorithm.select(scored).rows)

    def finish(scored: pa.Table, answer: Answered) -> pa.Table:
        rows = algorithm.select(scored).rows
        return append(rows, REFERENCED, "reference log-probabilities", reference_logps=answer.value)

    return Stage(
        name="referenced",
        role="learner",
        source="scored",
        source_iteration=None,
        source_schema=SCORED,
        schema=REFERENCED,
        submit=submit,
        finish=finish,
        amounts=lambda table: {"rows": table.num_rows},
    )


def _audited() -> Stage:
    def finish(scored: pa.Table, answer: Answered) -> pa.Table:
        verdicts = zip(scored["pair_logits"].to_pylist(), answer.value["pair_logits"].to_pylist(), strict=True)
        counts = [evaluation.agreement(np.array(ours), np.array(theirs)) for ours, theirs in verdicts]
        columns = [scored["prompt_id"], [c.agreed for c in counts], [c.num_pairs for c in counts]]
        return pa.table(columns, names=AUDITED.names)

    return Stage(
        name="audited",
        role="evaluator",
        source="scored",
        source_iteration=None,
        source_schema=SCORED,
        schema=AUDITED,
        submit=lambda pool, scored: pool.submit("score", scored.select(COMPLETIONS.names)),
        finish=finish,
        amounts=lambda table: {"pairs": pc.sum(table["comparable"]).as_py() or 0},
    )


def _heldout_answers(config: EvaluationConfig, policy: Policy) -> Stage:
    def submit(pool: Pool, prompts: pa.Table) -> Future[Answered]:
        # The same seeds for every version: two versions then differ by their weights alone.
        return pool.submit("generate", prompts, 0, config.num_samples, config.temperature, "evaluate")

    return Stage(
        name="heldout_answers",
        role="generator",
        source="heldout",
        source_iteration=0,
        source_schema=PROMPTS,
        schema=COMPLETIONS,
        submit=submit,
        finish=lambda prompts, answer: _made_by(answer.value, policy),
        amounts=lambda table: {"tokens": _num_tokens(table)},
    )


def _judged(version: int, earlier: Earlier) -> Stage:
    def submit(pool: Pool, answers: pa.Table) -> Future[Answered]:
        return pool.submit("score", _side_by_side(answers, earlier(answers, 0), earlier(answers, version - 1)))

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
        role="evaluator",
        source="heldout_answers",
        source_iteration=None,
        source_schema=COMPLETIONS,
        schema=JUDGED,
        submit=submit,
        finish=finish,
        amounts=lambda table: {"prompts": table.num_rows},
    )


def _wins(logits: np.ndarray, m: int) -> float:
    """Share of the pairs won by the first m answers against the others."""
    return evaluation.win_rate_from_margins(evaluation.margins_from_pair_logits(logits, m))


def _side_by_side(*versions: pa.Table) -> pa.Table:
    """One table whose answers are those of all versions, in this order."""
    first = versions[0]
    columns = {name: first[name].to_pylist() for name in COMPLETIONS.names}
    for name in ("answers", "answer_token_ids", "answer_logps", "finish_reasons", "seeds"):
        rows = zip(*(version[name].to_pylist() for version in versions), strict=True)
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
