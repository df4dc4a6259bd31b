"""Where an iteration's time went: busy, waiting and idle seconds that add up to its wall time.

Pure arithmetic on intervals of one monotonic clock. Knows nothing of who worked, of files or of screens.

For each stage busy is the length of the *union* of its intervals (two replicas at work in the same second
are busy for one second), and waiting is the rest of the wall time. Stages overlap, so their busy times may
add up to more than the wall time; `nothing`, the time in which no stage was busy, is the driver's share.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

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
