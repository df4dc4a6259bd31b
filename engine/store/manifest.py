"""The manifest of a run: one record per line for everything that was committed, appended after the commit.

Readers accept what a record names and a hash confirms, nothing else. Each line starts with a checksum of its record.
An incomplete last line was left by a crash and is dropped; any other damage is an error. What the records mean is
decided by engine/store/reader.py.
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
    """The line of a record, without its line end: checksum, space, JSON with sorted keys."""
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f"{_checksum(body)} {body}"


def decode(line: str) -> Record | None:
    """The record of a line; None if the line is incomplete or was altered."""
    checksum, _, body = line.partition(" ")
    return json.loads(body) if body and checksum == _checksum(body) else None


def read(path: Path) -> tuple[list[Record], bool]:
    """All records, and whether the last line is incomplete. Raises StoreError for damage in any other line."""
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
    """The records in memory and on disk, newest last. Opening it removes an incomplete last line."""

    def __init__(self, path: Path, disk: Disk):
        self._path, self._disk = path, disk
        self.records, torn = read(path)
        if torn:
            disk.write(path, "".join(encode(r) + "\n" for r in self.records).encode())

    def add(self, **record: Any) -> Record:
        """Append one record durably; it is valid once this returns."""
        self._disk.append(self._path, encode(record))
        self.records.append(record)
        return record


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]
