"""What the recipes that draw share: a matplotlib figure without global state, and an SVG file that is always the same.

Knows nothing of what is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.report.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "label", "new_figure", "save_svg"]

GREY = "#999999"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def label(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title and axis names in small print, without the frame's upper and right side."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def save_svg(figure: Figure, file: Path) -> None:
    """Write `figure` to `file` without a date and with names that depend on the drawing alone."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "kumite"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
