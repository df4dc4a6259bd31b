"""kumite merge, average: whole models out of a run's versions."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.commands.command import Command, add_run


class Merge(Command):
    name = "merge"
    summary = "write the last adapter and its base as one model folder"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)
        _add_output(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        from cluster.run.whole_models import merge_last

        version = merge_last(arguments.run, arguments.output)
        print(f"{arguments.output}: version {version} of {arguments.run} as a whole model")
        return 0


class Average(Command):
    name = "average"
    summary = "write the mean of versions' weights as one model folder"
    description = """Write a model folder whose weights are the uniform mean of several versions' weights. This is NOT
the mixture of iterates in the theory of SPPO and SPAC: the mixture picks a version at random for each answer, and the
report of a run with held-out prompts states its win rate. The mean of weights is a practical stand-in without any
guarantee; evaluate it before you use it."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)
        _add_output(parser)
        parser.add_argument(
            "--versions",
            type=_range,
            default=(1, None),
            metavar="FIRST-LAST",
            help="such as 1-3; default: all from 1 on",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        from cluster.run.whole_models import average_versions

        versions = average_versions(arguments.run, arguments.output, *arguments.versions)
        of = f"versions {versions[0]} to {versions[-1]} of {arguments.run}"
        print(f"{arguments.output}: the mean of the weights of {of}")
        return 0


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder that does not exist yet")


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of two or more versions, such as 1-3")
    return int(first), int(last)
