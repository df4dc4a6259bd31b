"""When each piece of work began and ended: timeline.jsonl in the run folder.

Times are seconds since 1970, to the millisecond. Within a process they come from the driver's monotonic clock, anchored
once to the wall clock, so that an adjusted clock moves no interval; restarts continue the file on the same axis.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.metrics.json_lines import JsonLines, Record, read_lines

FILE_NAME = "timeline.jsonl"
DRIVER = "driver"
"""The role of what the driver does itself."""


@dataclass(frozen=True)
class Work:
    """One interval in which a replica worked on one shard, or the learner on one step. Times in seconds since 1970."""

    stage: str
    role: str
    iteration: int | None
    """Counted from 1; None before the first."""
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All work of a run so far, over its restarts."""

    work: tuple[Work, ...] = ()
    processes: tuple[float, ...] = ()
    """When each process of the driver began: the first start and the restarts."""
    iterations: tuple[tuple[int, float, float], ...] = ()
    """(iteration from 1, start, end) of those that ended; of one that was repeated, the last time."""

    @property
    def seconds(self) -> float:
        """Time in which a process of the driver was at work: from each start to its last piece of work."""
        ends = [piece.end for piece in self.work] + [end for _, _, end in self.iterations]
        total = 0.0
        for start, following in zip(self.processes, (*self.processes[1:], float("inf")), strict=True):
            total += max((end for end in ends if start <= end < following), default=start) - start
        return total

    def busy(self) -> dict[str, float]:
        """{stage: seconds in which at least one replica worked}."""
        stages: dict[str, float] = {}
        reached: dict[str, float] = {}
        for piece in sorted(self.work, key=lambda piece: piece.start):
            since = max(piece.start, reached.get(piece.stage, piece.start))
            stages[piece.stage] = stages.get(piece.stage, 0.0) + max(0.0, piece.end - since)
            reached[piece.stage] = max(piece.end, since)
        return stages


class TimelineFile:
    """Appends to timeline.jsonl in `folder`.

    clock: seconds, monotonic; the times given to the methods come from it. wall: seconds since 1970.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._file = JsonLines(folder / FILE_NAME)
        now = clock()
        self._offset = wall() - now
        self._append("process", now, now)

    def work(self, stage: str, role: str | None, iteration: int | None, start: float, end: float) -> None:
        """`role` worked on `stage` from `start` to `end`. None: the driver."""
        self._append("work", start, end, stage=stage, role=role or DRIVER, iteration=iteration)

    def iteration(self, iteration: int, start: float, end: float) -> None:
        """An iteration, counted from 1, took from `start` to `end`."""
        self._append("iteration", start, end, iteration=iteration)

    def close(self) -> None:
        self._file.close()

    def _append(self, kind: str, start: float, end: float, **labels: str | int | None) -> None:
        times = {"start": round(start + self._offset, 3), "end": round(end + self._offset, 3)}
        self._file.append({"kind": kind, **labels, **times})


def read_timeline(folder: Path) -> Timeline:
    """The timeline of a run folder; empty if there is no file. Raises StoreError for a damaged line."""
    records: dict[str, list[Record]] = {"work": [], "process": [], "iteration": []}
    for _, record in read_lines(folder / FILE_NAME):
        records.setdefault(record.get("kind", ""), []).append(record)
    work = (Work(r["stage"], r["role"], r["iteration"], r["start"], r["end"]) for r in records["work"])
    iterations = {r["iteration"]: (r["iteration"], r["start"], r["end"]) for r in records["iteration"]}
    return Timeline(tuple(work), tuple(r["start"] for r in records["process"]), tuple(iterations.values()))
