"""Collect the figures of a run from its committed tables, for metrics.jsonl and for the report.

Computed from committed tables alone, so a resumed run and an undisturbed one report the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.base import Algorithm
from engine.config.judge import JudgeConfig
from engine.config.run import RunConfig
from engine.config.scorer import ScorerConfig
from engine.evaluation import statistics
from engine.evaluation.statistics import Habits, canary_win_rate, habits
from engine.report.summary import IterationSummary, Sample, Summary, WinRate
from engine.schema import AUDITED, CANARY, COMPLETIONS, ELSEWHERE, JUDGED, ROWS, SCORED, SELECTABLE
from engine.store.run import RunStore

NUM_SAMPLES = 8
"""Answers shown in the report."""
REFERENCES = {"previous": "the policy at the start of each iteration", "start": "the policy at the start of the run"}


def iteration_metrics(store: RunStore, t: int) -> dict[str, float]:
    """Iteration t's figures for metrics.jsonl: the algorithm's counts, win rates with intervals, agreement."""
    figures: dict[str, float] = {f"select/{name}": count for name, count in store.counts(t, "selected").items()}
    rates = {f"vs_{against}": _win_rate(store, t + 1, against) for against in ("start", "previous")}
    for name, rate in (rates | {"mixture_vs_start": _mixture_win_rate(store, t + 1)}).items():
        if rate is not None:
            figures |= {
                f"evaluate/win_rate_{name}": rate.value,
                f"evaluate/win_rate_{name}_low": rate.low,
                f"evaluate/win_rate_{name}_high": rate.high,
            }
    if (missing := _missing_rate(store, t + 1)) is not None:
        figures["evaluate/missing_rate"] = missing
    figures |= judge_figures(store, t)
    optional = {"evaluate/mean_length": _mean_length(store, t + 1), "score/agreement": _agreement(store, t)}
    return figures | {name: value for name, value in optional.items() if value is not None}


def summarize(store: RunStore, config: RunConfig, status: str, provenance: dict[str, Any]) -> Summary:
    """Everything that the report shows of the run so far."""
    start = store.recorded_digest(0)
    done = [t for t in range(config.iterations) if store.shards(t, "referenced")]
    judge: str | None = None
    if config.evaluator is not None:
        judge = _in_words(config.evaluator)
    elif config.evaluation is not None and config.scorer is not None:
        judge = f"{_in_words(config.scorer)}, the training scorer itself"
    return Summary(
        name=config.name,
        status=status,
        num_iterations=config.iterations,
        judge=judge,
        start=start,
        config=highlights(config),
        provenance=provenance,
        iterations=tuple(_iteration(store, config.algorithm, t) for t in done),
        samples=tuple(_samples(store, config.algorithm, done[-1])) if done else (),
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
        "scorer.kind": _in_words(config.scorer) if config.scorer else "none",
        "learner.optimizer": f"{optimizer.name}, lr {optimizer.lr:g}",
        "learner.batch_size": config.learner.batch_size,
        "reference": REFERENCES[config.algorithm.reference],
        "seed": config.seed,
    }


def _in_words(scorer: ScorerConfig) -> str:
    """The kind of a scorer; for an LLM judge its mode and model too."""
    if not isinstance(scorer, JudgeConfig):
        return scorer.kind
    server = scorer.server.model_dump()
    model = server.get("path") or server.get("model") or "the policy itself"
    return f"{scorer.kind} ({scorer.mode}, {model})"


def _iteration(store: RunStore, algorithm: Algorithm, t: int) -> IterationSummary:
    counts = store.counts(t, "selected")
    return IterationSummary(
        iteration=t + 1,
        weights=store.recorded_digest(t + 1),
        reference=store.recorded_digest(0 if algorithm.reference == "start" else t),
        win_rate_start=_win_rate(store, t + 1, "start"),
        win_rate_previous=_win_rate(store, t + 1, "previous"),
        win_rate_mixture=_mixture_win_rate(store, t + 1),
        mean_length=_mean_length(store, t + 1),
        agreement=_agreement(store, t),
        judge=judge_figures(store, t),
        num_prompts=counts.get("prompts"),
        num_rows=counts.get("rows"),
        num_ties=counts.get("ties"),
        num_truncated=counts.get("truncated"),
    )


def _win_rate(store: RunStore, version: int, against: str) -> WinRate | None:
    """Over the held-out prompts on which there is a verdict; `_missing_rate` tells of the others."""
    return _interval(_judged(store, version, against).values())


def _mixture_win_rate(store: RunStore, last: int) -> WinRate | None:
    """Of the uniform mixture of versions 1 to `last`, which picks one of them per answer, against the start.

    On each prompt that is the mean of their win rates. Over the prompts on which all of them have a verdict.
    """
    judged = [_judged(store, version, "start") for version in range(1, last + 1)]
    return _interval(math.fsum(rates.get(id_, math.nan) for rates in judged) / last for id_ in judged[-1])


def _interval(rates: Iterable[float]) -> WinRate | None:
    """Mean and interval of one win rate per prompt, without those that are NaN; None if no other is there."""
    known = [rate for rate in rates if not math.isnan(rate)]
    if not known:
        return None
    interval = statistics.bootstrap(np.array(known))
    return WinRate(interval.mean, interval.low, interval.high, len(known))


def _missing_rate(store: RunStore, version: int) -> float | None:
    """Share of held-out prompts on which the evaluator gave no verdict against the start."""
    rates = _judged(store, version, "start").values()
    return sum(map(math.isnan, rates)) / len(rates) if rates else None


def _judged(store: RunStore, version: int, against: str) -> dict[str, float]:
    """{held-out prompt_id: win rate in [0, 1]}, NaN where the evaluator gave no verdict."""
    rates: dict[str, float] = {}
    for table in store.tables(version, "judged", JUDGED):
        rates |= zip(table["prompt_id"].to_pylist(), table[f"win_vs_{against}"].to_pylist(), strict=True)
    return rates


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


def _samples(store: RunStore, algorithm: Algorithm, t: int) -> list[Sample]:
    """What iteration t trained on for its first prompts: the answers with the highest and the lowest target."""
    samples: list[Sample] = []
    stage = algorithm.selects_from(t)
    for shard in store.shards(t, "selected"):
        rows = store.read(t, "selected", shard, ROWS).slice(0, NUM_SAMPLES - len(samples)).to_pylist()
        prompts = {row["prompt_id"]: row for row in store.read(t, stage, shard, SELECTABLE[stage]).to_pylist()}
        for row in rows:
            prompt, rates = prompts[row["prompt_id"]], row["win_rate"]
            known = [i for i, index in enumerate(row["answer_index"]) if index != ELSEWHERE]
            best, worst = max(known, key=rates.__getitem__), min(reversed(known), key=rates.__getitem__)
            texts = [_text(prompt, row["answer_index"][i]) for i in (best, worst)]
            samples.append(Sample(prompt["messages"][-1]["content"], texts[0], texts[1], rates[best], rates[worst]))
        if len(samples) == NUM_SAMPLES:
            break
    return samples


def _text(prompt: dict[str, Any], index: int) -> str:
    """The text behind an `answer_index`."""
    return prompt["answers"][index] if index >= 0 else prompt["given_answers"][-1 - index]


ENOUGH = 8
"""Verdicts from which on it is no coincidence that all are the same."""


def judge_figures(store: RunStore, t: int) -> dict[str, float]:
    """Iteration t's `judge/...` metrics; empty where no LLM judge scored it."""
    total = Habits()
    for table in store.tables(t, "scored", SCORED):
        total = sum((_habits(row) for row in _judged_rows(table)), total)
    if not total.num_asked:
        return {}
    figures = {"num_asked": float(total.num_asked), **total.figures()}
    canary = [prob for table in store.tables(t, "canary", CANARY) for prob in table["win_prob"].to_pylist()]
    if (rate := canary_win_rate(canary)) is not None:
        figures["canary_win_rate"] = rate
    return {f"judge/{name}": value for name, value in figures.items()}


