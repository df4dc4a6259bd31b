"""Write a run's report: report/index.html, report.md, summary.json and iterations.csv.

It can be written at any time of a run and shows what is there so far. Each file is replaced as a whole.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.report.figures import ITERATION, Figure, columns, stage_columns
from engine.report.page import content
from engine.report.run_data import RunData
from engine.report.summary import Summary
from engine.report.templating import render_markdown, render_page
from engine.text import printable

_COLUMNS = (ITERATION, *columns("results"), *columns("work"), *columns("time"))
"""The columns that do not depend on the run."""


def write_report(data: RunData, reload_seconds: int | None = None) -> Path:
    """Write the report of a run into its folder and return the path of its index.html.

    reload_seconds: the page loads itself again after so many seconds; None: never.
    """
    folder = data.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    document = _finite(asdict(data.summary) | {"answer": asdict(data.answer)})
    _write(folder / "summary.json", json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")
    _write(folder / "iterations.csv", iterations_csv(data.summary))
    shown = content(data)
    _write(folder / "report.md", render_markdown("report.md.j2", shown))
    page = render_page("index.html.j2", f"{data.name} – Kumite report", shown, reload_seconds)
    _write(folder / "index.html", page)
    return folder / "index.html"


def print_table(console: Console, summary: Summary) -> None:
    """Print the table of iterations: the figures that a terminal has room for and that any iteration has.

    Figures from metrics.jsonl are there if `summary` is the result of `complete`.
    """
    table = Table(title=Text(printable(f"{summary.name}: {summary.status}", newlines="show")), title_justify="left")
    figures = [f for f in _COLUMNS if f.terminal and any(f.value(i) is not None for i in summary.iterations)]
    for figure in figures:
        heading = figure.heading or figure.name
        table.add_column(Text(heading), justify="right", min_width=max(map(len, heading.split())))
    for iteration in summary.iterations:
        table.add_row(*(Text(figure.text(iteration)) for figure in figures))
    console.print(table)


def iterations_csv(summary: Summary) -> str:
    """Numbers in full precision, empty where missing, a win rate in three columns."""
    figures = (*_COLUMNS, *_judge_columns(summary), *stage_columns(summary.iterations))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for figure in figures for name in figure.numbers(figure.name, None)])
    for iteration in summary.iterations:
        cells = (figure.numbers(figure.name, figure.value(iteration)) for figure in figures)
        writer.writerow([number for numbers in cells for number in numbers.values()])
    return buffer.getvalue()


def _judge_columns(summary: Summary) -> tuple[Figure, ...]:
    """The figures of an LLM judge that any iteration has."""
    return tuple(f for f in columns("judge") if any(f.value(i) is not None for i in summary.iterations))


def _finite(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)
