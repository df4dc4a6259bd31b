"""The present iteration's progress and time ledger, behind one lock.

The loop's thread writes it while a terminal's thread reads it. Knows nothing of files or of screens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.watch.ledger import Account, Ledger


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
