"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluation.differences import LEVEL
from engine.report.benchmark_tables import CATEGORY, MIN_AXES, category_chart, number
from engine.report.collect import WinRate
from engine.report.compare import (
    MAX_ALL_PAIRS,
    SEED,
    Compared,
    Grid,
    Group,
    compare,
    final_rate,
    grids,
    groups,
    last_version,
    over_seeds,
)
from engine.report.figures import MISSING, percent, win_rate
from engine.report.page import fact, title
from engine.report.run_charts import PERCENT, Value
from engine.report.run_data import RunData
from engine.report.samples import spaced, texts_of
from engine.report.svg import NUM_COLOURS, Chart, Point, Series, curves
from engine.report.templating import render_page
from engine.store.disk import Disk

NUM_PROMPTS = 16
"""Held-out prompts whose answers are shown side by side."""


def write_comparison(runs: Sequence[RunData], output: Path) -> Path:
    """Write one page that compares `runs`, at least one; return its path."""
    page = render_page("compare.html.j2", f"{len(runs)} runs – Kumite report", content(runs))
    Disk().write(output, page.encode("utf-8"))
    return output


def content(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything that compare.html.j2 shows."""
    found = groups(runs)
    best_first = sorted(found, key=lambda group: -(rate.value if (rate := group.final()) else -1.0))
    compared = compare(best_first)
    return {
        "num_runs": len(runs),
        "headline": headline(best_first, compared),
        "lead": lead(found),
        "groups": group_table(best_first),
        "differences": difference_table(compared),
        "compared_with_best": len(found) > MAX_ALL_PAIRS,
        "level": LEVEL,
        "curves": charts(best_first[:NUM_COLOURS]),
        "num_shown": min(len(found), NUM_COLOURS),
        "num_groups": len(found),
        "grids": [grid_of(grid) for grid in grids(found)],
        "benchmarks": benchmarks(runs),
        "samples": samples(runs),
        "runs": run_table(runs),
    }


def headline(best_first: Sequence[Group], compared: Sequence[Compared]) -> str:
    """Which is best, and whether the next one is significantly worse."""
    rated = [(group, rate) for group in best_first if (rate := group.final())]
    if not rated:
        return "No run has been compared with its start yet."
    best, rate = rated[0]
    text = f"{best.name} is best: it wins {percent(rate.value)} against its start"
    if len(rated) == 1:
        return f"{text}."
    after = rated[1][0].name
    pair = next((c for c in compared if {c.one, c.other} == {best.name, after}), None)
    if pair is None or pair.corrected is None:
        return f"{text}; whether it is better than {after} is not known."
    verdict = "significantly better than" if pair.corrected < LEVEL else "not shown to be better than"
    return f"{text} and is {verdict} the next one, {after}."


def lead(found: Sequence[Group]) -> str:
    keys = list(found[0].values)
    varied = f"What varies: {', '.join(keys)}. " if keys else "The runs differ in their seeds only. "
    seeds = max(len(group.runs) for group in found)
    if seeds > 1:
        return f"{varied}Runs that differ only in their seed are one group, with a 95 % t-interval over its seeds."
    return f"{varied}Each has one seed: the 95 % intervals are over held-out prompts and say nothing about other seeds."


def group_table(best_first: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """One line per group: what varies, and what came out."""
    keys = list(best_first[0].values)
    headings = ["group", *keys, "runs", "wins against start", "KL from start", "mean length"]
    lines = []
    for group in best_first:
        last = [run.summary.iterations[version - 1] for run in group.runs if (version := last_version(run))]
        rate = group.final()
        lines.append(
            [
                group.name,
                *(fact(group.values[key]) for key in keys),
                str(len(group.runs)),
                win_rate(rate) if rate else MISSING,
                _mean([i.kl for i in last], "{:.2f}"),
                _mean([i.mean_length for i in last], "{:.1f}"),
            ]
        )
    return headings, lines


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(float(np.mean(known))) if known else MISSING


def difference_table(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """One line per pair, the surest first."""
    headings = ["first", "second", "difference of win rates", "p-value", "corrected", "significant", "prompts"]
    order = sorted(compared, key=lambda c: (c.corrected is None, c.corrected or 0.0))
    return headings, [_difference(c) for c in order]


def _difference(pair: Compared) -> list[str]:
    found = pair.difference
    if found is None or pair.corrected is None:
        return [pair.one, pair.other, MISSING, MISSING, MISSING, f"not comparable: {pair.reason}", MISSING]
    interval = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    prompts = f"{found.num_prompts:,} {'paired' if found.is_paired else 'unpaired'}"
    significant = "yes" if pair.corrected < LEVEL else "no"
    return [pair.one, pair.other, interval, f"{found.p_value:.4f}", f"{pair.corrected:.4f}", significant, prompts]


def charts(shown: Sequence[Group]) -> list[Chart]:
    """Overlaid curves of the groups over iterations."""
    wanted: tuple[tuple[str, str, Value, Any, Any, float], ...] = (
        ("Win rate against the start", "On held-out prompts, with 95 % intervals.", lambda i: i.win_rate_start,
         percent, PERCENT, 0.5),
        ("Win rate against the one before", "The same against the version it was trained from.",
         lambda i: i.win_rate_previous, percent, PERCENT, 0.5),
        ("Length", "Tokens per held-out answer.", lambda i: i.mean_length, "{:.1f}".format, None, 0.0),
        ("KL divergence", "From the start, in nats per held-out answer.", lambda i: i.kl, "{:.2f}".format, None, 0.0),
        ("Agreement", "Of scorer and evaluator.", lambda i: i.agreement, percent, PERCENT, 0.5),
        ("Last loss", "Of each iteration.", lambda i: i.loss_last, "{:.4g}".format, None, 0.0),
    )  # fmt: skip
    found = []
    for name, caption, value, show, tick, reference in wanted:
        series = [one for group in shown if (one := _series(group, value))]
        if series:
            dashed = reference or None
            found.append(curves(name, caption, series, "iteration", show, tick, dashed, reference == 0.0, whole=True))
    return found


def _series(group: Group, value: Value) -> Series | None:
    points = []
    for iteration in range(1, 1 + max((len(run.summary.iterations) for run in group.runs), default=0)):
        values = [found for i in group.at(iteration) if (found := value(i)) is not None]
        rate = over_seeds([found if isinstance(found, WinRate) else WinRate(found, found, found) for found in values])
        if rate:
            has_interval = rate.low < rate.high
            points.append(Point(iteration, rate.value, *((rate.low, rate.high) if has_interval else (None, None))))
    return Series(group.name, tuple(points)) if points else None


def grid_of(grid: Grid) -> dict[str, Any]:
    """A heat map: win rates against the start by two keys."""
    rows = []
    for row in grid.rows:
        rates = [grid.cells.get((row, column)) for column in grid.columns]
        rows.append((fact(row), [rate.value if rate else None for rate in rates]))
    fixed = ", ".join(f"{key} = {fact(value)}" for key, value in grid.fixed.items())
    label = f"Wins against the start in %; rows: {grid.row_key}, columns: {grid.column_key}"
    return {"title": fixed, "rows": rows, "names": [fact(column) for column in grid.columns], "label": label}


def benchmarks(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Per benchmark a table of the last versions that have it, runs as columns, and a radar of its categories."""
    last: dict[str, dict[int, dict[str, Any]]] = {}
    for k, run in enumerate(runs):
        for row in run.benchmarks:
            of_run = last.setdefault(row.benchmark, {}).setdefault(k, {})
            if row.version == max(r.version for r in run.benchmarks if r.benchmark == row.benchmark):
                of_run[row.metric] = row
    found = []
    for name, by_run in last.items():
        metrics = list(dict.fromkeys(metric for rows in by_run.values() for metric in rows))
        table = [[m, *(number(rows[m]) if m in rows else MISSING for rows in by_run.values())] for m in metrics]
        categories = [metric for metric in metrics if metric.startswith(CATEGORY)]
        series = [
            (runs[k].name, [rows[c].value if c in rows else None for c in categories])
            for k, rows in list(by_run.items())[:NUM_COLOURS]
        ]
        radar = category_chart(name, categories, series) if len(categories) >= MIN_AXES else None
        headings = ["metric", *(runs[k].name for k in by_run)]
        found.append({"name": name, "headings": headings, "rows": table, "radar": radar})
    return found


def samples(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Held-out prompts that all runs answered, each with the answers of every run's last version."""
    versions = [(run, version) for run in runs if (version := last_version(run)) is not None]
    if len(versions) < 2:
        return []
    rates = [(run, group.rates()) for run, _ in versions for group in [Group({}, (run,))]]
    common = sorted(set.intersection(*(set(table) for _, table in rates)), key=rates[0][1].__getitem__)
    wanted = [common[k] for k in spaced(range(len(common)), NUM_PROMPTS)]
    answers = [(run, texts_of(run.store, version, wanted)) for run, version in versions]
    shown = []
    for name in wanted:
        prompt = answers[0][1][name][0]
        said = [
            {"title": run.name, "rate": percent(table[name]), "texts": texts[name][1]}
            for (run, texts), (_, table) in zip(answers, rates, strict=True)
            if name in texts
        ]
        shown.append({"title": title(prompt), "prompt": prompt, "answers": said, "rate": f"{rates[0][1][name]:.4f}"})
    return shown


def run_table(runs: Sequence[RunData]) -> tuple[list[str], list[list[str]]]:
    headings = ["run", "folder", SEED, "status", "iterations", "wins against start", "version to take"]
    return headings, [
        [
            run.name,
            str(run.folder),
            str(run.config.seed),
            run.status,
            str(len(run.summary.iterations)),
            win_rate(rate) if (rate := final_rate(run)) else MISSING,
            MISSING if run.answer.take is None else str(run.answer.take),
        ]
        for run in runs
    ]
