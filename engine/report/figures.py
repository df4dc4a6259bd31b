"""Every figure of an iteration, declared once: how it is computed, what it is called and how it is shown.

A figure is a field of `IterationSummary`; an LLM judge's figure is an entry of `JUDGE`. From these declarations follow
the iteration's metrics in metrics.jsonl, the keys of summary.json, the columns of iterations.csv, the tables of the
report and the table in the terminal. To add a figure, compute it in `IterationTables` and declare it here; a test asks
for its row in docs/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from engine.algorithms.base import Algorithm
from engine.metrics.trackers import Record
from engine.report.collect import IterationTables, WinRate
from engine.store.reader import RunReader

MISSING = "–"
"""Shown for a figure that is not there yet."""

Group = Literal["results", "judge", "work", "time"]
"""The table of the report in which a figure is shown."""


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def win_rate(rate: WinRate) -> str:
    return f"{percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def count(value: int) -> str:
    return f"{value:,}"


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def seconds(value: float) -> str:
    return f"{value:,.1f} s"


@dataclass(frozen=True)
class Figure:
    """One figure of an iteration."""

    heading: str | None
    """In the report; None: it has no column, neither there nor in iterations.csv."""
    group: Group
    show: Callable[[Any], str]
    """Its text in the report."""
    from_tables: Callable[[IterationTables], Any] | None = None
    """Computes it from the committed tables; gives None if there is nothing to compute it from."""
    metric: str | None = None
    """Its name in metrics.jsonl, at the end of the iteration."""
    from_steps: Callable[[list[Record]], Any] | None = None
    """Reads it from the iteration's records of optimizer steps, at least one, in metrics.jsonl."""
    terminal: bool = False
    """Whether the table in the terminal, which has room for a few, shows it."""
    name: str = ""
    """In iterations.csv and summary.json."""
    read: Callable[[IterationSummary], Any] | None = None
    """Reads it from a summary; None: the summary's field called `name`."""

    def value(self, iteration: IterationSummary) -> Any:
        return self.read(iteration) if self.read else getattr(iteration, self.name)

    def text(self, iteration: IterationSummary) -> str:
        value = self.value(iteration)
        return MISSING if value is None else self.show(value)

    def numbers(self, name: str, value: Any) -> dict[str, Any]:
        """The value under `name`; a win rate as <name>, <name>_low and <name>_high."""
        if self.show is not win_rate:
            return {name: value}
        ends = {"": "value", "_low": "low", "_high": "high"}
        return {name + end: value and getattr(value, attribute) for end, attribute in ends.items()}


def _validation(heading: str | None, metric: str) -> Figure:
    """A figure of held-out preferences."""

    def read(tables: IterationTables) -> float | None:
        return tables.validation.metrics().get(metric) if tables.validation else None

    return Figure(heading, "results", "{:.4g}".format, read, metric=metric)


def _figure(figure: Figure) -> Any:
    """A field of IterationSummary that is a figure; None until it is known."""
    return field(default=None, metadata={"figure": figure})


