"""The results of benchmarks: one table per benchmark, versions as columns, and a radar over its categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.figures import MISSING
from engine.report.run_data import BenchmarkRow
from engine.report.svg import Chart, radar

CATEGORY = "category/"
"""Begins the metrics of a benchmark's categories, which make a radar."""
MIN_AXES = 3


@dataclass(frozen=True)
class BenchmarkTable:
    """One benchmark of one run."""

    name: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]
    radar: Chart | None = None


def benchmark_tables(rows: Sequence[BenchmarkRow]) -> list[BenchmarkTable]:
    """The tables in the order of the benchmarks."""
    names = dict.fromkeys(row.benchmark for row in rows)
    return [_table(name, [row for row in rows if row.benchmark == name]) for name in names]


def _table(name: str, rows: Sequence[BenchmarkRow]) -> BenchmarkTable:
    versions = sorted({row.version for row in rows})
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.metric, row.version): number(row) for row in rows}
    lines = [[metric, *(cells.get((metric, version), MISSING) for version in versions)] for metric in metrics]
    headings = ["metric", *map(version_name, versions)]
    notes = list(dict.fromkeys(f"{row.metric}: {row.note}" for row in rows if row.note))
    return BenchmarkTable(name, headings, lines, notes, category_radar(name, versions, rows))


def version_name(version: int) -> str:
    return f"version {version}" if version else "start"


def number(row: BenchmarkRow) -> str:
    """The value with its interval, else with its standard error."""
    if math.isnan(row.value):
        return MISSING
    value = f"{row.value:.4g}"
    if not math.isnan(row.low):
        return f"{value} [{row.low:.4g}, {row.high:.4g}]"
    return value if math.isnan(row.stderr) else f"{value} ± {row.stderr:.2g}"


def category_radar(name: str, versions: Sequence[int], rows: Sequence[BenchmarkRow]) -> Chart | None:
    """The start and the last version over the benchmark's categories; None if it has fewer than three."""
    categories = list(dict.fromkeys(row.metric for row in rows if row.metric.startswith(CATEGORY)))
    values = {(row.metric, row.version): row.value for row in rows if not math.isnan(row.value)}
    if len(categories) < MIN_AXES or not values:
        return None
    ends = list(dict.fromkeys((versions[0], versions[-1])))
    series = [(version_name(version), [values.get((c, version)) for c in categories]) for version in ends]
    return category_chart(name, categories, series)


def category_chart(
    name: str, categories: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]
) -> Chart | None:
    """A radar whose axes begin at 0 and end at a round number above the highest value; None without any value."""
    known = [value for _, values in series for value in values if value is not None]
    if not known:
        return None
    top = max(known)
    power = 10.0 ** math.ceil(math.log10(top)) if top > 0 else 1.0
    axes = [category.removeprefix(CATEGORY) for category in categories]
    return radar(f"{name} by category", "Larger is better.", axes, series, min(0.0, *known), power)