def judge_warnings(figures: Mapping[str, float]) -> list[str]:
    """Sentences about a judge whose verdicts say little of the answers, from the metrics of an iteration."""
    found = []
    read = figures.get("judge/num_asked", 0.0) * (1.0 - figures.get("judge/missing_rate", 0.0))
    if figures.get("judge/commonest_verdict") == 1.0 and read >= ENOUGH:
        found.append(
            f"warning: the judge always says the same ({_always(figures)}, {read:,.0f} times); its verdicts tell "
            f"nothing about the answers"
        )
    if (missing := figures.get("judge/missing_rate", 0.0)) > 0.5:
        found.append(f"warning: {missing:.0%} of the judge's replies could not be read; look at the column verdicts")
    if (unjudged := figures.get("evaluate/missing_rate", 0.0)) > 0.5:
        found.append(f"warning: the evaluator gave no verdict on {unjudged:.0%} of the held-out prompts")
    if (canary := figures.get("judge/canary_win_rate", 0.0)) > 0.5:
        found.append(
            f"warning: the judge prefers an answer that says nothing to the policy's on {canary:.0%} of the prompts "
            f"on which it was tried"
        )
    return found


def _always(figures: Mapping[str, float]) -> str:
    if "judge/position_bias" not in figures:
        return "one score for all"
    if figures.get("judge/tie_rate") == 1.0:
        return "a tie"
    return "the answer shown first" if figures["judge/position_bias"] > 0 else "the answer shown second"


def _judged_rows(table: pa.Table) -> list[dict]:
    rows = table.select(["pair_logits", "verdicts", "answer_token_ids"]).to_pylist()
    return [row for row in rows if row["verdicts"]]


def _habits(row: dict) -> Habits:
    questions = [(verdict["answer"], verdict["other"], verdict["value"]) for verdict in row["verdicts"]]
    return habits(row["pair_logits"], questions, [len(ids) for ids in row["answer_token_ids"]])
