"""The loop reports its work here; it becomes metrics, progress on the screen, times per stage and a time line.

A monitor runs in the driver process and is used by the thread that runs the loop; notes may come from any thread. All
times are of one monotonic clock in that process: an interval starts when a replica gets the work and ends when its
result arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console

from engine.metrics.progress import LiveView, PlainView, View, duration
from engine.metrics.timeline import TimelineFile
from engine.metrics.timing import Progress, StageTimer
from engine.metrics.trackers import FILE_NAME, Kind, MetricsFile, Tracker, read_metrics

__all__ = ["Monitor", "read_metrics"]

LEARNER_STAGE = "learn"
LEARNER_ROLE = "learner"


class Monitor:
    """Observes one run. Use it as a context manager, or call `close`.

    folder: the run folder. Existing metrics.jsonl and timeline.jsonl in it are continued.
    console: where progress is shown; None: standard error.
    live: True: a table that redraws itself; False: plain lines; None: the table if the console is a terminal.
    trackers: get everything that goes into metrics.jsonl too. The monitor closes them.
    clock: returns seconds, monotonic. The times that the loop reports must come from it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        console: Console | None = None,
        live: bool | None = None,
        trackers: Sequence[Tracker] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._trackers: list[Tracker] = [MetricsFile(folder / FILE_NAME), *trackers]
        self._timeline = TimelineFile(folder, clock)
        self._iteration: int | None = None
        self._begun = clock()
        self._timer = StageTimer("start", clock())
        console = console or Console(stderr=True)
        view = LiveView if (console.is_terminal if live is None else live) else PlainView
        self._view: View = view(console, self._timer, clock)

    def begin_iteration(self, t: int, total: int) -> None:
        """Iteration `t` of `total`, counted from 1, begins now. Its wall time ends with `end_iteration`."""
        self._iteration, self._begun = t, self._clock()
        self._timer.begin(f"iteration {t} of {total}", self._begun)

    def end_iteration(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Write and return the iteration's `metrics` with the times and amounts of its stages added.

        Added are time/wall, time/nothing and, per stage, time/<stage>/busy and /waiting (together time/wall),
        time/<stage>/replica_seconds, <stage>/<amount> and <stage>/<amount>_per_second (per busy second).
        """
        now = self._clock()
        times = self._timer.times(now)
        metrics = times.metrics() | dict(metrics)
        self._write("iteration", metrics=metrics)
        if self._iteration is not None:
            self._timeline.iteration(self._iteration, self._begun, now)
        busy = (f"{name} busy {duration(stage.busy)}" for name, stage in times.stages.items())
        self._view.note(f"[{self._timer.title}] took {duration(times.wall)}: " + ", ".join(busy))
        return metrics

    def expect(self, stage: str, total: int, done: int = 0, unit: str = "shards") -> None:
        """`stage` has `total` units of work in this iteration, of which `done` were committed before a restart."""
        self._timer.expect(stage, total, done, unit)
        if done:
            self._view.update(stage)

    def end_early(self, stage: str) -> None:
        """`stage`, which was expected to do more, ends with the units that it has done."""
        self._timer.shorten(stage)
        self._view.update(stage)
        self._write_times(stage)

    def shard_done(self, stage: str, start: float, end: float, role: str | None = None, **amounts: float) -> None:
        """One shard is done: a replica of `role` (None: the driver) worked on it from `start` to `end` and made
        `amounts`.

        The screen shows the rate of tokens, pairs or rows.
        """
        self._record(stage, role, start, end, **amounts)
        self._advance(stage, start)

    def busy(self, stage: str, start: float, end: float) -> None:
        """`stage` worked from `start` to `end` on something other than a shard: weights, a start, a checkpoint."""
        self._record(stage, None, start, end)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time that the block takes as busy time of `stage`."""
        start = self._clock()
        yield
        self.busy(stage, start, self._clock())

    def step(
        self,
        step: int,
        total: int,
        metrics: Mapping[str, float],
        seconds: float,
        end: float | None = None,
        **amounts: float,
    ) -> None:
        """The learner finished optimizer step `step` of `total`, counted from 1 within the iteration, at `end` (None:
        just now).

        seconds: its working time since the step before, counted as busy time of the stage "learn".
        metrics: under TRL's names (loss, rewards/chosen, rewards/margins, logps/chosen, ...), written unchanged.
        Raises ValueError before the first `begin_iteration`.
        """
        if self._iteration is None:
            raise ValueError(f"step {step} was reported before begin_iteration(); call that first")
        end = self._clock() if end is None else end
        self._record(LEARNER_STAGE, LEARNER_ROLE, end - seconds, end, **amounts)
        made = {f"{LEARNER_STAGE}/{name}": value for name, value in amounts.items()}
        self._write("step", step, {**metrics, **made, "time/step": seconds})
        if self._timer.progress(LEARNER_STAGE) is None:
            self.expect(LEARNER_STAGE, total, unit="steps")
        self._advance(LEARNER_STAGE, end - seconds, to=step, metrics=metrics)

    def note(self, text: str) -> None:
        """Write and show a message: a retry, a replaced replica, a warning."""
        self._write("note", text=text)
        self._view.note(text)

    def close(self) -> None:
        """Restore the terminal and close the files; a second call does nothing."""
        self._view.close()
        for tracker in reversed(self._trackers):  # metrics.jsonl last: it takes notes about the others
            tracker.close()
        self._timeline.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, stage: str, role: str | None, start: float, end: float, **amounts: float) -> None:
        self._timer.record(stage, start, end, **amounts)
        self._timeline.work(stage, role, self._iteration, start, end)

    def _write(
        self, kind: Kind, step: int | None = None, metrics: Mapping[str, float] | None = None, **labels: str
    ) -> None:
        for tracker in self._trackers:
            tracker.write(kind, self._iteration, step, metrics or {}, **labels)

    def _advance(
        self, stage: str, started: float, to: int | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Show progress. When the stage is complete, write its times and amounts."""
        before = self._timer.progress(stage) or Progress(stage)
        after = self._timer.advance(stage, started, self._clock(), to=to, metrics=metrics)
        self._view.update(stage)
        if after.finished and not before.finished:
            self._write_times(stage)

    def _write_times(self, stage: str) -> None:
        times = self._timer.times(self._clock()).stages[stage]
        self._write("stage", metrics=times.metrics(stage), stage=stage)
