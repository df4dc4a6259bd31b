"""What the loop tells about its work, turned into metrics.jsonl, progress on the screen and the time ledger.

Runs in the driver process, for the thread that runs the loop. All times given to it are of one monotonic
clock, its own `clock`: intervals that start when a replica got the work and end when its result was there.
Knows nothing of Ray, of the roles or of what the metrics mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console

from engine.metrics.progress import LiveView, PlainView, View, duration
from engine.metrics.timing import Board
from engine.metrics.trackers import FILE_NAME, MetricsFile, TensorBoard, read_metrics

__all__ = ["Monitor", "read_metrics"]

LEARNER_STAGE = "learn"


class Monitor:
    """One run's observer. Use as a context manager, or call `close`.

    folder: the run folder; metrics.jsonl in it is continued where it exists.
    console: where progress goes; None: standard error.
    live: a table that redraws itself (True) or plain lines (False); None: the table on a terminal.
    tensorboard: also write event files to folder/tensorboard. Raises ConfigError without tensorboardX.
    clock: seconds, monotonic; the one by which the loop takes its times.
    """

    def __init__(
        self,
        folder: Path,
        *,
        console: Console | None = None,
        live: bool | None = None,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path = folder / FILE_NAME
        self._clock = clock
        self._file = MetricsFile(path)
        self._tensorboard = TensorBoard(folder / "tensorboard", read_metrics(path)) if tensorboard else None
        self._iteration: int | None = None
        self._board = Board("start", clock())
        console = console or Console(stderr=True)
        view = LiveView if (console.is_terminal if live is None else live) else PlainView
        self._view: View = view(console, self._board, clock)

    def begin_iteration(self, t: int, total: int) -> None:
        """Iteration `t` of `total` (from 1) begins now; its wall time runs until `end_iteration`."""
        self._iteration = t
        self._board.begin(f"iteration {t} of {total}", self._clock())

    def end_iteration(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Write and return the iteration's `metrics` with the ledger's figures added.

        Added are time/wall, time/nothing and, per stage, time/<stage>/busy, /waiting (they add up to
        time/wall), /replica_seconds, and <stage>/<amount> with <stage>/<amount>_per_second (of busy time).
        """
        account = self._board.account(self._clock())
        figures = account.metrics() | dict(metrics)
        self._file.write("iteration", self._iteration, metrics=figures)
        if self._tensorboard and self._iteration is not None:
            self._tensorboard.iteration(self._iteration, figures)
        shares = (f"{name} busy {duration(stage.busy)}" for name, stage in account.stages.items())
        self._view.note(f"[{self._board.title}] took {duration(account.wall)}: " + ", ".join(shares))
        return figures

    def expect(self, stage: str, total: int, done: int = 0, unit: str = "shards") -> None:
        """`stage` has `total` units of work in this iteration, `done` of them committed before a restart."""
        self._board.expect(stage, total, done, unit)
        if done:
            self._view.update(stage)

    def shard_done(self, stage: str, start: float, end: float, **amounts: float) -> None:
        """One shard is done: a replica worked on it from `start` to `end` and made `amounts`.

        The amounts that the screen knows are tokens, pairs and rows.
        """
        self._board.book(stage, start, end, **amounts)
        self._advance(stage, start)

    def busy(self, stage: str, start: float, end: float) -> None:
        """`stage` worked from `start` to `end` on something that is no shard: weights, a start, a checkpoint."""
        self._board.book(stage, start, end)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Book the time that a block takes as busy time of `stage`."""
        start = self._clock()
        yield
        self.busy(stage, start, self._clock())

    def step(self, step: int, total: int, metrics: Mapping[str, float], seconds: float, **amounts: float) -> None:
        """The learner finished optimizer step `step` of `total` (from 1, within the iteration) just now.

        seconds: its work since the previous call, booked as busy time of the stage "learn".
        metrics: under TRL's names (loss, rewards/chosen, rewards/margins, logps/chosen, ...), kept as they are.
        """
        if self._iteration is None:
            raise ValueError(f"step {step} was reported before begin_iteration()")
        now = self._clock()
        self._board.book(LEARNER_STAGE, now - seconds, now, **amounts)
        made = {f"{LEARNER_STAGE}/{name}": value for name, value in amounts.items()}
        self._file.write("step", self._iteration, step, {**metrics, **made, "time/step": seconds})
        if self._tensorboard:
            self._tensorboard.step(self._iteration, step, metrics)
        if not self._board.knows(LEARNER_STAGE):
            self.expect(LEARNER_STAGE, total, unit="steps")
        self._advance(LEARNER_STAGE, now - seconds, to=step, metrics=metrics)

    def note(self, text: str) -> None:
        """A line for people: a retry, a replaced replica, a warning."""
        self._file.write("note", self._iteration, text=text)
        self._view.note(text)

    def close(self) -> None:
        """Leave the terminal as it was and close the files; a second call does nothing."""
        self._view.close()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(
        self, stage: str, began: float, to: int | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Show progress; when the stage is complete, write its figures."""
        was_finished = self._board.finished(stage)
        self._board.advance(stage, began, self._clock(), to=to, metrics=metrics)
        self._view.update(stage)
        if self._board.finished(stage) and not was_finished:
            figures = self._board.account(self._clock()).stages[stage].metrics(stage)
            self._file.write("stage", self._iteration, metrics=figures, stage=stage)
