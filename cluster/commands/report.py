"""kumite report: the page of one run, again or while it goes on, or one page that compares several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.commands.command import Command
from engine.errors import StoreError

SECONDS = 10


class Report(Command):
    name = "report"
    summary = "write the page of a run again"
    description = """Of one run, write RUN/report from the run folder, which is only read; the run may still be in
progress."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
        parser.add_argument("--live", action="store_true", help="write the page of one run again until it ends")
        parser.add_argument(
            "--every", type=int, default=SECONDS, metavar="SECONDS", help=f"with --live; default {SECONDS}"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        for run in arguments.runs:
            print(_live(run, arguments.every) if arguments.live else _write(run))
        return 0


def _write(run: Path) -> Path:
    from engine.report.render import write_report
    from engine.report.run_data import read_run

    return write_report(read_run(run))


def _live(run: Path, seconds: int) -> Path:
    """Until the run ends or the user does."""
    from engine.report.live import watch

    if seconds < 1:
        raise StoreError(f"--every = {seconds}: expected at least 1 second")
    print(f"open {run / 'report/index.html'}; Ctrl-C ends", flush=True)
    try:
        return watch(run, seconds)
    except KeyboardInterrupt:
        return _write(run)