@dataclass(frozen=True)
class IterationSummary:
    """One iteration, as the report shows it. Figures that the run has not reached yet are None or empty."""

    iteration: int
    """Counted from 1."""
    weights: str | None = None
    """Digest of the policy that the iteration made."""
    reference: str | None = None
    """Digest of the reference policy."""
    win_rate_start: WinRate | None = _figure(
        Figure(
            "wins against start",
            "results",
            win_rate,
            lambda tables: tables.win_rate("start"),
            metric="evaluate/win_rate_vs_start",
            terminal=True,
        )
    )
    """Of the policy made, against the policy that the run started from."""
    win_rate_previous: WinRate | None = _figure(
        Figure(
            "wins against previous",
            "results",
            win_rate,
            lambda tables: tables.win_rate("previous"),
            metric="evaluate/win_rate_vs_previous",
            terminal=True,
        )
    )
    """Of the policy made, against the policy from which it was trained."""
    win_rate_current: WinRate | None = _figure(
        Figure(
            None,
            "results",
            win_rate,
            lambda tables: tables.win_rate("current"),
            metric="evaluate/win_rate_vs_current",
        )
    )
    """Of the policy made, against the policy that the gate had promoted last."""
    promoted: bool | None = _figure(Figure("promoted", "results", yes_or_no, IterationTables.promoted, terminal=True))
    """Whether the gate promoted the policy made."""
    win_rate_mixture: WinRate | None = _figure(
        Figure(
            "mixture of iterates 1..t against start",
            "results",
            win_rate,
            IterationTables.mixture_win_rate,
            metric="evaluate/win_rate_mixture_vs_start",
        )
    )
    """Of the uniform mixture of all policies made so far, against the start."""
    missing_rate: float | None = _figure(
        Figure(None, "results", percent, IterationTables.missing_rate, metric="evaluate/missing_rate")
    )
    """Share of held-out prompts without a verdict, in [0, 1]."""
    mean_length: float | None = _figure(
        Figure(
            "mean length",
            "results",
            "{:.1f}".format,
            IterationTables.mean_length,
            metric="evaluate/mean_length",
            terminal=True,
        )
    )
    """Tokens per held-out answer."""
    length_ratio: float | None = _figure(
        Figure(None, "results", "{:.2f}".format, IterationTables.length_ratio, metric="evaluate/length_ratio")
    )
    """The same in units of the start policy's."""
    kl: float | None = _figure(
        Figure("KL from start", "results", "{:.2f}".format, IterationTables.kl, metric="evaluate/kl")
    )
    """Estimate of KL(policy || start) in nats per held-out answer."""
    entropy: float | None = _figure(
        Figure("entropy per token", "results", "{:.2f}".format, IterationTables.entropy, metric="evaluate/entropy")
    )
    """Mean -log p per token of held-out answers, in nats."""
    entropy_ratio: float | None = _figure(
        Figure(None, "results", "{:.2f}".format, IterationTables.entropy_ratio, metric="evaluate/entropy_ratio")
    )
    """The same in units of the start policy's."""
    truncated_rate: float | None = _figure(
        Figure("truncated answers", "results", percent, IterationTables.truncated_rate, metric="evaluate/truncated")
    )
    """Share of held-out answers that the length limit cut, in [0, 1]."""
    truncation_rise: float | None = _figure(
        Figure(None, "results", percent, IterationTables.truncation_rise, metric="evaluate/truncation_rise")
    )
    """The same, less the start policy's."""
    agreement: float | None = _figure(
        Figure(
            "scorer agrees with oracle",
            "results",
            percent,
            IterationTables.agreement,
            metric="score/agreement",
            terminal=True,
        )
    )
    """Share of answer pairs, in [0, 1], on which the training scorer and the evaluator agree."""
    heldout_accuracy: WinRate | None = _figure(
        Figure(
            "held-out accuracy",
            "results",
            win_rate,
            IterationTables.heldout_accuracy,
            metric="eval/rewards/accuracies",
            terminal=True,
        )
    )
    """Share of held-out preferences of which the chosen answer has the higher implicit reward, in [0, 1]."""
    heldout_loss: float | None = _figure(_validation("held-out loss", "eval/loss"))
    """The algorithm's loss on held-out preferences."""
    heldout_margin: float | None = _figure(_validation("held-out margin", "eval/rewards/margins"))
    """Mean implicit reward of their chosen answers minus that of their rejected ones."""
    heldout_reward_chosen: float | None = _figure(_validation(None, "eval/rewards/chosen"))
    heldout_reward_rejected: float | None = _figure(_validation(None, "eval/rewards/rejected"))
    heldout_logps_chosen: float | None = _figure(_validation(None, "eval/logps/chosen"))
    """Mean log-probability in nats of the chosen answers of held-out preferences."""
    heldout_logps_rejected: float | None = _figure(_validation(None, "eval/logps/rejected"))
    heldout_log_ratio_chosen: float | None = _figure(_validation(None, "eval/log_ratio/chosen"))
    """Mean log-ratio of these answers to the reference of the iteration, in nats."""
    heldout_log_ratio_rejected: float | None = _figure(_validation(None, "eval/log_ratio/rejected"))
    step: int | None = _figure(Figure("step", "work", count, lambda tables: tables.step, metric="eval/step"))
    """The optimizer step of the iteration whose weights the policy has."""
    judge: dict[str, float] = field(default_factory=dict)
    """The figures of an LLM judge (`JUDGE`) by metric name; empty for other scorers."""
    num_prompts: int | None = _figure(
        Figure("prompts", "work", count, lambda tables: tables.counts.get("prompts"), metric="select/prompts")
    )
    num_rows: int | None = _figure(
        Figure(
            "pairs trained",
            "work",
            count,
            lambda tables: tables.counts.get("rows"),
            metric="select/rows",
            terminal=True,
        )
    )
    """Training rows: pairs, or groups of n answers."""
    num_ties: int | None = _figure(
        Figure("ties", "work", count, lambda tables: tables.counts.get("ties"), metric="select/ties")
    )
    """Prompts without a preference between their best and their worst answer."""
    tie_rate: float | None = _figure(Figure(None, "work", percent, IterationTables.tie_rate, metric="select/tie_rate"))
    """The same as a share of the prompts."""
    num_truncated: int | None = _figure(
        Figure("truncated", "work", count, lambda tables: tables.counts.get("truncated"), metric="select/truncated")
    )
    """Answers cut by the length limit."""
    num_steps: int | None = _figure(Figure("steps", "work", count, from_steps=lambda steps: steps[-1]["step"]))
    """Optimizer steps."""
    loss_first: float | None = _figure(
        Figure("first loss", "work", "{:.4g}".format, from_steps=lambda steps: steps[0].get("loss"))
    )
    """Of the first optimizer step."""
    loss_last: float | None = _figure(
        Figure("last loss", "work", "{:.4g}".format, from_steps=lambda steps: steps[-1].get("loss"), terminal=True)
    )
    """Of the last optimizer step so far."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All metrics of the iteration in metrics.jsonl, its times among them."""

    @property
    def wall(self) -> float | None:
        """Seconds from its beginning to its end."""
        return self.metrics.get("time/wall")

    def times(self) -> dict[str, tuple[float, float]]:
        """Per stage (busy, waiting) in seconds; the two add up to `wall`."""
        busy = {key: value for key, value in self.metrics.items() if re.fullmatch(r"time/[^/]+/busy", key)}
        return {key.split("/")[1]: (value, self.metrics.get(f"{key[:-4]}waiting", 0.0)) for key, value in busy.items()}


