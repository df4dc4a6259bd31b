"""Trackers: where metrics are written. metrics.jsonl always, TensorBoard on request.

A new one (Weights & Biases, MLflow, ...) is a class with the methods of `Tracker` and a line in `open_trackers`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.errors import ConfigError, StoreError

Kind = Literal["step", "iteration", "stage", "note"]
Record = dict[str, Any]
"""One line of metrics.jsonl."""
FILE_NAME = "metrics.jsonl"
RESERVED = frozenset({"time", "kind", "iteration", "step", "stage", "text", "nonfinite"})
"""Keys of a line that no metric may take."""


class Tracker(Protocol):
    """Receives everything that a run measures, in order."""

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        """Take one record.

        iteration: from 1; None before the first. step: of the learner within the iteration, from 1; None for other
        kinds. labels: `stage` of the kind "stage", `text` of the kind "note". Notes may come from any thread.
        """

    def close(self) -> None:
        """Write out what is buffered. May be called twice."""


def open_trackers(folder: Path, tensorboard: bool) -> list[Tracker]:
    """The trackers of the run in `folder`. Raises ConfigError for one whose package is not installed."""
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", read_metrics(folder / FILE_NAME)))
    return [MetricsFile(folder / FILE_NAME), *trackers]


class MetricsFile:
    """Appends JSON objects to metrics.jsonl at `path`, one per line.

    Keys: `time` (ISO 8601, UTC), `kind`, `iteration`, `step`, the labels, then the metrics. Each line is written at
    once, so a killed process loses at most the line that it was writing. An unfinished last line is cut off first,
    because the next line would be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()  # notes come from the threads of pools

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        """Append one line. Raises ValueError for a metric named like a reserved key, StoreError on a full disk.

        JSON has no NaN and no infinity: such values are written as null and named under `nonfinite`.
        """
        if reserved := sorted(RESERVED & metrics.keys()):
            raise ValueError(f"metrics named {reserved}: these names are reserved in {self.path.name}; choose others")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        nonfinite = [name for name, value in numbers.items() if not math.isfinite(value)]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record: Record = {"time": now, "kind": kind, "iteration": iteration, "step": step, **labels}
        record |= numbers | dict.fromkeys(nonfinite)
        if nonfinite:
            record["nonfinite"] = nonfinite
        self._append((json.dumps(record, allow_nan=False) + "\n").encode("ascii"))

    def _append(self, line: bytes) -> None:
        """Write the whole line or, on a full disk, nothing."""
        try:
            with self._lock:
                size = self._file.tell()
                if self._file.write(line) < len(line):
                    self._file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise StoreError(f"{self.path}: cannot write metrics: {error}; make room and start again") from error

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics file in order. Of records that a restarted run wrote again, the last counts.

    Steps are identified by (iteration, step), iterations by their number, stages by (iteration, stage); all notes
    are kept. An unfinished last line is ignored; a missing file gives []. Raises StoreError, naming the line, for
    any other line that is not a JSON object.
    """
    if not path.exists():
        return []
    latest: dict[tuple, Record] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            raise StoreError(f"{path}, line {number}: not a line of metrics ({error}); remove that line") from error
        kind = record.get("kind")
        key = (number,) if kind == "note" else tuple(record.get(k) for k in ("kind", "iteration", "step", "stage"))
        latest.pop(key, None)  # its new place is the end: a repeated step follows the steps before it
        latest[key] = record
    return list(latest.values())


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())


class TensorBoard:
    """TensorBoard event files with the metrics of steps and iterations.

    past: the records so far, from which the steps are counted on. Raises ConfigError without tensorboardX.
    """

    def __init__(self, folder: Path, past: list[Record]) -> None:
        if find_spec("tensorboardX") is None:
            raise ConfigError(
                ["tracking.tensorboard = true needs the package tensorboardX; install it (pip install tensorboardX) "
                 "or set tracking.tensorboard = false: metrics.jsonl holds the same numbers"]
            )  # fmt: skip
        self._folder = folder
        self._writer: Any = None
        self._steps = StepCounter(past)

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        """Write a step's or an iteration's finite metrics; ignore other kinds.

        The first step after a restart hides the same and later steps of the process before.
        """
        if kind not in ("step", "iteration") or iteration is None:
            return
        total_steps = self._steps.total(iteration, step)
        if self._writer is None:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

            suffix = f".{time.time_ns()}"  # file names count seconds: a fast restart would overwrite the last file
            purge_step = total_steps if kind == "step" else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step, filename_suffix=suffix)
        for name, value in metrics.items():
            if math.isfinite(value):  # tensorboardX would print a warning for each of the others
                self._writer.add_scalar(name, value, total_steps)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class StepCounter:
    """Counts optimizer steps through all iterations, for trackers whose horizontal axis is one number."""

    def __init__(self, past: list[Record]) -> None:
        self._last: dict[int, int] = {}
        for record in past:
            if record["kind"] == "step":
                self.total(record["iteration"], record["step"])

    def total(self, iteration: int, step: int | None) -> int:
        """Steps from the start of the run to `step` of `iteration`; None: to the iteration's last step so far."""
        last = self._last.get(iteration, 0)
        self._last[iteration] = max(last, step or 0)
        return sum(n for earlier, n in self._last.items() if earlier < iteration) + (last if step is None else step)
