"""Write a run's report: report/index.html, report.md, summary.json and iterations.csv.

It can be written at any time of a run and shows what is there so far. Each file is replaced as a whole.

Prompts and answers come from data sets and models and may be hostile. Every value in a template is escaped and made
printable, a content security policy forbids scripts, requests and foreign styles, and each text is isolated so that
right-to-left text cannot reorder its surroundings.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.errors import StoreError
from engine.metrics.trackers import FILE_NAME, Record, read_metrics
from engine.report import plots
from engine.report.figures import ITERATION, MISSING, Figure, columns, percent, stage_columns
from engine.report.summary import Summary, complete
from engine.text import html, markdown, markdown_block, printable

TEMPLATES = Path(__file__).parent / "templates"
NUM_NOTES = 100
"""Notes shown, the last ones."""
_COLUMNS = (ITERATION, *columns("results"), *columns("work"), *columns("time"))
"""The columns that do not depend on the run."""


def write_report(run_folder: Path, summary: Summary) -> Path:
    """Write the report of `run_folder` and return the path of its index.html.

    What `summary` leaves open is read from metrics.jsonl; what is in neither is shown as not there yet.
    """
    notes: list[str] = []
    records: list[Record] = []
    try:
        records = read_metrics(run_folder / FILE_NAME)
    except StoreError as error:  # a report that names the damage is better than none
        notes.append(str(error))
    summary = complete(summary, records)
    notes += [record["text"] for record in records if record["kind"] == "note"][-NUM_NOTES:]
    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "summary.json", json.dumps(_finite(asdict(summary)), indent=2, allow_nan=False, default=str) + "\n")
    _write(folder / "iterations.csv", _csv(summary))
    content = _content(summary)
    _write(folder / "report.md", _template("report.md.j2", markdown, markdown_block).render(content))
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = _template("index.html.j2", lambda text: html(text, newlines="show"), html)
    content |= {"plots": plots.draw(summary, records), "can_plot": plots.available(), "notes": notes}
    _write(folder / "index.html", page.render(content, style=Markup(style), policy=_policy(style)))
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


def _csv(summary: Summary) -> str:
    """Numbers in full precision, empty where missing, a win rate in three columns."""
    figures = (*_COLUMNS, *_judge_columns(summary), *stage_columns(summary.iterations))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for figure in figures for name in figure.numbers(figure.name, None)])
    for iteration in summary.iterations:
        cells = (figure.numbers(figure.name, figure.value(iteration)) for figure in figures)
        writer.writerow([number for numbers in cells for number in numbers.values()])
    return buffer.getvalue()


def _content(summary: Summary) -> dict[str, Any]:
    """What both templates show; a table of iterations is (headings, rows of texts)."""
    groups = (columns("results"), _judge_columns(summary), columns("work"), _time_columns(summary))
    tables = [(ITERATION, *figures) for figures in groups if figures]
    return {
        "run": summary,
        "tables": [
            ([f.heading for f in table], [[f.text(i) for f in table] for i in summary.iterations]) for table in tables
        ],
        "config": [(key, _fact(value)) for key, value in summary.config.items()],
        "provenance": [(key, _fact(value)) for key, value in summary.provenance.items()],
        "weights": [
            ("start", summary.start or MISSING, ""),
            *((f"iteration {i.iteration}", i.weights or MISSING, i.reference or MISSING) for i in summary.iterations),
        ],
        "missing": MISSING,
    }


def _judge_columns(summary: Summary) -> tuple[Figure, ...]:
    """The figures of an LLM judge that any iteration has."""
    return tuple(f for f in columns("judge") if any(f.value(i) is not None for i in summary.iterations))


def _time_columns(summary: Summary) -> tuple[Figure, ...]:
    return columns("time") + stage_columns(summary.iterations)


def _fact(value: Any) -> str:
    """A value of the configuration or the provenance; a mapping as `torch 2.13, ray 2.60`."""
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _template(name: str, line: Callable[[str], str], block: Callable[[str], str]) -> Template:
    """A template in which no value is markup: each is escaped by `line`, or by `block` if the filter |block is used."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(line(str(value))),
    )
    environment.filters["block"] = lambda text: Markup(block(text))
    environment.filters["share"] = lambda rate: MISSING if rate is None else percent(rate)
    return environment.get_template(name)


def _policy(style: str) -> str:
    """The content security policy: images in the page and this style, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


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
