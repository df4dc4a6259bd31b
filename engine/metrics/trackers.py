"""Where metrics are written: metrics.jsonl, always. Other trackers are in engine/metrics/services.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from engine.metrics.json_lines import JsonLines, Record, read_lines

Kind = Literal["step", "iteration", "stage", "note"]
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


class MetricsFile:
    """Writes metrics.jsonl at `path`.

    Keys: `time` (ISO 8601, UTC), `kind`, `iteration`, `step`, the labels, then the metrics.
    """

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path)

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        """Append one line. Raises ValueError for a metric named like a reserved key, StoreError on a full disk.

        JSON has no NaN and no infinity: such values are written as null and named under `nonfinite`.
        """
        if reserved := sorted(RESERVED & metrics.keys()):
            raise ValueError(f"metrics named {reserved}: these names are reserved in {FILE_NAME}; choose others")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        nonfinite = [name for name, value in numbers.items() if not math.isfinite(value)]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record: Record = {"time": now, "kind": kind, "iteration": iteration, "step": step, **labels}
        record |= numbers | dict.fromkeys(nonfinite)
        if nonfinite:
            record["nonfinite"] = nonfinite
        self._file.append(record)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics file in order. Of records that a restarted run wrote again, the last counts.

    Steps are identified by (iteration, step), iterations by their number, stages by (iteration, stage); all notes
    are kept. An unfinished last line is ignored; a missing file gives []. Raises StoreError, naming the line, for
    any other line that is not a JSON object.
    """
    latest: dict[tuple, Record] = {}
    for number, record in read_lines(path):
        kind = record.get("kind")
        key = (number,) if kind == "note" else tuple(record.get(k) for k in ("kind", "iteration", "step", "stage"))
        latest.pop(key, None)  # its new place is the end: a repeated step follows the steps before it
        latest[key] = record
    return list(latest.values())
