"""Writes a run's report: report/index.html, report.md, summary.json and iterations.csv.

Works at any time of a run, with whatever is there; the files are replaced one by one, each as a whole.
Knows nothing of how a run works: it reads the Summary it is given and metrics.jsonl.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.errors import StoreError
from engine.report import plots
from engine.report.page import Figure, render
from engine.report.summary import (
    COLUMNS,
    MISSING,
    Column,
    IterationSummary,
    Sample,
    Summary,
    WinRate,
    complete,
    fact,
    judge_columns,
    percent,
    stage_columns,
    tables,
)
from engine.watch.metrics_file import FILE_NAME, Record, read_metrics
from engine.watch.text import printable

__all__ = ["IterationSummary", "Sample", "Summary", "WinRate", "complete", "print_table", "write_report"]

NUM_SAMPLES = 8
NUM_NOTES = 100
"""Notes shown, the last ones."""


def write_report(run_folder: Path, summary: Summary) -> Path:
    """Write the report of `run_folder` and return the path of its index.html.

    What `summary` leaves open is read from metrics.jsonl; what neither knows is shown as not there yet.
    """
    notes: list[str] = []
    records: list[Record] = []
    try:
        records = read_metrics(run_folder / FILE_NAME)
    except StoreError as error:  # a report that says what is wrong serves better than none
        notes.append(str(error))
    summary = complete(summary, records)
    notes += [record["text"] for record in records if record["kind"] == "note"][-NUM_NOTES:]
    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "summary.json", json.dumps(_finite(asdict(summary)), indent=2, allow_nan=False, default=str) + "\n")
    _write(folder / "iterations.csv", _csv(summary))
    _write(folder / "report.md", _markdown(summary))
    missing = None if plots.available() else "Figures need matplotlib, which is not installed (pip install matplotlib)."
    page = render(summary, list(summary.samples[:NUM_SAMPLES]), _figures(summary, records), notes, missing)
    _write(folder / "index.html", page)
    return folder / "index.html"


def print_table(console: Console, summary: Summary) -> None:
    """Print the table of iterations: of the columns that fit a terminal those that hold anything.

    Figures that only metrics.jsonl knows are in it after `complete(summary, read_metrics(path))`.
    """
    table = Table(title=Text(printable(f"{summary.name}: {summary.status}", newlines="show")), title_justify="left")
    brief = [column for column in COLUMNS if column.brief]
    columns = [column for column in brief if any(column.value(i) is not None for i in summary.iterations)]
    for column in columns:
        longest_word = max(map(len, column.heading.split()))
        table.add_column(Text(column.heading), justify="right", min_width=longest_word)
    for iteration in summary.iterations:
        table.add_row(*(Text(column.text(iteration)) for column in columns))
    console.print(table)


def _figures(summary: Summary, records: list[Record]) -> list[Figure]:
    if not plots.available():
        return []
    return [
        Figure(
            "Win rates",
            "Win rates on held-out prompts with 95 % intervals; dashed: as good as the opponent.",
            plots.win_rates(summary),
        ),
        Figure(
            "Training curves",
            "Training curves over optimizer steps; dotted: a new iteration begins.",
            plots.training_curves(records),
        ),
        Figure(
            "Stage times",
            "Where each iteration's wall time went: every bar is one stage, busy and waiting.",
            plots.stage_times(summary),
        ),
    ]


def _csv(summary: Summary) -> str:
    """Numbers in full precision, empty where missing, a win rate in three columns."""
    columns = COLUMNS + judge_columns(summary) + stage_columns(summary)
    cells = [_cells(column, None) for column in columns]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for group in cells for name in group])
    for iteration in summary.iterations:
        writer.writerow([value for column in columns for value in _cells(column, iteration).values()])
    return buffer.getvalue()


def _cells(column: Column, iteration: IterationSummary | None) -> dict[str, Any]:
    value = column.value(iteration) if iteration else None
    if not column.name.startswith("win_rate"):
        return {column.name: value}
    return {
        column.name: value and value.value,
        f"{column.name}_low": value and value.low,
        f"{column.name}_high": value and value.high,
    }


def _markdown(summary: Summary) -> str:
    judge = f" Win rates by {_inline(summary.judge)}." if summary.judge else ""
    parts = [
        f"# {_inline(summary.name)}",
        f"Status: {_inline(summary.status)}.{judge}",
        "## Iterations",
        *(
            _table([column.heading for column in columns], [[c.text(i) for c in columns] for i in summary.iterations])
            for columns in tables(summary)
        ),
        f"Win rates with 95 % intervals; lengths in tokens; {MISSING}: not there yet.",
        "## Samples of the last iteration",
        "\n\n".join(map(_sample, summary.samples[:NUM_SAMPLES])) or "Not there yet.",
        "## Configuration",
        _table(["key", "value"], [[key, fact(value)] for key, value in summary.config.items()]),
        "## Provenance",
        _table(["what", "value"], [[key, fact(value)] for key, value in summary.provenance.items()]),
        _table(
            ["policy", "weights", "reference"],
            [["start", summary.start or MISSING, ""]]
            + [[f"iteration {i.iteration}", i.weights or MISSING, i.reference or MISSING] for i in summary.iterations],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heading: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return "Not there yet."
    lines = [heading, ["---"] * len(heading), *([_inline(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(value: Any) -> str:
    """Text for a line of Markdown in which no character means markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~$])", r"\\\1", printable(str(value), newlines="show"))


def _sample(sample: Sample) -> str:
    rates = [MISSING if r is None else percent(r) for r in (sample.best_win_rate, sample.worst_win_rate)]
    titled = {
        "Prompt": sample.prompt,
        f"Best answer, win rate {rates[0]}": sample.best,
        f"Worst answer, win rate {rates[1]}": sample.worst,
    }
    return "\n\n".join(f"**{title}**\n\n{_fenced(text)}" for title, text in titled.items())


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text, so that nothing ends it early."""
    text = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _finite(value: Any) -> Any:
    """The same data with None for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)
