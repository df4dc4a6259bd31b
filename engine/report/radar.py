"""A radar of several models in a file of its own: the chart of the page, its colours, and a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from engine.report.svg import RADAR, element, marker, radar
from engine.report.templating import TEMPLATES

MIN_CATEGORIES = 3
"""With fewer there is no area."""
WIDTH = RADAR + 120
ROW = 18.0
"""Height of a line of the legend."""


def radar_file(title: str, results: Mapping[str, Mapping[str, float]], low: float, high: float) -> str | None:
    """An SVG image of {model: {category: mean}} on axes from `low` to `high`.

    A category that a model lacks, or that is NaN, is left out of its line; so is a model without any number. None with
    fewer than MIN_CATEGORIES categories, or without any model.
    """
    known = {model: {c: v for c, v in means.items() if not math.isnan(v)} for model, means in results.items()}
    shown = {model: means for model, means in known.items() if means}
    categories = list(dict.fromkeys(category for means in results.values() for category in means))
    if len(categories) < MIN_CATEGORIES or not shown:
        return None
    series = [(model, [means.get(category) for category in categories]) for model, means in shown.items()]
    chart = radar(title, "", categories, series, low, high)
    legend = [part for n, model in enumerate(shown) for part in _entry(n, model)]
    height = RADAR + ROW * (len(shown) + 1)
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8").replace("]]>", "")
    image = element(
        "svg",
        Markup(f"<style><![CDATA[{style}]]></style>"),
        element("rect", width=WIDTH, height=height, style="fill: var(--bg)"),
        chart.svg,
        *legend,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
    )
    return f"{image}\n"


def _entry(n: int, model: str) -> tuple[Markup, Markup]:
    """One line of the legend."""
    y = RADAR + ROW * (n + 0.5)
    return marker(n, 24.0, y - 4.0, Markup()), element("text", text=model, x=36.0, y=y)
