"""Charts as inline SVG: curves with intervals, histograms, radars, intervals in rows, a time axis.

Colours are classes (s0, s1, ...) that the page's style sheet fills, so that a chart follows the dark mode and print.
All text is escaped. Each chart has a title, a description for screen readers, and its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from engine.text import html

NUM_COLOURS = 6
"""Series that look different; more repeat."""
WIDTH, HEIGHT = 360.0, 216.0
"""Of a chart in user units, which are CSS pixels on a phone of 390."""
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 10.0, 34.0
CHARACTER = 6.2
"""Width of a character of the axis labels, about."""


@dataclass(frozen=True)
class Point:
    """A value at `x`, with its 95 % interval if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """A chart of the page: the picture, and what it shows as text."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    """(name, class) of each series; empty for one."""
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """Its numbers."""
    is_wide: bool = False
    """Takes the full width of the page, and scrolls where there is less."""


@dataclass(frozen=True)
class Scale:
    """A linear map from data to user units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, num: int = 5) -> list[float]:
        """At most about `num` round numbers in the range."""
        step = nice_step((self.high - self.low) / num)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, first + 4 * num) if n * step <= self.high + 1e-9 * step]


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1.0 - 1e-9))


def spread_of(values: Sequence[float], include: Sequence[float] = ()) -> tuple[float, float]:
    """A range around the values with some air; never empty."""
    low, high = min([*values, *include]), max([*values, *include])
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


