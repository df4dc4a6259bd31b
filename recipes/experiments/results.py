"""What experiments share: runs with a claim, results with tables and figures, and drawings.

An experiment is a function from a console to a Result. It may run whole self-play runs, each with a claim about
its last policy, or measure something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from engine.config.load import load
from engine.evaluation.statistics import spread
from engine.report.figures import win_rate
from engine.report.summary import Summary
from engine.store.disk import write_atomically
from recipes.experiments.figures import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path("runs/experiments")

CLAIMS = {
    "improves": lambda low, high: low > 0.55,
    "does not improve": lambda low, high: low <= 0.5,
    "gets worse": lambda low, high: high < 0.5,
    "is reported": lambda low, high: True,
}
"""Whether the 95 % interval [low, high] of the win rate against the start is as claimed."""


@dataclass(frozen=True)
class Run:
    """One run of an experiment, and what is claimed of its last policy's win rate against the start."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    """key=value, over the file."""
    claim: str = "is reported"

    def play(self, console: Console) -> Summary:
        """Run or resume, and return what the report says."""
        from cluster.run.job import Job

        console.rule(self.name)
        with Job(load(self.config, [f"output={FOLDER}", f"name={self.name}", *self.overrides]), console) as job:
            job.play()
            job.report("finished")
            return job.summary("finished")

    def holds(self, summary: Summary) -> bool:
        """Whether the last win rate is as claimed, and the gate promoted no version of a run that must not improve."""
        rate = summary.iterations[-1].win_rate_start
        assert rate is not None  # every experiment has held-out prompts
        gated = self.claim in ("improves", "is reported") or not any(i.promoted for i in summary.iterations)
        return bool(CLAIMS[self.claim](rate.low, rate.high)) and gated


@dataclass(frozen=True)
class Result:
    """What an experiment found."""

    tables: tuple[Table, ...]
    lines: tuple[str, ...]
    holds: bool
    """Whether every claim holds."""
    figures: dict[str, Any] = field(default_factory=dict)
    """For experiments.json."""


def result_of(title: str, runs: Sequence[Run], summaries: Mapping[str, Summary], lines: Sequence[str] = ()) -> Result:
    """One table, every claim, and per run its iterations. summaries: by the name of the run."""
    return Result(
        tables=(_table(title, runs, summaries),),
        lines=tuple(lines),
        holds=all(run.holds(summaries[run.name]) for run in runs),
        figures={name: json.loads(json.dumps(asdict(each)["iterations"])) for name, each in summaries.items()},
    )


def _table(title: str, runs: Sequence[Run], summaries: Mapping[str, Summary]) -> Table:
    """One row per run: the win rate against the start after each iteration, agreement, length, and the claim."""
    num_iterations = max(len(summaries[run.name].iterations) for run in runs)
    title = f"{title}\nwin rate against the start, by the oracle, with 95 % intervals over held-out prompts"
    numbers = (f"iteration {i + 1}" for i in range(num_iterations))
    table = table_with(title, "run", *numbers, "agreement", "tokens", "promoted", "claim", "holds")
    for run in runs:
        rows = summaries[run.name].iterations
        rates = [win_rate(row.win_rate_start) if row.win_rate_start else "–" for row in rows]
        rates += [""] * (num_iterations - len(rates))
        agreement = " / ".join(f"{row.agreement:.3f}" if row.agreement is not None else "–" for row in rows)
        tokens = f"{rows[-1].mean_length:.1f}"
        promoted = ", ".join(map(str, run.promoted())) or "none"
        table.add_row(
            run.name, *rates, agreement, tokens, promoted, run.claim, yes_or_no(run.holds(summaries[run.name]))
        )
    return table


def table_with(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def yes_or_no(holds: bool) -> str:
    return "yes" if holds else "NO"


def over_seeds(summaries: Sequence[Summary]) -> str:
    """The mean of the last win rates of several seeds' runs, with a 95 % t-interval."""
    last = [summary.iterations[-1].win_rate_start for summary in summaries]
    interval = spread([rate.value for rate in last if rate is not None])
    return f"{interval.mean:.3f}, 95 % t-interval [{interval.low:.3f}, {interval.high:.3f}]"


def measure_once(file: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The figures in `file`; if it does not exist, measure(folder of the file), which writes and returns them."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else measure(file.parent)


def save_svg(figure: Figure, file: Path) -> None:
    """Write a figure without spaces at line ends; the same drawing gives the same bytes."""
    lines = svg(figure).decode("utf-8").splitlines()
    write_atomically(file, "\n".join(line.rstrip() for line in lines) + "\n")
