"""One driver per run folder.

The kernel's lock on a file decides, so that it ends with its owner however that owner died; the
file's content only tells people who the owner is. Network file systems without flock are not
covered: put runs on one that has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from engine.errors import RunLockedError


class RunLock:
    """Exclusive ownership of `folder`, from construction to `release()` or the end of the process."""

    def __init__(self, folder: Path):
        path = folder / "LOCK"
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RunLockedError(f"{folder} is in use by {_owner(path)}; wait for it or stop it") from error
        self._file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self._file.write(json.dumps(owner))
        self._file.flush()

    def release(self) -> None:
        """Give the folder back; calling it twice is fine."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def owner_of(folder: Path) -> str | None:
    """Who holds the folder's lock, in words; None if it is free. Takes nothing."""
    path = folder / "LOCK"
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _owner(path)
    return None


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        age = max(0, int(time.time() - owner["since"]))
        return f"process {owner['pid']} on {owner['host']}, for {age} s"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
