"""Curves of the proof's runs, from proof.json: win rate, the judge's accuracy, and length over the iterations.

    python -m recipes.experiments.curves [FOLDER]

writes tearoom.svg, spin.svg and self_rewarding.svg to FOLDER (default: runs/proof).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.experiments.figures import COLOURS, GREY, label, new_figure, save_svg
from recipes.experiments.trials import FOLDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Iterations = list[dict[str, Any]]
PANELS = (
    ("win rate against the start, by the oracle", lambda row: row["win_rate_start"]["value"]),
    ("scorer agrees with the oracle", lambda row: row["agreement"]),
    ("tokens per held-out answer", lambda row: row["mean_length"]),
)


def draw(groups: dict[str, list[Iterations]], file: Path) -> None:
    """One drawing per panel for which there are figures; a colour per group, a line per run."""
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
    label(axes, title, x="iteration")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if "win rate" in title:
        axes.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axes.legend(fontsize=7, frameon=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, metavar="FOLDER")
    draw_all(parser.parse_args(arguments).folder)


def draw_all(folder: Path) -> None:
    """Draw what `folder`/proof.json has figures for."""
    proof = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
    if "sppo" in proof and "dpo" in proof:
        sppo, dpo = proof["sppo"]["figures"], proof["dpo"]["figures"]
        seeds = {
            "SPPO": [rows for name, rows in sppo.items() if name.startswith("seed-")],
            "iterative DPO": [*dpo.values()],
        }
        controls = {name: [sppo[name]] for name in ("random-scorer", "inverted-pairrm", "learning-rate-0")}
        draw({**seeds, **controls}, folder / "tearoom.svg")
    if "spin" in proof:
        draw({"SPIN": [*proof["spin"]["figures"].values()]}, folder / "spin.svg")
    if "self-rewarding" in proof:
        found = proof["self-rewarding"]["figures"]
        fair = [rows for name, rows in found.items() if name.startswith("self-rewarding")]
        rest = {name: [rows] for name, rows in found.items() if not name.startswith("self-rewarding")}
        draw({"fair judge": fair, **rest}, folder / "self_rewarding.svg")


if __name__ == "__main__":
    main()
