"""Write a run's report: report/index.html, report.md, summary.json and iterations.csv.

Works at any time of a run with whatever is there. Each file is replaced as a whole.

Prompts and answers come from data sets and models, so they are treated as hostile: jinja2 escapes them, a
content security policy forbids scripts, requests and foreign styles, and each text is isolated so that
right-to-left text cannot reorder its surroundings.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.errors import StoreError
from engine.metrics.trackers import FILE_NAME, Record, read_metrics
from engine.report import plots
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
from engine.text import printable

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


@dataclass(frozen=True)
class Figure:
    """One figure; uri is None where there are no data for it yet."""

    title: str
    caption: str
    uri: str | None


STYLE = """
:root { color-scheme: light dark; --line: #8885; --faint: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } .facts th, .facts td { text-align: left; overflow-wrap: anywhere; }
.facts td:first-child, .facts th:first-child { overflow-wrap: normal; }
.scroll { overflow-x: auto; } .scroll td { white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: .3rem; } figure { margin: 1.2rem 0; }
figcaption, .faint { opacity: .75; font-size: .9rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; unicode-bidi: isolate;
  background: var(--faint); border-radius: .3rem; padding: .6rem; margin: .2rem 0 .6rem; font-size: .85rem; }
.sample { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1.5rem 0; }
""".strip()

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ s.name|one_line }} – Kumite report</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ s.name|one_line }}</h1>
<p class="faint">{{ s.status|one_line }} · {{ s.iterations|length }}{% if s.num_iterations %} of
{{ s.num_iterations }}{% endif %} iterations{% if s.judge %} · win rates by {{ s.judge|one_line }}{% endif %}</p>
<h2>Iterations</h2>
{% if s.iterations %}
{% for columns in tables %}
<div class="scroll"><table>
<thead><tr>{% for c in columns %}<th scope="col">{{ c.heading|one_line }}</th>{% endfor %}</tr></thead>
<tbody>{% for i in s.iterations %}
<tr>{% for c in columns %}<td>{{ c.text(i)|one_line }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="faint">Win rates with 95 % intervals; lengths in tokens; {{ missing }}: not there yet. Stages overlap,
so their busy times may add up to more than the wall time.</p>
{% else %}<p>Not there yet.</p>
{% endif %}
<h2>Figures</h2>
{% if figure_note %}<p>{{ figure_note|one_line }}</p>{% endif %}
{% for f in figures %}
<figure>
{% if f.uri %}<img src="{{ f.uri }}" alt="{{ f.title }}"><figcaption>{{ f.caption }}</figcaption>
{% else %}<p>{{ f.title }}: not there yet.</p>{% endif %}
</figure>
{% endfor %}
<h2>Samples of the last iteration</h2>
{% for x in samples %}
<div class="sample">
<strong>Prompt</strong><pre dir="auto">{{ x.prompt|visible }}</pre>
<strong>Best answer</strong> <span class="faint">{{ x.best_win_rate|rate }}</span>
<pre dir="auto">{{ x.best|visible }}</pre>
<strong>Worst answer</strong> <span class="faint">{{ x.worst_win_rate|rate }}</span>
<pre dir="auto">{{ x.worst|visible }}</pre>
</div>
{% else %}<p>Not there yet.</p>
{% endfor %}
{% macro facts(pairs) %}
{% if pairs %}<table class="facts"><tbody>{% for key, value in pairs.items() %}
<tr><th scope="row">{{ key|one_line }}</th><td>{{ value|fact|one_line }}</td></tr>{% endfor %}
</tbody></table>{% else %}<p>Not there yet.</p>{% endif %}
{% endmacro %}
<h2>Configuration</h2>
{{ facts(s.config) }}
<h2>Provenance</h2>
{{ facts(s.provenance) }}
<table class="facts"><thead><tr><th scope="col">policy</th><th scope="col">weights</th>
<th scope="col">reference</th></tr></thead><tbody>
<tr><td>start</td><td>{{ (s.start or missing)|one_line }}</td><td></td></tr>{% for i in s.iterations %}
<tr><td>iteration {{ i.iteration }}</td><td>{{ (i.weights or missing)|one_line }}</td>
<td>{{ (i.reference or missing)|one_line }}</td></tr>{% endfor %}
</tbody></table>
{% if notes %}
<h2>Notes</h2>
<ul>{% for note in notes %}<li>{{ note|one_line }}</li>{% endfor %}</ul>
{% endif %}
</body>
</html>
"""


def render(
    summary: Summary, samples: list[Any], figures: list[Figure], notes: list[str], figure_note: str | None
) -> str:
    """Return the page's HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "one_line": lambda value: printable(str(value), newlines="show"),
        "visible": printable,
        "fact": fact,
        "rate": lambda value: "" if value is None else f"win rate {percent(value)}",
    }
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.from_string(PAGE).render(
        s=summary,
        policy=policy,
        style=Markup(STYLE),  # ours, and its digest in the policy must be that of the very text
        tables=tables(summary),
        samples=samples,
        figures=figures,
        notes=notes,
        figure_note=figure_note,
        missing=MISSING,
    )
