"""A role for the tests of pools; in a module of its own, because Ray workers must be able to import it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pyarrow as pa

from engine.errors import DataError


class Counter:
    """A role that remembers what it was told and can fail in the ways that roles fail."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def learn(self, value: int) -> int:
        self.told.append(value)
        return os.getpid()

    def relearn(self, value: int) -> None:
        self.told.append(value)

    def double(self, table: pa.Table) -> pa.Table:
        return pa.table({"x": [2 * value for value in table["x"].to_pylist()]})

    def recall(self) -> list[int]:
        return self.told

    def refuse(self) -> None:
        raise DataError("row 7 is not a prompt")

    def stumble(self) -> None:
        raise KeyError("row 7")

    def die_once(self, marker: str) -> str:
        """Kill this process the first time, wherever it is; answer the second time."""
        if Path(marker).exists():
            return "alive"
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, marker: str) -> str:
        if Path(marker).exists():
            return "answered"
        Path(marker).touch()
        threading.Event().wait()
        raise AssertionError("unreachable")

    def rendezvous(self) -> tuple[str, int]:
        return "here", 1

    def join(self, host: str, port: int, timeout_s: float) -> None:
        pass
