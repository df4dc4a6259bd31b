"""The numbers of an evaluation as tables: in the terminal, as CSV, JSON and Markdown, and in the benchmarks' files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.evaluation.evaluation import Evaluation
from cluster.run.benchmark_files import write_files, write_together
from engine.schema import BENCHMARK_RESULTS
from engine.store.disk import Disk
from engine.text import markdown, printable

Row = dict[str, Any]
"""A row of BENCHMARK_RESULTS with `policy`, the name of the policy."""


def write_results(folder: Path, evaluations: Sequence[Evaluation], console: Console) -> None:
    """Write results.csv, results.json, results.md and the benchmarks' own files under `folder`; print the tables."""
    rows = [row for evaluation in evaluations for row in _rows(evaluation)]
    disk = Disk()
    disk.write(folder / "results.csv", _csv(rows).encode())
    disk.write(folder / "results.json", json.dumps(_finite(_document(evaluations, rows)), indent=2).encode())
    disk.write(folder / "results.md", _markdown(rows).encode())
    for evaluation in evaluations:
        names = {candidate.policy.version: candidate.name for candidate in evaluation.source.candidates}
        write_files(folder / "files", evaluation.benchmarks, evaluation.store, names)
    _write_plots(folder / "files", evaluations, rows, disk)
    write_together(
        folder / "files",
        [
            (benchmark, candidate.name, evaluation.tables(benchmark, candidate))
            for evaluation in evaluations
            for candidate in evaluation.source.candidates
            for benchmark in evaluation.benchmarks
            if evaluation.store.shards(candidate.policy.version, f"{benchmark.name}_results")
        ],
    )
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        console.print(_table(benchmark, [row for row in rows if row["benchmark"] == benchmark]))
    console.print(f"results  {folder / 'results.md'}\nfiles    {folder / 'files'}", markup=False, highlight=False)


def _rows(evaluation: Evaluation) -> list[Row]:
    return [
        {"policy": candidate.name, **row}
        for candidate in evaluation.source.candidates
        for benchmark in evaluation.benchmarks
        for table in evaluation.tables(benchmark, candidate).of(f"{benchmark.name}_results", BENCHMARK_RESULTS)
        for row in table.to_pylist()
    ]


def _document(evaluations: Sequence[Evaluation], rows: list[Row]) -> dict[str, Any]:
    """The results with what is needed to compare them: weights, digests, sampling, judges."""
    return {
        "policies": {c.name: c.policy.digest for evaluation in evaluations for c in evaluation.source.candidates},
        "provenance": {
            candidate.name: {b.name: evaluation.tables(b, candidate).provenance() for b in evaluation.benchmarks}
            for evaluation in evaluations
            for candidate in evaluation.source.candidates
        },
        "results": rows,
    }


def _write_plots(folder: Path, evaluations: Sequence[Evaluation], rows: list[Row], disk: Disk) -> None:
    """Images that show all policies."""
    for benchmark in evaluations[0].benchmarks if evaluations else []:
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["benchmark"] == benchmark.name:
                values.setdefault(row["policy"], {})[row["metric"]] = row["value"]
        for name, image in benchmark.plots(values).items():
            disk.write(folder / benchmark.name / name, image.encode())


def _csv(rows: list[Row]) -> str:
    """Numbers in full precision, empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["policy", *BENCHMARK_RESULTS.names]
    writer.writerow(names)
    for row in _finite(rows):
        writer.writerow([row[name] for name in names])
    return buffer.getvalue()


def _grid(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Policies as columns, metrics as lines."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    cells = {(row["metric"], row["policy"]): _number(row) for row in rows}
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    return ["metric", *policies], [[metric, *(cells.get((metric, p), "–") for p in policies)] for metric in metrics]


def _number(row: Row) -> str:
    """The value with its interval, else with its standard error."""
    value = "–" if math.isnan(row["value"]) else f"{row['value']:.4g}"
    if not math.isnan(row["low"]):
        return f"{value} [{row['low']:.4g}, {row['high']:.4g}]"
    return value if math.isnan(row["stderr"]) else f"{value} ± {row['stderr']:.2g}"


def _notes(rows: list[Row]) -> list[str]:
    """What must be known beside the numbers, each sentence once."""
    return list(dict.fromkeys(f"{row['metric']}: {row['note']}" for row in rows if row["note"]))


def _table(benchmark: str, rows: list[Row]) -> Table:
    headings, lines = _grid(rows)
    caption = Text("\n".join(printable(note) for note in _notes(rows)))
    table = Table(title=Text(benchmark), title_justify="left", caption=caption, caption_justify="left")
    for heading in headings:
        table.add_column(Text(printable(heading, newlines="show")), justify="left" if heading == "metric" else "right")
    for line in lines:
        table.add_row(*(Text(printable(cell, newlines="show")) for cell in line))
    return table


def _markdown(rows: list[Row]) -> str:
    parts = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        of_benchmark = [row for row in rows if row["benchmark"] == benchmark]
        headings, lines = _grid(of_benchmark)
        table = [headings, ["---"] * len(headings), *lines]
        parts += [f"## {benchmark}", "", *(f"| {' | '.join(map(markdown, line))} |" for line in table), ""]
        parts += [f"* {markdown(note)}" for note in _notes(of_benchmark)]
    return "\n".join(parts).rstrip() + "\n"


def _finite(value: Any) -> Any:
    """The same data with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
