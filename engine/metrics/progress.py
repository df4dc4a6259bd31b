"""Progress of the stages on the screen: a table that redraws itself on a terminal, a few plain lines in a log.

Both show the same rows, made from a StageTimer. Every text is made printable, because notes may quote models, and a
model's words may hold terminal commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.metrics.timing import Progress, StageTimer, StageTimes
from engine.text import printable

SECONDS_BETWEEN_LINES = 5.0
"""In a log, the least time between two lines about an unfinished stage."""
SECONDS_OF_SILENCE = 60.0
"""A stage whose last result is older than this is shown with the time since then."""
REDRAWS_PER_SECOND = 2
SHOWN_AMOUNTS = ("tokens", "pairs", "rows")
"""The first of these that a stage makes is shown as its rate."""
SHOWN_METRICS = ("loss", "rewards/margins")


def one_line(text: str) -> str:
    """`text` as one line without control characters."""
    return printable(text, newlines="show")


def duration(seconds: float) -> str:
    """12.3 s, 4m 05s or 2h 07m."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def amount(value: float) -> str:
    """Three significant digits below 1000, thousands separators from 1000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Row:
    """One stage as the screen shows it. A text is empty if there is nothing to show."""

    stage: str
    done: int
    total: int | None
    count: str
    rate: str
    busy: str
    eta: str
    state: str
    metrics: str


def rows(timer: StageTimer, now: float) -> list[Row]:
    """The stages of the present iteration in the order in which they were announced."""
    stages, times = timer.snapshot(now)
    return [_row(progress, times.stages.get(progress.stage), now) for progress in stages]


class View(Protocol):
    """Shows the stages of a StageTimer and notes."""

    def update(self, stage: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class LiveView:
    """A table at the bottom of a terminal; notes scroll by above it."""

    def __init__(self, console: Console, timer: StageTimer, clock: Callable[[], float]) -> None:
        self._timer, self._clock = timer, clock
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=REDRAWS_PER_SECOND)
        self._live.start()

    def _draw(self) -> Group:
        shown = rows(self._timer, self._clock())
        metrics = "   ".join(row.metrics for row in shown if row.metrics)
        return Group(*([table(self._timer.title, shown)] if shown else []), *([Text(metrics)] if metrics else []))

    def update(self, stage: str) -> None:
        """Nothing to do: the table redraws itself."""

    def note(self, text: str) -> None:
        self._live.console.print(Text(one_line(text)))

    def close(self) -> None:
        self._live.stop()


class PlainView:
    """Lines for a log: the end of each stage, notes, and in between a line every few seconds."""

    def __init__(self, console: Console, timer: StageTimer, clock: Callable[[], float]) -> None:
        self._console, self._timer, self._clock = console, timer, clock
        self._last: dict[tuple[str, str], float] = {}

    def update(self, stage: str) -> None:
        now, key = self._clock(), (self._timer.title, stage)
        progress = self._timer.progress(stage)
        due = now - self._last.get(key, -SECONDS_BETWEEN_LINES) >= SECONDS_BETWEEN_LINES
        if progress is None or not (due or progress.finished):
            return
        self._last[key] = now
        row = _row(progress, self._timer.times(now).stages.get(stage), now)
        busy, eta = f"busy {row.busy}" if row.busy else "", f"ETA {row.eta}" if row.eta else ""
        parts = [row.stage, row.count, row.state, row.rate, busy, eta, row.metrics]
        self.note(f"[{self._timer.title}] " + "  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._console.out(one_line(text), highlight=False)

    def close(self) -> None:
        """Nothing to do: nothing is held open."""


def table(title: str, shown: list[Row]) -> Table:
    """The rows as a rich table with a bar per stage."""
    result = Table(title=Text(title), title_justify="left", expand=False)
    for heading in ("stage", "progress"):
        result.add_column(heading)
    for heading in ("done", "rate", "busy", "ETA"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("state", no_wrap=True)
    for row in shown:
        bar = ProgressBar(total=row.total or 1, completed=min(row.done, row.total) if row.total else 0, width=20)
        cells = (row.count, row.rate, row.busy, row.eta, row.state)
        result.add_row(Text(one_line(row.stage)), bar, *(Text(one_line(cell)) for cell in cells))
    return result


def _row(progress: Progress, times: StageTimes | None, now: float) -> Row:
    count = f"{progress.done}/{progress.total}" if progress.total is not None else f"{progress.done}"
    eta = progress.eta()
    metrics = [f"{name} {progress.metrics[name]:.4g}" for name in SHOWN_METRICS if name in progress.metrics]
    return Row(
        stage=progress.stage,
        done=progress.done,
        total=progress.total,
        count=f"{count} {progress.unit}",
        rate=_rate(progress, times),
        busy=f"{times.busy / (times.busy + times.waiting):.0%}" if times and times.busy else "",
        eta=duration(eta) if eta is not None else "",
        state=_state(progress, now),
        metrics="  ".join(metrics),
    )


def _rate(progress: Progress, times: StageTimes | None) -> str:
    """Amount per busy second; units of work per busy second if the stage makes no amount that is shown."""
    if times is None or not times.busy:
        return ""
    for name in SHOWN_AMOUNTS:
        if name in times.rates:
            return f"{amount(times.rates[name])} {name}/s"
    return f"{amount((progress.done - progress.done_before) / times.busy)} {progress.unit}/s"


def _state(progress: Progress, now: float) -> str:
    if progress.finished:
        if progress.started is None or progress.updated is None:
            return "done before the restart"
        return f"done in {duration(progress.updated - progress.started)}"
    if progress.updated is None:
        return "waiting"
    silence = now - progress.updated
    return f"no news for {duration(silence)}" if silence >= SECONDS_OF_SILENCE else "working"
