"""kumite export: a run's preferences, its model or its adapter as folders that other tools open."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.commands.command import Command, add_run
from engine.algorithms.preference import ESTIMATORS


class Export(Command):
    name = "export"
    summary = "write preferences, model or adapter with their cards, to use elsewhere or to publish"
    description = """Write folders that other tools open as they are: a preference set for datasets.load_dataset and
TRL, a model for transformers and vLLM, an adapter for PEFT. Each has a card whose numbers come from the run's tables.
The run is only read and may still be in progress. Nothing is uploaded; that is `kumite publish`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)
        parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder that does not exist yet")
        parser.add_argument(
            "--what",
            choices=("all", "preferences", "model", "adapter"),
            default="all",
            help="model: a whole one, an adapter merged into its base; all (default): preferences/ and what a version "
            "is, model/ or adapter/",
        )
        parser.add_argument(
            "--version", type=_version, default="best", help="number of the version, best (default) or last"
        )
        parser.add_argument(
            "--iterations",
            type=_iterations,
            metavar="FIRST-LAST",
            help="of the preferences; default: all complete ones",
        )
        parser.add_argument(
            "--estimator", choices=tuple(ESTIMATORS), help="how `probability` is read; default: as the run did"
        )
        parser.add_argument("--base", metavar="ID", help="hub id of the start model, where the run names a folder")
        parser.add_argument(
            "--repo", metavar="ID", help="hub id to publish under, e.g. me/mine-iter{version}, for links to siblings"
        )
        parser.add_argument("--license", metavar="ID", help="as the hub names it, e.g. apache-2.0")
        parser.add_argument("--language", action="append", default=[], metavar="CODE", help="e.g. en; may be repeated")

        parser.add_argument(
            "--evaluation",
            action="append",
            default=[],
            type=Path,
            metavar="FOLDER",
            help="folder of `kumite eval` whose results of this run's versions the card shows too; may be repeated",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        from cluster.products.cards import Statement
        from cluster.products.export import export

        languages, evaluations = tuple(arguments.language), tuple(arguments.evaluation)
        statement = Statement(arguments.repo, arguments.base, arguments.license, languages, evaluations)
        selection = arguments.version, arguments.iterations, arguments.estimator
        for line in export(arguments.run, arguments.output, arguments.what, statement, *selection):
            print(line)
        return 0


def _version(text: str) -> str:
    if text not in ("best", "last") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor best nor last")
    return text


def _iterations(text: str) -> range:
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of iterations, such as 1-3 or 2")
    return range(int(first), int(last) + 1)
