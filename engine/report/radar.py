"""A radar plot: several models by category, as in FastChat's report of MT-Bench."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from engine.report.plots import COLOURS, GREY, new_figure
from engine.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_CATEGORIES = 3
"""With fewer there is no area."""
STYLES = ("-", "--", ":", "-.")
"""One per round through the colours, so that more models than colours can be told apart."""


def radar(results: Mapping[str, Mapping[str, float]], low: float, high: float) -> Figure | None:
    """{model: {category: mean}} on axes from `low` to `high`; None with fewer than MIN_CATEGORIES categories.

    A category that a model lacks, or that is NaN, is a gap in its line. A model without any number is left out.
    """
    results = {model: means for model, means in results.items() if not all(map(math.isnan, means.values()))}
    categories = list(dict.fromkeys(category for means in results.values() for category in means))
    if len(categories) < MIN_CATEGORIES:
        return None
    angles = [2 * math.pi * n / len(categories) for n in range(len(categories))]
    figure = new_figure(5.2, 4.4 + 0.18 * len(results))
    axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)  # the first category on top, the others clockwise
    styles = (style for style in cycle(STYLES) for _ in COLOURS)
    for (model, means), colour, style in zip(results.items(), cycle(COLOURS), styles, strict=False):
        values = [means.get(category, math.nan) for category in categories]
        axes.plot([*angles, angles[0]], [*values, values[0]], style, color=colour, linewidth=1.4, label=_plain(model))
        if not any(map(math.isnan, values)):
            axes.fill(angles, values, color=colour, alpha=0.08, linewidth=0)
    axes.set_ylim(low, high)
    axes.set_xticks(angles, [_plain(category) for category in categories], fontsize=8)
    axes.set_rlabel_position(180.0 / len(categories))  # between the first two categories
    axes.tick_params(axis="y", labelsize=7, labelcolor=GREY)
    axes.grid(color=GREY, linewidth=0.4)
    axes.spines["polar"].set_visible(False)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center")
    return figure


def _plain(text: str) -> str:
    """A name as text: matplotlib reads "$" as the beginning of a formula, and leaves out labels that begin with "_"."""
    shown = printable(text, newlines="show").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