def _judge(name: str, heading: str | None, from_tables: Callable[[IterationTables], Any]) -> Figure:
    metric = f"judge/{name}"
    return Figure(
        heading, "judge", percent, from_tables, metric, name=f"judge_{name}", read=lambda i: i.judge.get(metric)
    )


JUDGE = (
    _judge("num_asked", None, lambda tables: float(tables.judge_bias.num_asked)),
    _judge("consistency", "judge: orders agree", lambda tables: tables.judge_bias.consistency),
    _judge("position_bias", "judge: bias to the first", lambda tables: tables.judge_bias.position_bias),
    _judge("longer_preferred", "judge: longer wins", lambda tables: tables.judge_bias.longer_preferred),
    _judge("tie_rate", "judge: ties", lambda tables: tables.judge_bias.tie_rate),
    _judge("missing_rate", "judge: no verdict", lambda tables: tables.judge_bias.missing_rate),
    _judge("commonest_verdict", "judge: commonest verdict", lambda tables: tables.judge_bias.commonest_verdict),
    _judge("null_model_win_rate", "judge: null-model baseline wins", IterationTables.null_model_win_rate),
)
"""The figures of an LLM judge; each is explained by its property of JudgeBias."""

ITERATION = Figure("iteration", "results", str, terminal=True, name="iteration")
"""The first column of every table."""
FIGURES: tuple[Figure, ...] = tuple(
    replace(f.metadata["figure"], name=f.name) for f in fields(IterationSummary) if f.metadata
)
"""The figures that are fields of IterationSummary, in their order."""
WALL = Figure(
    "wall time", "time", seconds, metric="time/wall", terminal=True, name="wall_seconds", read=lambda i: i.wall
)


