"""The `kumite` command. Each of its commands is a class; COMMANDS lists them."""

from __future__ import annotations

import argparse
import sys

from cluster.commands.best import Best
from cluster.commands.command import Command
from cluster.commands.evaluate import Evaluate
from cluster.commands.export import Export
from cluster.commands.inspect import Digest, Status, Verify
from cluster.commands.merge import Average, Merge
from cluster.commands.publish import Publish
from cluster.commands.report import Report
from engine.errors import KumiteError
from engine.text import printable

COMMANDS: tuple[type[Command], ...] = (Status, Best, Report, Evaluate, Verify, Digest, Merge, Average, Export, Publish)


def main(argv: list[str] | None = None) -> int:
    """Return the command's exit code: 0; 1 for damage that `verify` finds or a benchmark that failed; 2 for what cannot
    be done; 130 after Ctrl-C."""
    arguments = _parse(argv)
    try:
        return arguments.command.run(arguments)
    except KumiteError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. A command with a list `arguments` also gets those that follow an option: argparse itself reads
    the list only up to the first option."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    if more and (any(word.startswith("-") for word in more) or not hasattr(arguments, "arguments")):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        arguments.arguments += more
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kumite", description="What is done with finished and unfinished runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for kind in COMMANDS:
        command = kind()
        subparser = commands.add_parser(
            command.name, help=command.summary, description=command.description or command.summary
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
