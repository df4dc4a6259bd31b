"""A role for the tests of pools; in a module of its own, because Ray workers must be able to import it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pyarrow as pa

from engine.errors import DataError


class Counter:
    """A role that keeps the values it gets and can fail in all the ways that roles fail."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def learn(self, value: int) -> int:
        self.values.append(value)
        return os.getpid()

    def relearn(self, value: int) -> None:
        self.values.append(value)

    def double(self, table: pa.Table) -> pa.Table:
        return pa.table({"x": [2 * value for value in table["x"].to_pylist()]})

    def recall(self) -> list[int]:
        return self.values

    def refuse(self) -> None:
        raise DataError("row 7 is not a prompt")

    def stumble(self) -> None:
        raise KeyError("row 7")

    def die_once(self, marker: str) -> str:
        """Kill its own process the first time; answer the second time."""
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