def element(name: str, *children: Markup, text: str | None = None, **attributes: object) -> Markup:
    """An element with escaped attributes and text. `klass` stands for class, underscores for hyphens."""
    parts = [
        f' {key.replace("klass", "class").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inside = "".join(children) if text is None else html(text, newlines="show")
    return Markup(f"<{name}{''.join(parts)}>{inside}</{name}>")


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else html(str(value), newlines="show")


def picture(
    title: str, description: str, children: Sequence[Markup], width: float = WIDTH, height: float = HEIGHT
) -> Markup:
    """The <svg> element around a chart."""
    label = element("title", text=title) + element("desc", text=description)
    return element(
        "svg",
        label,
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{title}. {description}",
    )


def colour(n: int) -> str:
    """The class of series n."""
    return f"s{n % NUM_COLOURS}"


def legend_of(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The legend of several series; one needs none."""
    return tuple((name, colour(n)) for n, name in enumerate(names)) if len(names) > 1 else ()


def axes(
    x: Scale,
    y: Scale,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
) -> list[Markup]:
    """Horizontal grid lines, both rows of numbers, the name of the horizontal axis."""
    parts = []
    for value, text in y_ticks:
        parts.append(element("line", klass="grid", x1=x.start, x2=x.end, y1=y(value), y2=y(value)))
        parts.append(element("text", text=text, klass="tick", x=x.start - 6, y=y(value) + 3.5, text_anchor="end"))
    for value, text in x_ticks:
        half = CHARACTER * len(text) / 2
        place = min(max(x(value), half), x.end + RIGHT - half)
        parts.append(element("text", text=text, klass="tick", x=place, y=y.start + 15, text_anchor="middle"))
    parts.append(element("line", klass="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    middle = (x.start + x.end) / 2
    parts.append(element("text", text=x_label, klass="label", x=middle, y=y.start + 30, text_anchor="middle"))
    return parts


def numbers(values: Sequence[float], show: Callable[[float], str] | None = None) -> list[tuple[float, str]]:
    """Ticks with just as many decimals as they need."""
    for decimals in range(7):
        texts = [f"{value:,.{decimals}f}" for value in values]
        if len(set(texts)) == len(texts) and all(
            abs(float(text.replace(",", "")) - value) < 1e-9 + 1e-6 * abs(value)
            for text, value in zip(texts, values, strict=True)
        ):
            break
    shown = [show(value) for value in values] if show else texts
    return list(zip(values, shown, strict=True))


def frame(x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[Scale, Scale]:
    """The two scales of a chart of the usual size."""
    return Scale(*x_range, LEFT, WIDTH - RIGHT), Scale(*y_range, HEIGHT - BOTTOM, TOP)


def curves(
    title: str,
    caption: str,
    series: Sequence[Series],
    x_label: str,
    show: Callable[[float], str] = "{:.4g}".format,
    tick: Callable[[float], str] | None = None,
    reference: float | None = None,
    from_zero: bool = False,
    boundaries: Sequence[float] = (),
    whole: bool = False,
) -> Chart:
    """Lines, with an interval at each point that has one.

    show, tick: text of a value in the table and at the axis. reference: a dashed horizontal line. from_zero: the
    vertical axis shows 0. boundaries: dotted vertical lines. whole: the horizontal axis has whole numbers only.
    """
    points = [point for one in series for point in one.points]
    ends = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    places = [point.x for point in points]
    width = max(places) - min(places)
    margin = 0.04 * width or 0.5
    shown = [value for value in (reference, 0.0 if from_zero else None) if value is not None]
    x, y = frame((min(places) - margin, max(places) + margin), spread_of(ends, shown))
    values = x.ticks(6)
    if whole:
        values = [float(n) for n in range(math.ceil(x.low), math.floor(x.high) + 1)]
        values = values[:: 1 + len(values) // 9]
    parts = axes(x, y, numbers(values), numbers(y.ticks(5), tick), x_label)
    parts += [element("line", klass="boundary", x1=x(place), x2=x(place), y1=y.start, y2=y.end) for place in boundaries]
    if reference is not None:
        parts.append(element("line", klass="reference", x1=x.start, x2=x.end, y1=y(reference), y2=y(reference)))
    for n, one in enumerate(series):
        parts += _curve(one, n, x, y, show)
    legend = legend_of([one.name for one in series])
    described = "; ".join(f"{one.name} from {show(one.points[0].y)} to {show(one.points[-1].y)}" for one in series)
    headings, rows = _table(series, x_label, show)
    return Chart(title, caption, picture(title, described, parts), legend, headings, rows)


def _curve(one: Series, n: int, x: Scale, y: Scale, show: Callable[[float], str]) -> list[Markup]:
    path = " ".join(f"{'ML'[k > 0]}{x(p.x):.1f} {y(p.y):.1f}" for k, p in enumerate(one.points))
    parts = [element("path", klass=f"curve {colour(n)}", d=path)]
    has_dots = len(one.points) <= 24
    for p in one.points:
        if p.low is not None and p.high is not None:
            parts.append(element("line", klass=f"whisker {colour(n)}", x1=x(p.x), x2=x(p.x), y1=y(p.low), y2=y(p.high)))
        if has_dots:
            label = element("title", text=f"{one.name}, {p.x:g}: {_with_interval(p, show)}")
            parts.append(marker(n, x(p.x), y(p.y), label))
    return parts


def marker(n: int, x: float, y: float, label: Markup) -> Markup:
    """A dot of series n; the shapes differ, for readers who do not see the colours."""
    klass, r = f"dot {colour(n)}", 3.4
    shapes = (
        lambda: element("circle", label, klass=klass, cx=x, cy=y, r=r),
        lambda: element("rect", label, klass=klass, x=x - 3, y=y - 3, width=6.0, height=6.0),
        lambda: element("path", label, klass=klass, d=f"M{x:.1f} {y - 4:.1f}l4 7h-8z"),
        lambda: element("path", label, klass=klass, d=f"M{x:.1f} {y - 4.2:.1f}l4.2 4.2l-4.2 4.2l-4.2 -4.2z"),
    )
    return shapes[n % len(shapes)]()


def _with_interval(point: Point, show: Callable[[float], str]) -> str:
    if point.low is None or point.high is None:
        return show(point.y)
    return f"{show(point.y)} [{show(point.low)}, {show(point.high)}]"


MAX_ROWS = 40
"""Of a chart's table; of longer curves it has every n-th point and the last."""


def _table(
    series: Sequence[Series], x_label: str, show: Callable[[float], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    cells = [{point.x: _with_interval(point, show) for point in one.points} for one in series]
    places = sorted({x for column in cells for x in column})
    step = -(-len(places) // MAX_ROWS)
    kept = [x for k, x in enumerate(places) if k % step == 0 or k == len(places) - 1]
    rows = tuple((f"{x:g}", *(column.get(x, "–") for column in cells)) for x in kept)
    return (x_label, *(one.name for one in series)), rows


def histogram(title: str, caption: str, bins: Sequence[tuple[str, Sequence[int]]], x_label: str) -> Chart:
    """Shares of counts over equal bins of [0, 1]; one outline per series."""
    x = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    shares = [(name, [c / max(1, sum(counts)) for c in counts]) for name, counts in bins]
    top = max((share for _, column in shares for share in column), default=0.0) or 1.0
    y = Scale(0.0, 1.08 * top, HEIGHT - BOTTOM, TOP)
    percent = "{:.0%}".format if top > 0.1 else "{:.1%}".format
    parts = axes(x, y, numbers(x.ticks(5)), numbers(y.ticks(4), percent), x_label)
    for n, (name, column) in enumerate(shares):
        width = (x.end - x.start) / len(column)
        for k, share in enumerate(column):
            if share:
                label = element("title", text=f"{name}: {share:.1%} in {k / len(column):g}–{(k + 1) / len(column):g}")
                parts.append(
                    element(
                        "rect",
                        label,
                        klass=f"bar {colour(n)}",
                        x=x.start + k * width + 0.5,
                        y=y(share),
                        width=width - 1,
                        height=y.start - y(share),
                    )
                )
    legend = legend_of([name for name, _ in bins])
    num = len(bins[0][1])
    rows = tuple((f"{k / num:g}–{(k + 1) / num:g}", *(f"{counts[k]:,}" for _, counts in bins)) for k in range(num))
    description = "; ".join(f"{name}: {sum(counts):,} values" for name, counts in bins)
    headings = (x_label, *(name for name, _ in bins))
    return Chart(title, caption, picture(title, description, parts), legend, headings, rows)


RADAR = 300.0
"""Width and height of a radar."""


def radar(
    title: str,
    caption: str,
    axis_names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float | None]]],
    low: float,
    high: float,
    show: Callable[[float], str] = "{:.2f}".format,
) -> Chart:
    """One polygon per series over three or more axes that share the range low to high; None: not measured."""
    n, width, middle, radius = len(axis_names), RADAR + 120, RADAR / 2, RADAR / 2 - 34
    centre = width / 2
    ids = count()

    def at(k: int, value: float) -> tuple[float, float]:
        angle, r = 2 * math.pi * k / n, radius * max(0.0, min(1.0, (value - low) / (high - low)))
        return centre + r * math.sin(angle), middle - r * math.cos(angle)

    def ring(value: float, klass: str) -> Markup:
        return element("polygon", klass=klass, points=" ".join("{:.1f},{:.1f}".format(*at(k, value)) for k in range(n)))

    rings = [low + (high - low) * part for part in (0.25, 0.5, 0.75, 1.0)]
    parts = [ring(value, "grid hollow") for value in rings]
    for k, name in enumerate(axis_names):
        x, y = at(k, high)
        parts.append(element("line", klass="grid", x1=centre, y1=middle, x2=x, y2=y))
        anchor = "middle" if abs(x - centre) < 8 else "start" if x > centre else "end"
        dx, dy = (x - centre) * 0.07, (y - middle) * 0.09
        parts.append(element("text", text=name, klass="tick", x=x + dx, y=y + dy + 3.5, text_anchor=anchor))
    for value in (low, high):
        x, y = at(0, value)
        parts.append(element("text", text=show(value), klass="tick", x=x + 5, y=y + 10))
    for name, values in series:
        index = next(ids)
        known = [(k, value) for k, value in enumerate(values) if value is not None]
        corners = " ".join("{:.1f},{:.1f}".format(*at(k, value)) for k, value in known)
        parts.append(element("polygon", klass=f"area {colour(index)}", points=corners))
        for k, value in known:
            label = element("title", text=f"{name}, {axis_names[k]}: {show(value)}")
            parts.append(marker(index, *at(k, value), label))
    rows = tuple(
        (axis, *("–" if (v := values[k]) is None else show(v) for _, values in series))
        for k, axis in enumerate(axis_names)
    )
    description = f"{len(series)} series over {', '.join(axis_names)}"
    svg = picture(title, description, parts, width, RADAR)
    legend = legend_of([name for name, _ in series])
    return Chart(title, caption, svg, legend, ("", *(name for name, _ in series)), rows)
