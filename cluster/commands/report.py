"""kumite report: the page of one run, again or while it goes on, or one page that compares several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.commands.command import Command
from engine.errors import StoreError

SECONDS = 10


class Report(Command):
    name = "report"
    summary = "write the page of a run again, or one page that compares several runs"
    description = """Of one run, write RUN/report from the run folder, which is only read; the run may still be in
progress. Of several runs, write one page that compares them. docs/report.md explains the pages."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page that compares several runs")
        parser.add_argument("--live", action="store_true", help="write the page of one run again until it ends")
        parser.add_argument(
            "--every", type=int, default=SECONDS, metavar="SECONDS", help=f"with --live; default {SECONDS}"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        runs, output = arguments.runs, arguments.output
        if len(runs) == 1 and output is None:
            print(_live(runs[0], arguments.every) if arguments.live else _write(runs[0]))
            return 0
        if arguments.live:
            raise StoreError("--live is for the page of one run; leave out --output and name one RUN")
        if output is None:
            raise StoreError(f"name the page that compares the {len(runs)} runs: --output FILE")
        from engine.report.compare_page import write_comparison
        from engine.report.run_data import read_run

        print(write_comparison([read_run(run) for run in runs], output))
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
