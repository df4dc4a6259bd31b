"""The report of a run that goes on: written again and again, in a page that loads itself again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.config.run import RunConfig
from engine.errors import KumiteError
from engine.metrics.trackers import Kind
from engine.report.render import write_report
from engine.report.run_data import RunData, read_run
from engine.store.reader import RunReader

RELOAD_SECONDS = 20
"""The page of a run that writes its own report loads itself again this often."""


class LiveReport:
    """Writes a run's report after each of its iterations, in the run's own process. A tracker."""

    def __init__(self, store: RunReader, config: RunConfig, note: Callable[[str], None]) -> None:
        self._store, self._config, self._note = store, config, note

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        if kind != "iteration":
            return
        try:
            write_report(RunData(self._store, self._config, "running"), RELOAD_SECONDS)
        except (KumiteError, OSError) as error:  # a page is never worth a run
            self._note(f"warning: the report was not written: {error}")

    def close(self) -> None:
        """Nothing to do: the last report is written when the run ends."""


def watch(folder: Path, seconds: int, wait: Callable[[float], None] = time.sleep) -> Path:
    """Write the report of the run in `folder` every `seconds` until it is no longer running; return the page."""
    while (data := read_run(folder)).status == "running":
        write_report(data, reload_seconds=seconds)
        wait(seconds)
    return write_report(data)
