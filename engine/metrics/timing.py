"""Where an iteration's time goes: busy and waiting seconds of each stage, and how far each stage is.

A stage is busy while at least one of its replicas works: two replicas that work in the same second count one second.
It waits during the rest of the wall time. Stages overlap, so their busy times may add up to more than the wall time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

TICKS_PER_SECOND = 1 << 20
"""Times are whole ticks of about a microsecond. A power of two, so that ticks convert to seconds without
rounding and busy + waiting equals the wall time to the last bit (for clocks below 2**33 seconds)."""

Interval = tuple[int, int]
"""Start and end of a piece of work, in ticks."""


@dataclass(frozen=True)
class StageTimes:
    """What one stage did in an iteration; times in seconds."""

    busy: float
    """Time in which at least one replica worked, in [0, wall]."""
    waiting: float
    """wall - busy, exactly."""
    replica_seconds: float
    """Working time summed over replicas; divided by `busy`, the mean number of replicas at work."""
    num_intervals: int
    amounts: dict[str, float]
    """What was made, e.g. {"tokens": 81920.0}."""
    rates: dict[str, float]
    """Amounts per busy second; empty if the stage was never busy."""

    def metrics(self, stage: str) -> dict[str, float]:
        """time/<stage>/busy, /waiting, /replica_seconds, <stage>/<amount> and <stage>/<amount>_per_second."""
        metrics = {
            f"time/{stage}/busy": self.busy,
            f"time/{stage}/waiting": self.waiting,
            f"time/{stage}/replica_seconds": self.replica_seconds,
        }
        metrics |= {f"{stage}/{amount}": value for amount, value in self.amounts.items()}
        return metrics | {f"{stage}/{amount}_per_second": value for amount, value in self.rates.items()}


@dataclass(frozen=True)
class IterationTimes:
    """What all stages did in an iteration; times in seconds."""

    wall: float
    idle: float
    """Time in which no stage was busy, in [0, wall]."""
    stages: dict[str, StageTimes]

    def metrics(self) -> dict[str, float]:
        """time/wall, time/nothing (`idle`) and the metrics of every stage."""
        metrics = {"time/wall": self.wall, "time/nothing": self.idle}
        for name, stage in self.stages.items():
            metrics |= stage.metrics(name)
        return metrics


@dataclass
class Progress:
    """How far one stage of the iteration is; times in seconds."""

    stage: str
    total: int | None = None
    """Units of work expected; None if it was not announced."""
    done: int = 0
    unit: str = "shards"
    done_before: int = 0
    """Units done before a restart; they do not count for the pace."""
    started: float | None = None
    """Start of the first unit."""
    updated: float | None = None
    """When the last unit was done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last unit."""

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def eta(self) -> float | None:
        """Seconds from the last update to the end, at the mean pace so far; None before the first unit is done."""
        if self.finished or self.total is None or self.started is None or self.updated is None:
            return None
        num_done = self.done - self.done_before
        return (self.updated - self.started) / num_done * (self.total - self.done) if num_done > 0 else None


@dataclass
class _Work:
    """What a stage has done so far."""

    intervals: list[Interval] = field(default_factory=list)
    amounts: dict[str, float] = field(default_factory=dict)


class StageTimer:
    """Working times and progress of the stages of the present iteration. Thread-safe.

    All times are seconds of the same monotonic clock.
    """

    def __init__(self, title: str, now: float) -> None:
        self._lock = threading.Lock()
        self.begin(title, now)

    def begin(self, title: str, now: float) -> None:
        """Forget the stages so far; an iteration called `title` starts at `now`."""
        with self._lock:
            self.title = title
            self._start = _ticks(now)
            self._work: dict[str, _Work] = {}
            self._progress: dict[str, Progress] = {}

    def expect(self, stage: str, total: int, done: int = 0, unit: str = "shards") -> None:
        """`stage` has `total` units of work, of which `done` were done before a restart. It is timed from now on."""
        with self._lock:
            self._work.setdefault(stage, _Work())
            self._progress[stage] = Progress(stage, total, done, unit, done)

    def shorten(self, stage: str) -> None:
        """`stage` ends with the units that it has done."""
        with self._lock:
            progress = self._progress[stage]
            progress.total = progress.done

    def record(self, stage: str, start: float, end: float, **amounts: float) -> None:
        """A replica of `stage` worked from `start` to `end` and made `amounts`.

        Time before the start of the iteration is cut off; the amounts count in full. Raises ValueError for an
        interval that ends before it starts, for times that are not finite, and for amounts that are not finite or
        below 0; nothing is recorded then.
        """
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"{stage}: interval from {start} to {end}; expected finite times, start <= end")
        for name, amount in amounts.items():
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"{stage}: {name} = {amount}; expected a finite number, 0 or more")
        with self._lock:
            work = self._work.setdefault(stage, _Work())
            for name, amount in amounts.items():
                work.amounts[name] = work.amounts.get(name, 0.0) + amount
            first = max(_ticks(start), self._start)
            work.intervals.append((first, max(first, _ticks(end))))

    def advance(
        self,
        stage: str,
        started: float,
        now: float,
        *,
        to: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Progress:
        """Count one more unit of `stage`, started at `started` and done at `now`; with `to`, set the count to it.

        Returns a copy of the stage's progress.
        """
        with self._lock:
            progress = self._progress.setdefault(stage, Progress(stage))
            progress.started = started if progress.started is None else min(progress.started, started)
            progress.done, progress.updated = progress.done + 1 if to is None else to, now
            progress.metrics = dict(metrics or {})
            return replace(progress)

    def progress(self, stage: str) -> Progress | None:
        """A copy of the stage's progress; None if it was never announced nor advanced."""
        with self._lock:
            return replace(self._progress[stage]) if stage in self._progress else None

    def times(self, now: float) -> IterationTimes:
        """The times from the start of the iteration until `now`; work after `now` is cut off.

        Raises ValueError if `now` is before the start.
        """
        with self._lock:
            return self._times(_ticks(now))

    def snapshot(self, now: float) -> tuple[list[Progress], IterationTimes]:
        """The progress of all stages in the order in which they were announced, and the times until `now`."""
        with self._lock:
            return [replace(progress) for progress in self._progress.values()], self._times(_ticks(now))

    def _times(self, end: int) -> IterationTimes:
        wall = end - self._start
        if wall < 0:
            raise ValueError(f"times until {_seconds(end)} s of an iteration that starts at {_seconds(self._start)} s")
        stages = {name: self._stage_times(work, end) for name, work in self._work.items()}
        intervals = (interval for work in self._work.values() for interval in work.intervals)
        return IterationTimes(_seconds(wall), _seconds(wall - _covered(intervals, self._start, end)), stages)

    def _stage_times(self, work: _Work, end: int) -> StageTimes:
        busy = _covered(work.intervals, self._start, end)
        return StageTimes(
            busy=_seconds(busy),
            waiting=_seconds(end - self._start - busy),
            replica_seconds=_seconds(sum(max(0, min(last, end) - first) for first, last in work.intervals)),
            num_intervals=len(work.intervals),
            amounts=dict(work.amounts),
            rates={name: amount / _seconds(busy) for name, amount in work.amounts.items()} if busy else {},
        )


def _covered(intervals: Iterable[Interval], since: int, until: int) -> int:
    """Ticks from `since` to `until` that lie in at least one of the intervals."""
    covered = 0
    for start, end in sorted(intervals):
        start, end = max(start, since), min(end, until)
        if start < end:
            covered, since = covered + end - start, end
    return covered


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_SECOND)


def _seconds(ticks: int) -> float:
    return ticks / TICKS_PER_SECOND
