"""What a command of `kumite` is: its name, its arguments, what it does."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Command(ABC):
    """One command. Heavy libraries are imported in `run`, so that `kumite --help` answers at once."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `kumite --help`."""
    description: ClassVar[str | None] = None
    """For `kumite NAME --help`; None: the summary."""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code. A KumiteError becomes a message and its exit code."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument RUN, a run folder."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
