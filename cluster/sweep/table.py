"""What a sweep found: one row per run, means over seeds, and the grid of two keys."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.sweep.grid import SEED, Sweep
from cluster.sweep.runner import Outcome
from engine.evaluation.gate import best_version
from engine.evaluation.statistics import spread
from engine.report.collect import IterationTables, WinRate
from engine.report.compare_page import write_comparison
from engine.report.figures import MISSING, win_rate
from engine.report.run_data import read_run
from engine.store.disk import write_atomically
from engine.store.reader import RunReader
from engine.text import markdown


@dataclass(frozen=True)
class Found:
    """One run of a sweep, as far as it came."""

    name: str
    values: dict[str, Any]
    status: str
    """finished, or failed (exit code)."""
    last: int
    """Its last version; 0 if it made none."""
    best: int
    """The version that the gate promoted last."""
    win_rate: WinRate | None
    """Of the last version against the start."""


def found(outcome: Outcome, folder: Path) -> Found:
    """Read a run's folder."""
    status = "finished" if outcome.exit_code == 0 else f"failed ({outcome.exit_code})"
    name, values = outcome.run.name, dict(outcome.run.values)
    if not (folder / "manifest.jsonl").is_file():
        return Found(name, values, status, 0, 0, None)
    run = RunReader(folder)
    last = max(run.versions, default=0)
    rate = IterationTables(run, outcome.run.config.algorithm, last - 1).win_rate("start") if last else None
    return Found(name, values, status, last, best_version(run)[0], rate)


def write_table(sweep: Sweep, outcomes: Sequence[Outcome], console: Console) -> None:
    """Write sweep.csv, sweep.md and the page sweep.html into the sweep's folder, and print the tables."""
    rows = [found(outcome, sweep.folder / outcome.run.name) for outcome in outcomes]
    tables = [_runs(sweep, rows), *_means(sweep, rows), *_grid(sweep, rows)]
    write_atomically(sweep.folder / "sweep.csv", _csv(sweep, rows))
    write_atomically(sweep.folder / "sweep.md", "\n".join(_markdown(*table) for table in tables))
    for title, headings, lines in tables:
        table = Table(title=Text(title), title_justify="left")
        for heading in headings:
            table.add_column(Text(heading), justify="right")
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)
    console.print(f"table    {sweep.folder / 'sweep.md'}", markup=False, highlight=False, soft_wrap=True)
    folders = (sweep.folder / outcome.run.name for outcome in outcomes)
    if runs := [read_run(folder) for folder in folders if (folder / "manifest.jsonl").is_file()]:
        page = write_comparison(runs, sweep.folder / "sweep.html")
        console.print(f"report   {page}", markup=False, highlight=False, soft_wrap=True)


Grid = tuple[str, list[str], list[list[str]]]
"""A title, headings, lines."""


def _runs(sweep: Sweep, rows: Sequence[Found]) -> Grid:
    headings = [*sweep.keys, "wins against start", "version", "take", "status"]
    lines = [
        [
            *(_value(row.values[key]) for key in sweep.keys),
            _rate(row.win_rate),
            str(row.last),
            str(row.best),
            row.status,
        ]
        for row in rows
    ]
    return "runs, with 95 % intervals over held-out prompts", headings, lines


def _means(sweep: Sweep, rows: Sequence[Found]) -> list[Grid]:
    """Means over seeds, with t-intervals, where a seed is varied."""
    if SEED not in sweep.keys:
        return []
    keys = _beside_seeds(sweep)
    lines = [[*map(_value, point), text] for point, text in _over_seeds(keys, rows).items()]
    return [("means over seeds, with 95 % t-intervals", [*keys, "wins against start"], lines)]


def _grid(sweep: Sweep, rows: Sequence[Found]) -> list[Grid]:
    """Win rates by two keys, where exactly two are varied beside the seed."""
    keys = _beside_seeds(sweep)
    if len(keys) != 2:
        return []
    cells = _over_seeds(keys, rows)
    down, across = (list(dict.fromkeys(json.dumps(row.values[key]) for row in rows)) for key in keys)
    lines = [
        [_value(json.loads(y)), *(cells.get((json.loads(y), json.loads(x)), MISSING).split(" [")[0] for x in across)]
        for y in down
    ]
    return [(f"wins against start: {keys[0]} (down) by {keys[1]} (across)",
             [keys[0], *(_value(json.loads(x)) for x in across)], lines)]  # fmt: skip


def _beside_seeds(sweep: Sweep) -> list[str]:
    """The varied keys without the seed and those linked with it."""
    return [key for key in sweep.keys if key != SEED and key not in sweep.with_seed]


def _over_seeds(keys: Sequence[str], rows: Sequence[Found]) -> dict[tuple[Any, ...], str]:
    """{values of `keys`: mean win rate with the t-interval over its runs, without one for a single run}."""
    rates: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        point = rates.setdefault(tuple(_hashable(row.values[key]) for key in keys), [])
        if row.win_rate:
            point.append(row.win_rate.value)
    texts = {}
    for key, values in rates.items():
        if len(values) > 1:
            interval = spread(values)
            texts[key] = f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}], {len(values)} seeds"
        else:
            texts[key] = f"{values[0]:.3f}" if values else MISSING
    return texts


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _csv(sweep: Sweep, rows: Sequence[Found]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", *sweep.keys, "win_rate", "win_rate_low", "win_rate_high", "version", "best", "status"])
    for row in rows:
        rate = row.win_rate
        numbers = [rate.value, rate.low, rate.high] if rate else [None] * 3
        values = [row.values[key] for key in sweep.keys]
        writer.writerow([row.name, *values, *numbers, row.last, row.best, row.status])
    return buffer.getvalue()


def _markdown(title: str, headings: list[str], lines: list[list[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return f"**{markdown(title)}**\n\n" + "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in rows) + "\n"


def _rate(rate: WinRate | None) -> str:
    return win_rate(rate) if rate else MISSING


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