def columns(group: Group) -> tuple[Figure, ...]:
    """The figures of a group that are columns of the report."""
    return tuple(figure for figure in (*FIGURES, *JUDGE, WALL) if figure.group == group and figure.heading)


def stage_columns(iterations: tuple[IterationSummary, ...]) -> tuple[Figure, ...]:
    """One column per stage with its busy seconds, in the order in which stages first appear."""
    stages = dict.fromkeys(stage for iteration in iterations for stage in iteration.times())
    return tuple(
        Figure(f"{stage} busy", "time", seconds, name=f"busy_{stage}_seconds", read=_busy(stage)) for stage in stages
    )


def _busy(stage: str) -> Callable[[IterationSummary], float | None]:
    return lambda iteration: iteration.metrics.get(f"time/{stage}/busy")


def read_iteration(tables: IterationTables) -> IterationSummary:
    """Everything about an iteration that its tables say."""
    computed = {figure.name: figure.from_tables(tables) for figure in FIGURES if figure.from_tables}
    judge = judge_metrics(tables)
    return IterationSummary(tables.number, tables.weights, tables.reference, judge=judge, **computed)


def iteration_metrics(store: RunReader, algorithm: Algorithm, t: int) -> dict[str, float]:
    """The metrics of iteration `t`, counted from 0, for metrics.jsonl: all that its tables say, by metric name."""
    tables = IterationTables(store, algorithm, t)
    metrics: dict[str, float] = {f"select/{name}": count for name, count in tables.counts.items()}
    for figure in FIGURES:
        if figure.metric and figure.from_tables and (value := figure.from_tables(tables)) is not None:
            metrics |= figure.numbers(figure.metric, value)
    return metrics | judge_metrics(tables)


def judge_metrics(tables: IterationTables) -> dict[str, float]:
    """The `judge/...` metrics; empty if no LLM judge scored the iteration."""
    if not tables.judge_bias.num_asked:
        return {}
    values = {figure.metric: figure.from_tables(tables) for figure in JUDGE if figure.metric and figure.from_tables}
    return {name: value for name, value in values.items() if value is not None}


MIN_VERDICTS = 8
"""With fewer verdicts, it may be a coincidence that all are the same."""


def judge_warnings(metrics: Mapping[str, float]) -> list[str]:
    """Warnings about a judge or an evaluator whose verdicts say little, from an iteration's metrics."""
    warnings = []
    num_read = metrics.get("judge/num_asked", 0.0) * (1.0 - metrics.get("judge/missing_rate", 0.0))
    if metrics.get("judge/commonest_verdict") == 1.0 and num_read >= MIN_VERDICTS:
        warnings.append(
            f"warning: the judge always says the same ({_only_verdict(metrics)}, {num_read:,.0f} times); its verdicts "
            f"say nothing about the answers"
        )
    if (missing := metrics.get("judge/missing_rate", 0.0)) > 0.5:
        warnings.append(
            f"warning: {missing:.0%} of the judge's replies could not be read; they are in the column "
            f"verdicts of the stage scores"
        )
    if (unjudged := metrics.get("evaluate/missing_rate", 0.0)) > 0.5:
        warnings.append(f"warning: the evaluator gave no verdict on {unjudged:.0%} of the held-out prompts")
    if (rate := metrics.get("judge/null_model_win_rate", 0.0)) > 0.5:
        warnings.append(
            f"warning: the judge prefers an answer that says nothing (the null-model baseline) to the policy's answer "
            f"on {rate:.0%} of the prompts on which the two were compared"
        )
    return warnings


def _only_verdict(metrics: Mapping[str, float]) -> str:
    if "judge/position_bias" not in metrics:
        return "one score for all"
    if metrics.get("judge/tie_rate") == 1.0:
        return "a tie"
    return "the answer shown first" if metrics["judge/position_bias"] > 0 else "the answer shown second"
