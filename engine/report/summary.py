"""What a run's report says, as plain data: one Summary with an IterationSummary per turn of self-play.

Every field that a run may not have reached yet is optional. Knows nothing of files, pages or screens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from engine.metrics.trackers import Record

MISSING = "–"
"""Shown where a figure is not there yet."""


@dataclass(frozen=True)
class WinRate:
    """A share of comparisons won, ties counting half, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    num_prompts: int | None = None
    """Held-out prompts behind it."""


@dataclass(frozen=True)
class Sample:
    """The answers to one prompt with the highest and the lowest estimated win rate, in [0, 1]."""

    prompt: str
    best: str
    worst: str
    best_win_rate: float | None = None
    worst_win_rate: float | None = None


@dataclass(frozen=True)
class IterationSummary:
    """One turn of self-play, numbered from 1."""

    iteration: int
    weights: str | None = None
    """Digest of the policy that the iteration produced."""
    reference: str | None = None
    """Digest of the reference policy that it learnt against."""
    win_rate_start: WinRate | None = None
    """Of the policy produced, against the policy that the run started from."""
    win_rate_previous: WinRate | None = None
    """Of the policy produced, against the one before it."""
    win_rate_mixture: WinRate | None = None
    """Of the uniform mixture of all policies produced so far, one of them picked per answer, against the start."""
    mean_length: float | None = None
    """Tokens per held-out answer (or per training answer, where nothing is held out)."""
    agreement: float | None = None
    """Share of comparisons, in [0, 1], in which the training scorer and the oracle agree."""
    judge: dict[str, float] = field(default_factory=dict)
    """What is known of an LLM judge, by metric name (engine/report/collect.py); empty for other scorers."""
    num_prompts: int | None = None
    num_rows: int | None = None
    """Pairs (or groups of n answers) that were trained on."""
    num_ties: int | None = None
    """Prompts without a preference between their best and worst answer."""
    num_truncated: int | None = None
    """Answers cut by the length limit."""
    num_steps: int | None = None
    loss_first: float | None = None
    """Loss of the first optimizer step; like the last, read from metrics.jsonl where not given."""
    loss_last: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """What Monitor.end_iteration returned; read from metrics.jsonl where empty."""

    @property
    def wall(self) -> float | None:
        """Seconds."""
        return self.metrics.get("time/wall")

    def times(self) -> dict[str, tuple[float, float]]:
        """Per stage (busy, waiting) in seconds; each pair adds up to `wall`."""
        busy = {key: value for key, value in self.metrics.items() if re.fullmatch(r"time/[^/]+/busy", key)}
        return {key.split("/")[1]: (value, self.metrics.get(f"{key[:-4]}waiting", 0.0)) for key, value in busy.items()}


@dataclass(frozen=True)
class Summary:
    """One run."""

    name: str
    status: str = "running"
    """finished, running, or what stopped it."""
    num_iterations: int | None = None
    """Planned."""
    judge: str | None = None
    """Who decided the win rates; say so when it is the training scorer."""
    start: str | None = None
    """Digest of the weights that the run started from."""
    config: dict[str, Any] = field(default_factory=dict)
    """The keys worth reading first, e.g. {"algorithm": "sppo", "sampling.num_samples": 5}."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What it takes to do it again: reference policy, sampling, scorer id, seeds, versions."""
    iterations: tuple[IterationSummary, ...] = ()
    samples: tuple[Sample, ...] = ()
    """Of the last iteration."""


@dataclass(frozen=True)
class Column:
    """One column of the table of iterations."""

    name: str
    """In the CSV file; a win rate also gets <name>_low and <name>_high."""
    heading: str
    value: Callable[[IterationSummary], Any]
    show: Callable[[Any], str]
    brief: bool = False
    """Among the few columns that a terminal has room for."""

    def text(self, iteration: IterationSummary) -> str:
        value = self.value(iteration)
        return MISSING if value is None else self.show(value)


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def win_rate(rate: WinRate) -> str:
    return f"{percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def fact(value: Any) -> str:
    """A value of the configuration or the provenance; mappings as `torch 2.13, ray 2.60`."""
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _count(value: int) -> str:
    return f"{value:,}"


def _seconds(value: float) -> str:
    return f"{value:,.1f} s"


