"""Files of JSON objects, one per line, that a killed process leaves readable and the next one continues."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import StoreError

Record = dict[str, Any]
"""One line."""


class JsonLines:
    """Appends objects to the file `path`.

    Each line is written at once, so a killed process loses at most the line that it was writing. An unfinished last
    line is cut off first, because the next line would be appended to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()  # notes come from the threads of pools

    def append(self, record: Record) -> None:
        """Write the whole line or, on a full disk, nothing. Raises StoreError then, ValueError for NaN or infinity."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode("ascii")
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


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """The objects of a file in order, each with the number of its line, from 1.

    An unfinished last line is ignored; a missing file has none. Raises StoreError, naming the line, for any other line
    that is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            raise StoreError(f"{path}, line {number}: not a line of metrics ({error}); remove that line") from error
        yield number, record


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
