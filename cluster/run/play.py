"""Plays a run from its config to its report, and turns errors into exit codes.

No heavy library is imported before the run begins.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actors.factories import Engines
from engine.config.run import RunConfig
from engine.errors import KumiteError
from engine.text import printable

if TYPE_CHECKING:
    from engine.store.run import RunStore

Prepare = Callable[["RunStore"], None]


def run(
    config: RunConfig,
    console: Console,
    engines: Engines | None = None,
    prepare: Prepare = lambda store: None,
    prediction: dict[str, Any] | None = None,
) -> int:
    """Run or resume `config`.

    prepare: called with the store when prompts and start policy are committed. prediction: of its time and money, to
    be compared with what it takes.
    """
    import pyarrow

    from cluster.run.job import Job

    # While pyarrow reads or computes it handles SIGINT and SIGTERM itself, and loses a signal that comes as it ends.
    pyarrow.enable_signal_handlers(False)
    signal.signal(signal.SIGTERM, interrupt)
    with Job(config, console, engines=engines) as job:
        try:
            job.play(prepare, prediction)
        except (KumiteError, KeyboardInterrupt) as stop:
            reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else stop
            job.report(f"stopped: {reason}")
            raise
        job.show()
    return 0


def reported(console: Console, command: Callable[[], int]) -> int:
    """The exit code of `command`; an error that it raises is printed and becomes its exit code."""
    try:
        return command()
    except KumiteError as error:
        console.print(
            f"error: {printable(str(error))}", markup=False, highlight=False, soft_wrap=True, style="bold red"
        )
        return error.exit_code
    except KeyboardInterrupt as stop:
        console.print("stopped; the same command continues from what is committed", markup=False)
        return stop.args[0] if stop.args else 130


def interrupt(number: int, frame: object) -> None:
    """A signal handler that lets a command end in order."""
    raise KeyboardInterrupt(128 + number)
