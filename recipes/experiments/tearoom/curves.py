"""Curves of the runs in the tearoom: win rate, the scorer's agreement with the oracle, and length over iterations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.experiments.figures import COLOURS, GREY, label_axes, new_figure
from recipes.experiments.results import save_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Iterations = list[dict[str, Any]]
"""Of one run: engine.report.summary.IterationSummary as dicts."""
PANELS = (
    ("win rate against the start, by the oracle", lambda row: row["win_rate_start"]["value"]),
    ("scorer agrees with the oracle", lambda row: row["agreement"]),
    ("tokens per held-out answer", lambda row: row["mean_length"]),
)


def draw_curves(figures: dict[str, dict[str, Iterations]], folder: Path) -> None:
    """Write tearoom.svg, spin.svg and self_rewarding.svg to `folder`, as far as there are figures for them.

    figures: {part: {run: iterations}}, as in experiments.json.
    """
    if "sppo" in figures and "dpo" in figures:
        sppo = figures["sppo"]
        seeds = {
            "SPPO": [rows for name, rows in sppo.items() if name.startswith("seed-")],
            "iterative DPO": [*figures["dpo"].values()],
        }
        controls = {name: [sppo[name]] for name in ("random-scorer", "inverted-pairrm", "learning-rate-0")}
        _draw({**seeds, **controls}, folder / "tearoom.svg")
    if "spin" in figures:
        _draw({"SPIN": [*figures["spin"].values()]}, folder / "spin.svg")
    if "self-rewarding" in figures:
        runs = figures["self-rewarding"]
        fair = [rows for name, rows in runs.items() if name.startswith("self-rewarding")]
        rest = {name: [rows] for name, rows in runs.items() if not name.startswith("self-rewarding")}
        _draw({"fair judge": fair, **rest}, folder / "self_rewarding.svg")


def _draw(groups: dict[str, list[Iterations]], file: Path) -> None:
    """One panel per quantity that every run has; a colour per group, a line per run."""
    runs = [rows for group in groups.values() for rows in group]
    panels = [panel for panel in PANELS if all(panel[1](row) is not None for rows in runs for row in rows)]
    figure = new_figure(10.0 * len(panels) / len(PANELS), 3.0)
    for axes, (title, value) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for colour, (name, group) in zip(COLOURS, groups.items(), strict=False):
            for number, rows in enumerate(group):
                points = [row["iteration"] for row in rows]
                named = None if number else name
                axes.plot(points, [value(row) for row in rows], "o-", color=colour, ms=3, lw=1, label=named)
        _finish(axes, title)
    save_svg(figure, file)


def _finish(axes: Axes, title: str) -> None:
    label_axes(axes, title, x="iteration")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if "win rate" in title:
        axes.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axes.legend(fontsize=7, frameon=False)
