"""The run's list of what exists: one line per committed thing, appended after the thing itself.

Readers trust what a line names and a hash confirms, nothing else. Each line carries a checksum of
itself. A torn last line is the trace of a crash and is dropped; any other damage is an error.
Knows nothing of what the records mean.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.errors import StoreError
from engine.store.disk import Disk

Record = dict[str, Any]


def encode(record: Record) -> str:
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f"{_checksum(body)} {body}"


def decode(line: str) -> Record | None:
    """Return the record, or None when the line is torn or altered."""
    checksum, _, body = line.partition(" ")
    return json.loads(body) if body and checksum == _checksum(body) else None


def read(path: Path) -> tuple[list[Record], bool]:
    """Return all records and whether the last line was torn. Raises StoreError for damage elsewhere."""
    if not path.exists():
        return [], False
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records: list[Record] = []
    for number, line in enumerate(lines[:-1], start=1):
        record = decode(line)
        if record is None and number < len(lines) - 1:
            raise StoreError(f"{path}:{number}: this line was altered after it was written; restore it from a backup")
        if record is None:
            return records, True
        records.append(record)
    return records, bool(lines[-1])


class Manifest:
    """The records in memory and on disk, newest last."""

    def __init__(self, path: Path, disk: Disk):
        self._path, self._disk = path, disk
        self.records, torn = read(path)
        if torn:
            disk.write(path, "".join(encode(r) + "\n" for r in self.records).encode())

    def add(self, **record: Any) -> Record:
        """Append one record durably; it counts from the moment this returns."""
        self._disk.append(self._path, encode(record))
        self.records.append(record)
        return record


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]
