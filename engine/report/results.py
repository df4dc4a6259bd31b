"""What a run's tables say: the figures of an iteration, and the summary that the report shows.

Computed from committed tables alone, so a resumed run and a finished one tell the same. Knows nothing
of roles or of the screen.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc

from engine.algorithm import Algorithm
from engine.config.model import RunConfig
from engine.maths import evaluation
from engine.maths.preference import pairwise_win_probabilities, win_rates
from engine.report.summary import IterationSummary, Sample, Summary, WinRate
from engine.schema import AUDITED, COMPLETIONS, JUDGED, SCORED
from engine.store.run import RunStore

NUM_SAMPLES = 8
"""Answers shown in the report."""


def iteration_metrics(store: RunStore, algorithm: Algorithm, t: int) -> dict[str, float]:
    """Iteration t's figures for metrics.jsonl: the algorithm's counts, win rates with intervals, agreement."""
    figures: dict[str, float] = {f"select/{name}": count for name, count in _counts(store, algorithm, t).items()}
    for against in ("start", "previous"):
        if rate := _win_rate(store, t + 1, against):
            figures |= {
                f"evaluate/win_rate_vs_{against}": rate.value,
                f"evaluate/win_rate_vs_{against}_low": rate.low,
                f"evaluate/win_rate_vs_{against}_high": rate.high,
            }
    optional = {"evaluate/mean_length": _mean_length(store, t + 1), "score/agreement": _agreement(store, t)}
    return figures | {name: value for name, value in optional.items() if value is not None}


def summarize(store: RunStore, config: RunConfig, status: str, provenance: dict[str, Any]) -> Summary:
    """Everything that the report shows of the run so far."""
    start = store.recorded_digest(0)
    done = [t for t in range(config.iterations) if store.shards(t, "completions")]
    evaluator = config.evaluator
    judge = None
    if evaluator is not None:
        judge = evaluator.kind if config.audits else f"{evaluator.kind}, the training scorer itself"
    return Summary(
        name=config.name,
        status=status,
        num_iterations=config.iterations,
        judge=judge,
        start=start,
        config=highlights(config),
        provenance=provenance,
        iterations=tuple(_iteration(store, config.algorithm, t) for t in done),
        samples=tuple(_samples(store, done[-1])) if done else (),
    )


def highlights(config: RunConfig) -> dict[str, Any]:
    """The keys worth reading first."""
    optimizer = config.learner.optimizer
    return {
        **{f"algorithm.{key}": value for key, value in config.algorithm.model_dump().items()},
        "model.path": config.model.path,
        "sampling.num_samples": config.sampling.num_samples,
        "sampling.temperature": config.sampling.temperature,
        "sampling.top_p": config.sampling.top_p,
        "scorer.kind": config.scorer.kind,
        "learner.optimizer": f"{optimizer.name}, lr {optimizer.lr:g}",
        "learner.batch_size": config.learner.batch_size,
        "reference": "the policy at the start of each iteration",
        "seed": config.seed,
    }


def _iteration(store: RunStore, algorithm: Algorithm, t: int) -> IterationSummary:
    counts = _counts(store, algorithm, t)
    return IterationSummary(
        iteration=t + 1,
        weights=store.recorded_digest(t + 1),
        reference=store.recorded_digest(t),
        win_rate_start=_win_rate(store, t + 1, "start"),
        win_rate_previous=_win_rate(store, t + 1, "previous"),
        mean_length=_mean_length(store, t + 1),
        agreement=_agreement(store, t),
        num_prompts=counts.get("prompts"),
        num_rows=counts.get("rows"),
        num_ties=counts.get("ties"),
        num_truncated=counts.get("truncated"),
    )


def _counts(store: RunStore, algorithm: Algorithm, t: int) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in store.tables(t, "scored", SCORED):
        selection = algorithm.select(table)
        total.update(selection.counts)
        total["rows"] += selection.rows.num_rows
        total["scorer_truncated"] += pc.sum(table["num_truncated"]).as_py()
    return dict(total)


def _win_rate(store: RunStore, version: int, against: str) -> WinRate | None:
    rates = [
        rate for table in store.tables(version, "judged", JUDGED) for rate in table[f"win_vs_{against}"].to_pylist()
    ]
    if not rates:
        return None
    interval = evaluation.bootstrap(np.array(rates))
    return WinRate(interval.mean, interval.low, interval.high, len(rates))


def _mean_length(store: RunStore, version: int) -> float | None:
    lengths = [
        len(answer)
        for table in store.tables(version, "heldout_answers", COMPLETIONS)
        for answers in table["answer_token_ids"].to_pylist()
        for answer in answers
    ]
    return float(np.mean(lengths)) if lengths else None


def _agreement(store: RunStore, t: int) -> float | None:
    tables = list(store.tables(t, "audited", AUDITED))
    comparable = sum(pc.sum(table["comparable"]).as_py() or 0 for table in tables)
    return sum(pc.sum(table["agreements"]).as_py() or 0 for table in tables) / comparable if comparable else None


def _samples(store: RunStore, t: int) -> list[Sample]:
    """Best and worst answers to the first prompts of iteration t, by the scorer."""
    samples: list[Sample] = []
    for table in store.tables(t, "scored", SCORED):
        for row in table.slice(0, NUM_SAMPLES - len(samples)).to_pylist():
            rates = win_rates(pairwise_win_probabilities(np.array(row["pair_logits"])))
            best, worst = int(rates.argmax()), int(rates.argmin())
            prompt = row["messages"][-1]["content"]
            answers = row["answers"]
            samples.append(Sample(prompt, answers[best], answers[worst], float(rates[best]), float(rates[worst])))
        if len(samples) == NUM_SAMPLES:
            break
    return samples
