"""Durable writes, and the lock that keeps a second driver out of a run folder.

A file appears complete or not at all: temporary name, write, fsync, rename, fsync of the folder. Every file operation
calls `before(operation, path)` first, so that a test can fail or kill the process at each of them.

The kernel's lock on a file (flock) decides who owns the folder, so it ends with the owner's process in every case; the
content of the file only names the owner for people. Network file systems without flock are not protected.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunLockedError, StoreError

TEMPORARY = ".tmp"
"""Suffix of names that readers ignore; a driver that opens the folder removes them."""


def _nothing(operation: str, path: Path) -> None:
    pass


class Disk:
    """Durable file operations. `before(operation, path)` is called ahead of each one."""

    def __init__(self, before: Callable[[str, Path], None] = _nothing):
        self._before = before

    def write(self, path: Path, data: bytes) -> str:
        """Write `data` to `path`, durably and completely or not at all; return its sha256 in hex."""
        part = path.with_name(path.name + TEMPORARY)
        with self._named_errors(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._before("write", part)
            with part.open("wb") as file:
                file.write(data)
                self._before("fsync", part)
                file.flush()
                os.fsync(file.fileno())
            self._rename(part, path)
        return hashlib.sha256(data).hexdigest()

    def append(self, path: Path, line: str) -> None:
        """Add one line to a log, durably. A crash leaves at most one incomplete line, the last one."""
        data = line.encode() + b"\n"
        with self._named_errors(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._before("append", path)
            with path.open("ab") as file:
                file.write(data)
                self._before("fsync", path)
                file.flush()
                os.fsync(file.fileno())
            self.sync_folder(path.parent)

    def publish(self, part: Path, path: Path) -> None:
        """Make the finished folder `part` visible as `path`: fsync every file and folder in it, then rename."""
        with self._named_errors(path, None):
            for file in sorted(part.rglob("*")):
                self._before("fsync", file)
                sync(file)
            self.sync_folder(part)
            self._rename(part, path)

    def remove(self, path: Path) -> None:
        """Delete a file or a folder to which nothing refers any more; does nothing if it is missing."""
        self._before("remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        self._before("fsync_folder", folder)
        sync(folder)

    def _rename(self, part: Path, path: Path) -> None:
        self._before("rename", path)
        part.replace(path)
        self.sync_folder(path.parent)

    @contextmanager
    def _named_errors(self, path: Path, size: int | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            amount = "" if size is None else f" ({size:,} bytes)"
            raise StoreError(
                f"cannot write {path}{amount}: {error.strerror or error}. What was committed before is intact; "
                f"free or repair the disk and run the same command again"
            ) from error


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8, durably and all at once, as Disk.write does. Raises StoreError."""
    Disk().write(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """sha256 of a file's content in hex; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        """Release the folder; may be called more than once."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def owner_of(folder: Path) -> str | None:
    """The owner of the folder's lock, in words; None if it is free. Does not take the lock."""
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
