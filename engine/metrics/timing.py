"""Where an iteration's time goes: busy and waiting seconds per stage, and the progress of each stage.

For each stage, busy is the length of the *union* of its intervals (two replicas at work in the same second
are busy for one second), and waiting is the rest of the wall time. Stages overlap, so their busy times may
add up to more than the wall time. `nothing` is the time in which no stage was busy: the driver's share.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

TICKS_PER_SECOND = 1 << 20
"""Times are whole ticks of about a microsecond. A power of two, so that ticks convert to seconds without
rounding and busy + waiting equals the wall time to the last bit (for clocks below 2**33 seconds)."""


@dataclass(frozen=True)
class StageAccount:
    """One stage's share of an iteration; times in seconds."""

    busy: float
    """Length of the union of the stage's intervals, in [0, wall]."""
    waiting: float
    """wall - busy, exactly."""
    replica_seconds: float
    """Sum of the intervals' lengths; divided by busy, the mean number of replicas at work."""
    num_intervals: int
    amounts: dict[str, float]
    """What was made, e.g. {"tokens": 81920.0}."""
    rates: dict[str, float]
    """Amounts per busy second; empty where the stage was never busy."""

    def metrics(self, name: str) -> dict[str, float]:
        """Flat figures: time/<name>/busy, /waiting, /replica_seconds, <name>/<amount>, <name>/<amount>_per_second."""
        figures = {
            f"time/{name}/busy": self.busy,
            f"time/{name}/waiting": self.waiting,
            f"time/{name}/replica_seconds": self.replica_seconds,
        }
        figures |= {f"{name}/{amount}": value for amount, value in self.amounts.items()}
        return figures | {f"{name}/{amount}_per_second": value for amount, value in self.rates.items()}


@dataclass(frozen=True)
class Account:
    """What `Ledger.account` found; times in seconds."""

    wall: float
    nothing: float
    """Time in which no stage was busy, in [0, wall]."""
    stages: dict[str, StageAccount]

    def metrics(self) -> dict[str, float]:
        """Flat figures: time/wall, time/nothing and those of every stage."""
        figures = {"time/wall": self.wall, "time/nothing": self.nothing}
        for name, stage in self.stages.items():
            figures |= stage.metrics(name)
        return figures


class IntervalUnion:
    """Disjoint, ordered intervals; touching ones are one."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Insert [start, end), merging it with every interval that it touches."""
        left, right = bisect_left(self.ends, start), bisect_right(self.starts, end)
        if left < right:
            start, end = min(start, self.starts[left]), max(end, self.ends[right - 1])
        self.starts[left:right] = [start]
        self.ends[left:right] = [end]

    def length(self, until: int) -> int:
        """Length of what lies before `until`."""
        return sum(max(0, min(end, until) - start) for start, end in zip(self.starts, self.ends, strict=True))


@dataclass
class _Stage:
    union: IntervalUnion = field(default_factory=IntervalUnion)
    intervals: list[tuple[int, int]] = field(default_factory=list)
    amounts: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Intervals of replicas at work since `start`, all on the same monotonic clock (seconds)."""

    def __init__(self, start: float) -> None:
        self.start = _ticks(start)
        self._stages: dict[str, _Stage] = {}
        self._any = IntervalUnion()

    def declare(self, stage: str) -> None:
        """Account for `stage` even if it never works (everything it would do was done before a restart)."""
        self._stages.setdefault(stage, _Stage())

    def record(self, stage: str, start: float, end: float, **amounts: float) -> None:
        """Book that a replica of `stage` worked from `start` to `end` and made `amounts`.

        Time before the ledger's start is cut off; amounts count whole. Raises ValueError for an interval
        that ends before it starts, and for times or amounts that are not finite or amounts below 0.
        """
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"{stage}: interval from {start} to {end}; expected finite times, start <= end")
        for name, amount in amounts.items():
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"{stage}: {name} = {amount}; expected a finite number, 0 or more")
        self.declare(stage)
        book = self._stages[stage]
        for name, amount in amounts.items():
            book.amounts[name] = book.amounts.get(name, 0.0) + amount
        first, last = max(_ticks(start), self.start), _ticks(end)
        book.intervals.append((first, max(first, last)))
        if first < last:
            book.union.add(first, last)
            self._any.add(first, last)

    def account(self, now: float) -> Account:
        """Return the figures from the start until `now`; what was booked beyond `now` is cut off.

        Raises ValueError where `now` lies before the start.
        """
        end = _ticks(now)
        if end < self.start:
            raise ValueError(f"an account until {now} s of a ledger that starts at {_seconds(self.start)} s")
        stages = {name: self._account(book, end) for name, book in self._stages.items()}
        wall = end - self.start
        return Account(_seconds(wall), _seconds(wall - self._any.length(end)), stages)

    def _account(self, book: _Stage, end: int) -> StageAccount:
        busy = book.union.length(end)
        return StageAccount(
            busy=_seconds(busy),
            waiting=_seconds(end - self.start - busy),
            replica_seconds=_seconds(sum(max(0, min(last, end) - first) for first, last in book.intervals)),
            num_intervals=len(book.intervals),
            amounts=dict(book.amounts),
            rates={name: amount / _seconds(busy) for name, amount in book.amounts.items()} if busy else {},
        )


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_SECOND)


def _seconds(ticks: int) -> float:
    return ticks / TICKS_PER_SECOND


@dataclass
class Progress:
    """How far one stage of the iteration is."""

    stage: str
    total: int | None = None
    done: int = 0
    unit: str = "shards"
    from_before: int = 0
    """Committed before a restart; no measure of today's speed."""
    began: float | None = None
    news: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def eta(self) -> float | None:
        """Seconds from the last news to the end at the mean pace so far; None while nothing can be said."""
        if self.finished or self.total is None or self.began is None or self.news is None:
            return None
        fresh = self.done - self.from_before
        return (self.news - self.began) / fresh * (self.total - self.done) if fresh > 0 else None


class Board:
    """Everything that is known about the present iteration; `begin` wipes it."""

    def __init__(self, title: str, now: float) -> None:
        self._lock = threading.Lock()
        self.begin(title, now)

    def begin(self, title: str, now: float) -> None:
        with self._lock:
            self.title = title
            self._ledger = Ledger(now)
            self._stages: dict[str, Progress] = {}

    def expect(self, stage: str, total: int, done: int, unit: str) -> None:
        with self._lock:
            self._ledger.declare(stage)
            self._stages[stage] = Progress(stage, total, done, unit, done)

    def book(self, stage: str, start: float, end: float, **amounts: float) -> None:
        """Book an interval of work; see `Ledger.record`."""
        with self._lock:
            self._ledger.record(stage, start, end, **amounts)

    def advance(
        self, stage: str, began: float, now: float, *, to: int | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """One unit more, or `to` so many, for work that began at `began`."""
        with self._lock:
            progress = self._stages.setdefault(stage, Progress(stage))
            progress.began = began if progress.began is None else min(progress.began, began)
            progress.done, progress.news = progress.done + 1 if to is None else to, now
            progress.metrics = dict(metrics or {})

    def knows(self, stage: str) -> bool:
        with self._lock:
            return stage in self._stages

    def finished(self, stage: str) -> bool:
        with self._lock:
            return stage in self._stages and self._stages[stage].finished

    def account(self, now: float) -> Account:
        with self._lock:
            return self._ledger.account(now)

    def look(self, now: float) -> tuple[list[Progress], Account]:
        """A consistent copy of all there is."""
        with self._lock:
            return [replace(progress) for progress in self._stages.values()], self._ledger.account(now)
