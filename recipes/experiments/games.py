"""The two exact worlds as parts of the proof: the cyclic game, whose claims must hold, and the coverage world.

Of coverage nothing is claimed beforehand but that the figures are complete: docs/spac.md reports them as they came out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.experiments.trials import FOLDER, Outcome


def cycle(console: Console) -> Outcome:
    from recipes.experiments.cycle.measure import measure

    console.rule("cycle")
    figures = _measured(FOLDER / "cycle" / "cycle.json", measure)
    table = Table(title="SPPO's learner in the cyclic game (docs/sppo_game.md)")
    for heading in ("claim", "holds"):
        table.add_column(heading)
    for claim, holds in figures["claims"].items():
        table.add_row(claim, "yes" if holds else "NO")
    sppo, dpo = figures["sppo"], figures["dpo"]
    lines = (
        f"exploitability of the average: {sppo['average_exploitability']:.4f}, of the last policy "
        f"{sppo['last_exploitability']:.3f}; of iterated DPO {dpo['last_exploitability']:.3f}",
        f"largest miss of one iteration: {sppo['largest_step_error_nats']:.1e} nats",
    )
    return Outcome((table,), lines, all(figures["claims"].values()), figures)


def coverage(console: Console) -> Outcome:
    from recipes.experiments.coverage.measure import measure

    console.rule("coverage")
    figures = _measured(FOLDER / "coverage" / "coverage.json", measure)
    tables = tuple(_coverage_table(covered, world) for covered, world in figures["worlds"].items())
    return Outcome(tables, ("docs/spac.md says what follows from these tables and what does not",), True, figures)


def _coverage_table(covered: str, world: dict[str, Any]) -> Table:
    table = Table(title=f"true value of the last policy, 95 % t-intervals over seeds; common actions: {covered}")
    for heading in ("method", "high coverage", "low coverage", "over-estimation, high", "over-estimation, low"):
        table.add_column(heading)
    for name, found in world["methods"].items():
        both = [found.get(what, {}) for what in ("last", "over_estimation")]
        table.add_row(name, *(_interval(part.get(half)) for part in both for half in ("high", "low")))
    return table


def _interval(cell: dict[str, float] | None) -> str:
    return f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]" if cell else "–"


def _measured(marker: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a finished measurement, measured now if there is none; a part is measured once per folder."""
    return json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else measure(marker.parent)
