"""A trial is one run with a claim about its last policy; a proof is a table of trials and whether all claims held.

Knows how to run or resume a trial and what its report says; nothing of worlds or algorithms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.config.load import load
from engine.evaluation.statistics import Interval, spread
from engine.report.figures import win_rate
from engine.report.summary import Summary

FOLDER = Path("runs/proof")

CLAIMS = {
    "improves": lambda low, high: low > 0.55,
    "does not improve": lambda low, high: low <= 0.5,
    "gets worse": lambda low, high: high < 0.5,
    "is reported": lambda low, high: True,
}
"""Whether the 95 % interval [low, high] of the win rate against the start bears a claim out."""


@dataclass(frozen=True)
class Trial:
    """One run of a proof, and what is claimed of its last policy's win rate against the start."""

    name: str
    config: str
    changes: tuple[str, ...] = ()
    """key=value, over the file."""
    claim: str = "is reported"


@dataclass(frozen=True)
class Outcome:
    """What a part of the proof found."""

    tables: tuple[Table, ...]
    lines: tuple[str, ...]
    holds: bool
    figures: dict[str, Any] = field(default_factory=dict)
    """For proof.json."""


def run(trial: Trial, console: Console) -> Summary:
    """Run or resume a trial and return what its report says."""
    from cluster.commands.job import Job

    console.rule(trial.name)
    with Job(load(trial.config, [f"output={FOLDER}", f"name={trial.name}", *trial.changes]), console) as job:
        job.play()
        job.report("finished")
        return job.summary("finished")


def holds(trial: Trial, summary: Summary) -> bool:
    """Whether the claim is borne out."""
    rate = summary.iterations[-1].win_rate_start
    assert rate is not None  # every trial has held-out prompts
    return bool(CLAIMS[trial.claim](rate.low, rate.high))


def table(title: str, trials: Sequence[Trial], results: dict[str, Summary]) -> Table:
    """One row per trial: the win rate against the start after each iteration, agreement, length, claim and verdict."""
    most = max(len(results[trial.name].iterations) for trial in trials)
    shown = Table(
        title=f"{title}\nwin rate against the start, by the oracle, with 95 % intervals over held-out prompts"
    )
    for heading in ("run", *(f"iteration {i + 1}" for i in range(most)), "agreement", "tokens", "claim", "holds"):
        shown.add_column(heading)
    for trial in trials:
        rows = results[trial.name].iterations
        rates = [win_rate(row.win_rate_start) if row.win_rate_start else "–" for row in rows]
        agreement = " / ".join(f"{row.agreement:.3f}" if row.agreement is not None else "–" for row in rows)
        tokens = f"{rows[-1].mean_length:.1f}"
        verdict = "yes" if holds(trial, results[trial.name]) else "NO"
        shown.add_row(trial.name, *rates, *[""] * (most - len(rates)), agreement, tokens, trial.claim, verdict)
    return shown


def across(results: dict[str, Summary], names: Sequence[str]) -> Interval:
    """The last win rates of several seeds' runs: their mean with a 95 % t-interval."""
    last = [results[name].iterations[-1].win_rate_start for name in names]
    return spread([rate.value for rate in last if rate is not None])


def in_words(what: str, interval: Interval) -> str:
    return f"{what}: {interval.mean:.3f}, 95 % t-interval [{interval.low:.3f}, {interval.high:.3f}]"


def outcome(title: str, trials: Sequence[Trial], results: dict[str, Summary], lines: Sequence[str] = ()) -> Outcome:
    """The usual outcome: one table, and every claim."""
    return Outcome(
        tables=(table(title, trials, results),),
        lines=tuple(lines),
        holds=all(holds(trial, results[trial.name]) for trial in trials),
        figures={name: json.loads(json.dumps(asdict(summary)["iterations"])) for name, summary in results.items()},
    )
