"""A run as the report shows it: one Summary with an IterationSummary per iteration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from engine.config.judge import JudgeConfig
from engine.config.run import RunConfig
from engine.config.scorer import ScorerConfig
from engine.metrics.trackers import Record
from engine.report.collect import IterationTables
from engine.report.figures import FIGURES, IterationSummary, read_iteration
from engine.store.reader import RunReader

REFERENCES = {"previous": "the policy at the start of each iteration", "start": "the policy at the start of the run"}


@dataclass(frozen=True)
class Summary:
    """One run. What it has not reached yet is None or empty."""

    name: str
    status: str = "running"
    """finished, running, or the error that stopped it."""
    num_iterations: int | None = None
    """Planned."""
    judge: str | None = None
    """The scorer that decided the win rates, in words; it says so if that is the training scorer."""
    start: str | None = None
    """Digest of the weights that the run started from."""
    config: dict[str, Any] = field(default_factory=dict)
    """The most important keys, e.g. {"algorithm.name": "sppo", "sampling.num_samples": 5}."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What is needed to repeat the run: versions of code and packages, machine, start."""
    iterations: tuple[IterationSummary, ...] = ()


def summarize(store: RunReader, config: RunConfig, status: str, provenance: dict[str, Any]) -> Summary:
    """Everything that the committed tables say about the run so far."""
    judge: str | None = None
    if config.evaluator is not None:
        judge = _in_words(config.evaluator)
    elif config.evaluation is not None and config.scorer is not None:
        judge = f"{_in_words(config.scorer)}, the training scorer itself"
    iterations = [t for t in range(config.iterations) if store.shards(t, "ref_logps")]
    tables = [IterationTables(store, config.algorithm, t) for t in iterations]
    return Summary(
        name=config.name,
        status=status,
        num_iterations=config.iterations,
        judge=judge,
        start=store.recorded_digest(0),
        config=highlights(config),
        provenance=provenance,
        iterations=tuple(map(read_iteration, tables)),
    )


def highlights(config: RunConfig) -> dict[str, Any]:
    """The most important keys of the configuration and their values."""
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
    """The kind of a scorer and what it runs; for an LLM judge its mode and model."""
    if not isinstance(scorer, JudgeConfig):
        runs = [str(value) for key in ("path", "function") if (value := getattr(scorer, key, None))]
        return f"{scorer.kind} ({', '.join(runs)})" if runs else scorer.kind
    server = scorer.server.model_dump()
    model = server.get("path") or server.get("model") or "the policy itself"
    return f"{scorer.kind} ({scorer.mode}, {model})"


def complete(summary: Summary, records: list[Record]) -> Summary:
    """Fill in what the tables do not say from the records of metrics.jsonl, with iterations that have no tables yet."""
    iterations = {iteration.iteration: iteration for iteration in summary.iterations}
    by_iteration: dict[int, list[Record]] = {number: [] for number in iterations}
    for record in records:
        if record["iteration"] is not None:
            by_iteration.setdefault(record["iteration"], []).append(record)
    completed = (
        _complete(iterations.get(number, IterationSummary(number)), records)
        for number, records in sorted(by_iteration.items())
    )
    return replace(summary, iterations=tuple(completed))


def _complete(iteration: IterationSummary, records: list[Record]) -> IterationSummary:
    changes: dict[str, Any] = {}
    if steps := sorted((r for r in records if r["kind"] == "step"), key=lambda r: r["step"]):
        read = {figure.name: figure.from_steps(steps) for figure in FIGURES if figure.from_steps}
        changes |= {name: value for name, value in read.items() if getattr(iteration, name) is None}
    ends = [r for r in records if r["kind"] == "iteration"]
    if ends and not iteration.metrics:
        changes["metrics"] = {k: v for k, v in ends[-1].items() if "/" in k and isinstance(v, int | float)}
    return replace(iteration, **changes)
