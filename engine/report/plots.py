"""The report's plots, drawn by matplotlib if it is installed, as SVG images in data URIs.

An image can neither run scripts nor load anything.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine.metrics.trackers import Record
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary
from engine.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with any colour vision."""
GREY = "#999999"
MAX_POINTS = 600
"""Per curve; a longer curve shows means of equal stretches."""
FEW_POINTS = 20
"""Curves of fewer points get dots; a single point would be invisible without one."""
MAX_TIMED = 12
"""The stage times of this many iterations are shown, the last ones."""

Steps = list[tuple[int, Record]]


@dataclass(frozen=True)
class Plot:
    """One plot of the page."""

    title: str
    caption: str
    uri: str | None
    """None if there are no data for it yet."""


def available() -> bool:
    return find_spec("matplotlib") is not None


def draw(summary: Summary, records: list[Record]) -> list[Plot]:
    """All plots of a run; none without matplotlib."""
    if not available():
        return []
    return [
        Plot(
            "Win rates",
            "Win rates on held-out prompts with 95 % intervals; dashed: as good as the opponent.",
            win_rates(summary),
        ),
        Plot(
            "Training curves",
            "Training curves over optimizer steps; dotted: a new iteration begins.",
            training_curves(records),
        ),
        Plot(
            "Stage times",
            "Where each iteration's wall time went: every bar is one stage, busy and waiting.",
            stage_times(summary),
        ),
    ]


def training_curves(records: list[Record]) -> str | None:
    """Loss, reward margin and log-ratios over optimizer steps counted through all iterations."""
    iterations = _global_steps([record for record in records if record["kind"] == "step"])
    names = {name for steps in iterations for _, record in steps for name in record if record[name] is not None}
    ratios = sorted(name for name in names if name.startswith("log_ratio"))
    panels = {
        "loss": ["loss"],
        "reward margin": ["rewards/margins"],
        "log-ratio (nats)" if ratios else "implicit reward": ratios or ["rewards/chosen", "rewards/rejected"],
    }
    panels = {title: [name for name in curves if name in names] for title, curves in panels.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        return None
    figure = new_figure(9.0, 2.6)
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, colour in zip(curves, COLOURS, strict=False):
            for steps in iterations:
                x, y = _curve(steps, name, MAX_POINTS // len(iterations))
                axes.plot(x, y, color=colour, linewidth=1.2, marker="." if len(x) < FEW_POINTS else "")
            axes.lines[-1].set_label(name)
        for steps in iterations[1:]:
            axes.axvline(steps[0][0] - 0.5, color=GREY, linewidth=0.8, linestyle=":")
        label_axes(axes, title, "optimizer step", "")
        if len(curves) > 1:
            axes.legend(fontsize=7, frameon=False)
    return _uri(figure)


def win_rates(summary: Summary) -> str | None:
    """Win rates with 95 % intervals over iterations."""
    against = {
        "against the start": [(i.iteration, i.win_rate_start) for i in summary.iterations if i.win_rate_start],
        "against the previous": [(i.iteration, i.win_rate_previous) for i in summary.iterations if i.win_rate_previous],
    }
    if not any(against.values()):
        return None
    figure = new_figure(6.0, 3.0)
    axes = figure.subplots()
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    for (label, points), colour, shift in zip(against.items(), COLOURS, (-0.05, 0.05), strict=False):
        if points:
            _errorbar(axes, points, label, colour, shift)
    axes.set_xticks([i.iteration for i in summary.iterations][:: 1 + len(summary.iterations) // 20])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    label_axes(axes, "", "iteration", "win rate")
    axes.legend(fontsize=8, frameon=False)
    return _uri(figure)


def stage_times(summary: Summary) -> str | None:
    """Per iteration and stage, busy and waiting seconds stacked; each bar is as long as the iteration took."""
    timed = [iteration for iteration in summary.iterations if iteration.times()][-MAX_TIMED:]
    if not timed:
        return None
    stages = list(dict.fromkeys(stage for iteration in timed for stage in iteration.times()))
    colours = {stage: COLOURS[n % len(COLOURS)] for n, stage in enumerate(stages)}
    bars = [(i, stage, *times) for i in timed for stage, times in i.times().items()]
    figure = new_figure(9.0, 0.9 + 0.2 * (len(bars) + len(timed)))
    axes = figure.subplots()
    places = _places([iteration for iteration, *_ in bars])
    for place, (_, stage, busy, waiting) in zip(places, bars, strict=True):
        axes.barh(place, busy, color=colours[stage], height=0.8)
        axes.barh(place, waiting, left=busy, color=colours[stage], height=0.8, alpha=0.2)
    axes.set_yticks(places, [f"{i.iteration}  {stage}" for i, stage, *_ in bars], fontsize=7)
    axes.invert_yaxis()
    label_axes(axes, "", "seconds: busy (solid) and waiting (pale)", "iteration and stage")
    return _uri(figure)


def _places(iterations: list[IterationSummary]) -> list[float]:
    """Positions of the bars: 1 apart, with a gap before each new iteration."""
    places, height = [], 0.0
    for n, iteration in enumerate(iterations):
        height += 1.0 + 0.7 * (n > 0 and iteration is not iterations[n - 1])
        places.append(height)
    return places


def _errorbar(axes: Axes, points: list[tuple[int, WinRate]], label: str, colour: str, shift: float) -> None:
    x = [iteration + shift for iteration, _ in points]
    y = [rate.value for _, rate in points]
    below = [max(0.0, rate.value - rate.low) for _, rate in points]
    above = [max(0.0, rate.high - rate.value) for _, rate in points]
    axes.errorbar(x, y, yerr=[below, above], color=colour, marker="o", markersize=4, capsize=3, label=label)


def _global_steps(records: list[Record]) -> list[Steps]:
    """Per iteration (step, record), with the steps counted through all iterations."""
    by_iteration: dict[int, dict[int, Record]] = defaultdict(dict)
    for record in records:
        by_iteration[record["iteration"]][record["step"]] = record
    result, before = [], 0
    for _, steps in sorted(by_iteration.items()):
        result.append([(before + step, record) for step, record in sorted(steps.items())])
        before += max(steps)
    return result


def _curve(steps: Steps, name: str, max_points: int) -> tuple[list[int], list[float]]:
    points = [(step, record[name]) for step, record in steps if record.get(name) is not None]
    size = max(1, -(-len(points) // max(1, max_points)))
    stretches = [points[n : n + size] for n in range(0, len(points), size)]
    return [stretch[-1][0] for stretch in stretches], [sum(y for _, y in s) / len(s) for s in stretches]


def _uri(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode("ascii")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def label_axes(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Small titles, and no frame above and to the right."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG image; the same drawing gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "kumite"}):  # otherwise names within the file are random
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
