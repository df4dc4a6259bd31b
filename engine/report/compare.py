"""Several runs side by side: which belong together, what varies, which differences are significant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from engine.config.base import NO_EFFECT
from engine.evaluation import statistics
from engine.evaluation.differences import Difference, difference, holm
from engine.report.collect import WinRate
from engine.report.config_diff import all_settings
from engine.report.figures import IterationSummary
from engine.report.run_data import RunData
from engine.report.samples import start_rates
from engine.schema import HELDOUT_WIN_RATES

SEED = "seed"
MAX_ALL_PAIRS = 8
"""Of more groups, each is compared with the first one only."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only."""

    values: dict[str, Any]
    """The varied keys and their values."""
    runs: tuple[RunData, ...]

    @property
    def name(self) -> str:
        """What varies, in words; of a single run its name."""
        if len(self.runs) == 1 or not self.values:
            return self.runs[0].name if len(self.runs) == 1 else "all runs"
        return ", ".join(f"{key.rpartition('.')[2]} = {value}" for key, value in self.values.items())

    def final(self) -> WinRate | None:
        """Win rate of the last versions against the start: of one run over prompts, of several over seeds."""
        return over_seeds([rate for run in self.runs if (rate := final_rate(run))])

    def at(self, iteration: int) -> list[IterationSummary]:
        """The runs' figures of an iteration, counted from 1."""
        return [i for run in self.runs for i in run.summary.iterations if i.iteration == iteration]

    def rates(self) -> dict[str, float]:
        """{held-out prompt_id: win rate against the start}, the mean over the runs; prompts that all of them have."""
        tables = [table for run in self.runs if (table := last_rates(run))]
        common = set.intersection(*(set(table) for table in tables)) if tables else set()
        return {name: float(np.mean([table[name] for table in tables])) for name in sorted(common)}


@dataclass(frozen=True)
class Compared:
    """Two groups and the difference of their win rates."""

    one: str
    other: str
    difference: Difference | None
    """None: they cannot be compared, `reason` says why."""
    corrected: float | None = None
    """Holm's p-value."""
    reason: str = ""


@dataclass(frozen=True)
class Grid:
    """Win rates over two varied keys."""

    fixed: dict[str, Any]
    """Other varied keys and their values here."""
    row_key: str
    column_key: str
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    cells: dict[tuple[Any, Any], WinRate]


def final_rate(run: RunData) -> WinRate | None:
    """Win rate against the start of the last version that was compared with it."""
    return next((i.win_rate_start for i in reversed(run.summary.iterations) if i.win_rate_start), None)


def last_version(run: RunData) -> int | None:
    """The last version that was compared with the start."""
    return next((i.iteration for i in reversed(run.summary.iterations) if i.win_rate_start), None)


def last_rates(run: RunData) -> dict[str, float]:
    version = last_version(run)
    return start_rates(run.store, version) if version is not None else {}


def over_seeds(rates: Sequence[WinRate]) -> WinRate | None:
    """The mean with its t-interval over runs; one run keeps its interval over prompts."""
    if len(rates) < 2:
        return rates[0] if rates else None
    spread = statistics.spread([rate.value for rate in rates])
    return WinRate(spread.mean, spread.low, spread.high)


def varied_keys(runs: Sequence[RunData]) -> list[str]:
    """The keys in which the runs differ, apart from the seed and from keys without effect on results."""
    settings = [{s.key: s.value for s in all_settings(run.config)} for run in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    ignored = {*_without_effect(type(runs[0].config)), SEED} if runs else set()
    return [
        key
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in ignored)
        and any(values.get(key) != settings[0].get(key) for values in settings)
    ]


def _without_effect(kind: Any) -> Iterator[str]:
    """Top-level keys and sections that decide where and how a run computes, but not what."""
    for name, field in kind.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(NO_EFFECT):
            yield name


def groups(runs: Sequence[RunData]) -> list[Group]:
    """The runs by the values of the keys that vary; those of a group differ in their seeds only."""
    keys = varied_keys(runs)
    found: dict[str, tuple[dict[str, Any], list[RunData]]] = {}
    for run in runs:
        settings = {s.key: s.value for s in all_settings(run.config)}
        values = {key: settings.get(key) for key in keys}
        found.setdefault(repr(values), (values, []))[1].append(run)
    return [Group(values, tuple(members)) for values, members in found.values()]


def compare(found: Sequence[Group]) -> list[Compared]:
    """Every pair of groups, or of many groups each with the first one; p-values are corrected for their number."""
    with_first = [(found[0], group) for group in found[1:]]
    pairs = with_first if len(found) > MAX_ALL_PAIRS else list(combinations(found, 2))
    rates = {id(group): group.rates() for group in found}
    compared = []
    for one, other in pairs:
        reason = incomparable(one, other)
        found_difference = None if reason else difference(rates[id(one)], rates[id(other)])
        if not reason and found_difference is None:
            reason = "one of them has no held-out verdicts yet"
        compared.append(Compared(one.name, other.name, found_difference, None, reason))
    p_values = iter(holm([c.difference.p_value for c in compared if c.difference]))
    return [Compared(c.one, c.other, c.difference, next(p_values), c.reason) if c.difference else c for c in compared]


def incomparable(one: Group, other: Group) -> str:
    """Why win rates of the two mean different things; empty if they do not."""
    runs = (*one.runs, *other.runs)
    if len({run.store.recorded_digest(0) for run in runs}) > 1:
        return "their start models differ, and win rates are against the start"
    evaluators = {name for run in runs if (name := evaluator(run))}
    return f"their evaluators differ: {' and '.join(sorted(evaluators))}" if len(evaluators) > 1 else ""


def evaluator(run: RunData) -> str | None:
    """Id of the scorer that compared the last version with the start."""
    version = last_version(run)
    tables = run.store.tables(version, "heldout_win_rates", HELDOUT_WIN_RATES) if version is not None else iter(())
    return next((table["evaluator"][0].as_py() for table in tables if table.num_rows), None)


def grids(found: Sequence[Group]) -> list[Grid]:
    """Win rates over the two varied keys with the most values, one grid per value of the others; [] for fewer keys."""
    keys = list(found[0].values) if found else []
    distinct = {key: list(dict.fromkeys(repr(group.values[key]) for group in found)) for key in keys}
    if len(keys) < 2:
        return []
    row_key, column_key = sorted(keys, key=lambda key: -len(distinct[key]))[:2]
    slices: dict[str, list[Group]] = {}
    for group in found:
        fixed = {key: value for key, value in group.values.items() if key not in (row_key, column_key)}
        slices.setdefault(repr(fixed), []).append(group)
    return [_grid(members, row_key, column_key) for members in slices.values()]


def _grid(members: Sequence[Group], row_key: str, column_key: str) -> Grid:
    fixed = {key: value for key, value in members[0].values.items() if key not in (row_key, column_key)}
    cells = {
        (_plain(group.values[row_key]), _plain(group.values[column_key])): rate
        for group in members
        if (rate := group.final())
    }
    rows, columns = (_ordered([_plain(group.values[key]) for group in members]) for key in (row_key, column_key))
    return Grid(fixed, row_key, column_key, rows, columns, cells)


def _plain(value: Any) -> Any:
    """Numbers stay numbers, so that they are in order; everything else becomes text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _ordered(values: Sequence[Any]) -> tuple[Any, ...]:
    distinct = list(dict.fromkeys(values))
    return tuple(sorted(distinct)) if all(isinstance(value, int | float) for value in distinct) else tuple(distinct)
