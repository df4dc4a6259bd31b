"""metrics.jsonl, the record of a run's numbers that is always written, and TensorBoard beside it.

One JSON object per line: `time` (ISO 8601, UTC), `kind` ("step", "iteration", "stage", "note"),
`iteration`, `step`, then the metrics, flat. Appended and flushed line by line, so that a killed process
loses at most the line that it was writing. Knows nothing of what the numbers mean.
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
from typing import Any, Literal

from engine.errors import ConfigError, StoreError

Kind = Literal["step", "iteration", "stage", "note"]
Record = dict[str, Any]
FILE_NAME = "metrics.jsonl"
RESERVED = frozenset({"time", "kind", "iteration", "step", "stage", "text", "nonfinite"})
"""Keys of a line that no metric may take."""


class MetricsFile:
    """Appends lines to `path`; a line torn by a crash is cut off first, for it would swallow the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()  # notes come from the threads of pools

    def write(
        self,
        kind: Kind,
        iteration: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        **labels: str,
    ) -> None:
        """Append one line. Raises ValueError for a metric named like a reserved key, StoreError on a full disk.

        JSON has no NaN and no infinity: such values are written as null and named under `nonfinite`.
        """
        metrics = metrics or {}
        if taken := sorted(RESERVED & metrics.keys()):
            raise ValueError(f"metrics named {taken}: these keys of a line in {self.path.name} are taken")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        nonfinite = [name for name, value in numbers.items() if not math.isfinite(value)]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record: Record = {"time": now, "kind": kind, "iteration": iteration, "step": step, **labels}
        record |= numbers | dict.fromkeys(nonfinite)
        if nonfinite:
            record["nonfinite"] = nonfinite
        self._append((json.dumps(record, allow_nan=False) + "\n").encode("ascii"))

    def _append(self, line: bytes) -> None:
        """Write all of `line` or, on a full disk, nothing of it."""
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
    """Return the lines of a metrics file in order, with what a restarted run wrote again taken once, the last.

    Steps are told apart by (iteration, step), iterations by number, stages by (iteration, stage); notes are
    all kept. An unfinished last line is passed over; a missing file gives []. Raises StoreError, naming the
    line, for anything else that is no JSON object.
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
            raise StoreError(f"{path}, line {number}: not a line of metrics ({error}); remove it to go on") from error
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
    """The same numbers as TensorBoard event files, over optimizer steps counted through all iterations.

    Raises ConfigError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, past: list[Record]) -> None:
        if find_spec("tensorboardX") is None:
            raise ConfigError(
                ["tracking.tensorboard = true needs the package tensorboardX; install it (pip install tensorboardX) "
                 "or set tracking.tensorboard = false: metrics.jsonl holds the same numbers"]
            )  # fmt: skip
        self._folder = folder
        self._writer: Any = None
        self._last_step: dict[int, int] = {}
        for record in past:
            if record["kind"] == "step":
                self._count(record["iteration"], record["step"])

    def _count(self, iteration: int, step: int) -> None:
        self._last_step[iteration] = max(step, self._last_step.get(iteration, 0))

    def step(self, iteration: int, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step; the first one after a restart hides the same and later steps of the dead process."""
        self._count(iteration, step)
        self._write(self._before(iteration) + step, metrics, purge=True)

    def iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Write an iteration's figures at its last step."""
        self._write(self._before(iteration) + self._last_step.get(iteration, 0), metrics, purge=False)

    def _before(self, iteration: int) -> int:
        """Steps of all earlier iterations."""
        return sum(last for earlier, last in self._last_step.items() if earlier < iteration)

    def _write(self, global_step: int, metrics: Mapping[str, float], purge: bool) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

            suffix = f".{time.time_ns()}"  # file names count seconds: a fast restart would overwrite the last file
            purge_step = global_step if purge else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step, filename_suffix=suffix)
        for name, value in metrics.items():
            if math.isfinite(value):  # tensorboardX would print a warning for each of the others
                self._writer.add_scalar(name, value, global_step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