RESULTS = (
    Column("iteration", "iteration", lambda i: i.iteration, str, brief=True),
    Column("win_rate_start", "wins against start", lambda i: i.win_rate_start, win_rate, brief=True),
    Column("win_rate_previous", "wins against previous", lambda i: i.win_rate_previous, win_rate, brief=True),
    Column("win_rate_mixture", "mixture of iterates 1..t against start", lambda i: i.win_rate_mixture, win_rate),
    Column("mean_length", "mean length", lambda i: i.mean_length, "{:.1f}".format, brief=True),
    Column("agreement", "scorer agrees with oracle", lambda i: i.agreement, percent, brief=True),
)
WORK = (
    Column("num_prompts", "prompts", lambda i: i.num_prompts, _count),
    Column("num_rows", "pairs trained", lambda i: i.num_rows, _count, brief=True),
    Column("num_ties", "ties", lambda i: i.num_ties, _count),
    Column("num_truncated", "truncated", lambda i: i.num_truncated, _count),
    Column("num_steps", "steps", lambda i: i.num_steps, _count),
    Column("loss_first", "first loss", lambda i: i.loss_first, "{:.4g}".format),
    Column("loss_last", "last loss", lambda i: i.loss_last, "{:.4g}".format, brief=True),
)
WALL = (Column("wall_seconds", "wall time", lambda i: i.wall, _seconds, brief=True),)
JUDGE = {
    "judge/consistency": "judge: orders agree",
    "judge/position_bias": "judge: bias to the first",
    "judge/longer_preferred": "judge: longer wins",
    "judge/tie_rate": "judge: ties",
    "judge/missing_rate": "judge: no verdict",
    "judge/commonest_verdict": "judge: commonest verdict",
    "judge/canary_win_rate": "judge: canary wins",
}
"""Metric names of the judge's figures that are shares, with their headings."""
COLUMNS = RESULTS + WORK + WALL


def tables(summary: Summary) -> list[tuple[Column, ...]]:
    """The columns in tables that a page has room for: results, an LLM judge's ways, the work, and its time."""
    judge = [RESULTS[:1] + judge_columns(summary)] if judge_columns(summary) else []
    return [RESULTS, *judge, RESULTS[:1] + WORK, RESULTS[:1] + WALL + stage_columns(summary)]


def judge_columns(summary: Summary) -> tuple[Column, ...]:
    """One column per figure of the LLM judge that any iteration has."""
    known = {name for iteration in summary.iterations for name in iteration.judge}
    return tuple(
        Column(name.replace("/", "_"), heading, _judge(name), percent)
        for name, heading in JUDGE.items()
        if name in known
    )


def _judge(name: str) -> Callable[[IterationSummary], float | None]:
    return lambda iteration: iteration.judge.get(name)


def stage_columns(summary: Summary) -> tuple[Column, ...]:
    """One column per stage with its busy seconds, in the order in which stages first appear."""
    stages = dict.fromkeys(stage for iteration in summary.iterations for stage in iteration.times())
    return tuple(Column(f"busy_{stage}_seconds", f"{stage} busy", _busy(stage), _seconds) for stage in stages)


def _busy(stage: str) -> Callable[[IterationSummary], float | None]:
    return lambda iteration: iteration.times().get(stage, (None, None))[0]


def complete(summary: Summary, records: list[Record]) -> Summary:
    """Fill what `summary` leaves open from the lines of metrics.jsonl, iterations it does not list included."""
    known = {iteration.iteration: iteration for iteration in summary.iterations}
    lines: dict[int, list[Record]] = {number: [] for number in known}
    for record in records:
        if record["iteration"] is not None:
            lines.setdefault(record["iteration"], []).append(record)
    filled = (_fill(known.get(number, IterationSummary(number)), lines[number]) for number in sorted(lines))
    return replace(summary, iterations=tuple(filled))


def _fill(iteration: IterationSummary, records: list[Record]) -> IterationSummary:
    steps = sorted((r for r in records if r["kind"] == "step"), key=lambda r: r["step"])
    changes: dict[str, Any] = {}
    if steps:
        found = {"loss_first": steps[0].get("loss"), "loss_last": steps[-1].get("loss"), "num_steps": steps[-1]["step"]}
        changes |= {name: value for name, value in found.items() if getattr(iteration, name) is None}
    ends = [r for r in records if r["kind"] == "iteration"]
    if ends and not iteration.metrics:
        changes["metrics"] = {k: v for k, v in ends[-1].items() if "/" in k and isinstance(v, int | float)}
    return replace(iteration, **changes)
