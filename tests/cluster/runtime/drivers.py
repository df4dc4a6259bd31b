"""Drivers in processes of their own, as users start them, and all their descendants.

Every descendant inherits the driver's environment, Ray's processes and actors included, so a variable in it
marks this test's processes among all others on the machine, even after their parent has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.store import manifest

ROOT = Path(__file__).parents[3]
MARK = "KUMITE_TEST_OWNER"
LONGEST_WAIT_S = 240.0
"""Longest wait for an event; far longer than it takes."""


class Driver:
    """`recipes/sppo.py` (or another command) in a process group of its own, its output in a file."""

    def __init__(self, log: Path, *command: str, **environment: str):
        self.mark, self._log = uuid.uuid4().hex, log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        return self.process.wait(LONGEST_WAIT_S)

    def kill(self) -> None:
        """SIGKILL for the driver alone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(LONGEST_WAIT_S)

    def descendants(self) -> list[int]:
        """Living processes that descend from the driver, itself included."""
        return processes_with(f"{MARK}={self.mark}")

    def end(self) -> None:
        """End all processes that are left."""
        for pid in self.descendants():
            _kill(pid)
        if self.process.poll() is None:
            self.process.wait(LONGEST_WAIT_S)


@contextmanager
def sppo(log: Path, *arguments: str, **environment: str) -> Iterator[Driver]:
    """`python recipes/sppo.py ARGUMENTS`, ended at the latest with the block."""
    with running(log, sys.executable, "recipes/sppo.py", *arguments, **environment) as driver:
        yield driver


@contextmanager
def running(log: Path, *command: str, **environment: str) -> Iterator[Driver]:
    driver = Driver(log, *command, **environment)
    try:
        yield driver
    finally:
        driver.end()


def until(condition: Callable[[], Any], what: str, alive: Callable[[], bool] = lambda: True) -> Any:
    """Wait until `condition()` is true and return its value; AssertionError if it stays false, or `alive()` ends."""
    end, pause = time.monotonic() + LONGEST_WAIT_S, threading.Event()
    while not (value := condition()):
        assert alive(), f"ended before {what}"
        assert time.monotonic() < end, f"no sign of {what} within {LONGEST_WAIT_S:g} s"
        pause.wait(0.02)
    return value


def committed(run: Path, **values: Any) -> list[manifest.Record]:
    """Records of the run's manifest that have these values, read while a driver writes it."""
    records, _ = manifest.read(run / "manifest.jsonl")
    return [r for r in records if all(r.get(key) == value for key, value in values.items())]


def processes_with(entry: str) -> list[int]:
    """Processes whose environment holds `NAME=value`; zombies hold none."""
    pids = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if entry.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    pids.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile, or another user's
    return pids


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
