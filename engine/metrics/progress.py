"""Progress on the screen: one table that redraws itself on a terminal, a few plain lines in a log.

Shows what the board holds and computes nothing that is kept. Knows nothing of files or of roles. Every
text is made printable: notes may carry words of models, and those may carry terminal commands.
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

from engine.metrics.timing import Board, Progress, StageAccount
from engine.text import printable

SECONDS_BETWEEN_LINES = 5.0
"""In a log, the least time between two lines about an unfinished stage."""
REDRAWS_PER_SECOND = 2
SHOWN_AMOUNTS = ("tokens", "pairs", "rows")
"""The first of these that a stage makes is its rate on the screen."""
SHOWN_METRICS = ("loss", "rewards/margins")


def one_line(text: str) -> str:
    """Return `text` as one harmless line."""
    return printable(text, newlines="show")


def duration(seconds: float) -> str:
    """12.3 s, 4m 05s or 2h 07m."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def amount(value: float) -> str:
    """Three significant digits below 1000, thousands separators from there on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Row:
    """One stage as people read it."""

    stage: str
    done: int
    total: int | None
    count: str
    rate: str
    busy: str
    eta: str
    state: str
    metrics: str


def read_board(board: Board, now: float) -> list[Row]:
    """The stages of the present iteration in the order in which they were announced."""
    stages, account = board.look(now)
    return [_row(stage, account.stages.get(stage.stage), now) for stage in stages]


class View(Protocol):
    """Somewhere to look."""

    def update(self, stage: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class LiveView:
    """A table at the foot of a terminal; notes scroll by above it."""

    def __init__(self, console: Console, board: Board, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=REDRAWS_PER_SECOND)
        self._live.start()

    def _draw(self) -> Group:
        rows = read_board(self._board, self._clock())
        metrics = "   ".join(row.metrics for row in rows if row.metrics)
        return Group(*([table(self._board.title, rows)] if rows else []), *([Text(metrics)] if metrics else []))

    def update(self, stage: str) -> None:
        """Nothing to do: the table redraws itself."""

    def note(self, text: str) -> None:
        self._live.console.print(Text(one_line(text)))

    def close(self) -> None:
        self._live.stop()


class PlainView:
    """Lines for a log: the end of each stage, notes, and in between a line every few seconds."""

    def __init__(self, console: Console, board: Board, clock: Callable[[], float]) -> None:
        self._console, self._board, self._clock = console, board, clock
        self._last: dict[tuple[str, str], float] = {}

    def update(self, stage: str) -> None:
        now, key = self._clock(), (self._board.title, stage)
        due = now - self._last.get(key, -SECONDS_BETWEEN_LINES) >= SECONDS_BETWEEN_LINES
        if not due and not self._board.finished(stage):
            return
        self._last[key] = now
        row = next(row for row in read_board(self._board, now) if row.stage == stage)
        eta = f"ETA {row.eta}" if row.eta else ""
        parts = [row.stage, row.count, row.state, row.rate, row.busy and f"busy {row.busy}", eta, row.metrics]
        self.note(f"[{self._board.title}] " + "  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._console.out(one_line(text), highlight=False)

    def close(self) -> None:
        """Nothing is held open."""


def table(title: str, rows: list[Row]) -> Table:
    """The rows as a rich table."""
    result = Table(title=Text(title), title_justify="left", expand=False)
    for heading in ("stage", "progress"):
        result.add_column(heading)
    for heading in ("done", "rate", "busy", "ETA"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("state", no_wrap=True)
    for row in rows:
        bar = ProgressBar(total=row.total or 1, completed=min(row.done, row.total) if row.total else 0, width=20)
        cells = (row.count, row.rate, row.busy, row.eta, row.state)
        result.add_row(Text(one_line(row.stage)), bar, *(Text(one_line(cell)) for cell in cells))
    return result


def _row(progress: Progress, account: StageAccount | None, now: float) -> Row:
    count = f"{progress.done}/{progress.total}" if progress.total is not None else f"{progress.done}"
    eta = progress.eta()
    shown = [f"{name} {progress.metrics[name]:.4g}" for name in SHOWN_METRICS if name in progress.metrics]
    return Row(
        stage=progress.stage,
        done=progress.done,
        total=progress.total,
        count=f"{count} {progress.unit}",
        rate=_rate(progress, account),
        busy=f"{account.busy / (account.busy + account.waiting):.0%}" if account and account.busy else "",
        eta=duration(eta) if eta is not None else "",
        state=_state(progress, now),
        metrics="  ".join(shown),
    )


def _rate(progress: Progress, account: StageAccount | None) -> str:
    if account is None or not account.busy:
        return ""
    for name in SHOWN_AMOUNTS:
        if name in account.rates:
            return f"{amount(account.rates[name])} {name}/s"
    return f"{amount((progress.done - progress.from_before) / account.busy)} {progress.unit}/s"


def _state(progress: Progress, now: float) -> str:
    if progress.finished:
        if progress.began is None or progress.news is None:
            return "done before"
        return f"done in {duration(progress.news - progress.began)}"
    if progress.news is None:
        return "waiting"
    silence = now - progress.news
    return f"no news for {duration(silence)}" if silence >= 60 else "working"
