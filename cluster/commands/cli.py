"""The `kumite` command: inspects run folders, and writes whole models from them.

kumite status RUN         where a run stands
kumite verify RUN         check every hash again
kumite digest RUN         one hash over everything the run computed
kumite merge RUN OUTPUT   the last adapter and its base as one model folder
kumite average RUN OUTPUT [--versions 1-3]   the mean of several versions' weights as one model folder
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine.errors import KumiteError
from engine.store import inspection
from engine.store.disk import owner_of
from engine.text import printable

AVERAGE = """Write a model folder whose weights are the uniform mean of several versions' weights. This is NOT the
mixture of iterates in the theory of SPPO and SPAC: the mixture picks a version at random for each answer, and
the report of a run with held-out prompts states its win rate. The mean of weights is a practical stand-in without any
guarantee; evaluate it before you use it."""


def main(argv: list[str] | None = None) -> int:
    """Return 0, 1 if `verify` finds damage, or 2 if RUN is not a run folder or has nothing to merge or average."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "merge":
            return _merge(arguments.run, arguments.output)
        if arguments.command == "average":
            return _average(arguments.run, arguments.output, *arguments.versions)
        return {"status": _status, "verify": _verify, "digest": _digest}[arguments.command](arguments.run)
    except KumiteError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kumite", description="Inspect run folders, and write whole models from them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("status", "where a run stands"),
        ("verify", "check every hash again"),
        ("digest", "one hash over everything that the run computed, without times and paths"),
    ):
        commands.add_parser(name, help=text).add_argument("run", type=Path, metavar="RUN")
    merge = commands.add_parser("merge", help="write the last adapter and its base as one model folder")
    average = commands.add_parser("average", help="write the mean of versions' weights", description=AVERAGE)
    for command in (merge, average):
        command.add_argument("run", type=Path, metavar="RUN")
        command.add_argument("output", type=Path, metavar="OUTPUT", help="a folder that does not exist yet")
    average.add_argument(
        "--versions", type=_range, default=(1, None), metavar="FIRST-LAST", help="such as 1-3; default: all from 1 on"
    )
    return parser


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of two or more versions, such as 1-3")
    return int(first), int(last)


def _status(run: Path) -> int:
    state = inspection.state(run)
    print(f"{run}: {'finished' if state['finished'] else 'not finished'}")
    for version, digest in sorted(state["weights"].items()):
        print(f"  weights {version}: {digest[:12]}")
    for name, stages in state["stages"].items():
        print(f"  {name}: " + ", ".join(f"{stage} {count} shards" for stage, count in stages.items()))
    for iteration, step in state["checkpoints"].items():
        print(f"  iteration {iteration}: the learner last saved at step {step}")
    owner = owner_of(run)
    print(f"  in use by {owner}" if owner else "  not in use")
    return 0


def _verify(run: Path) -> int:
    damages = inspection.damages(run)
    print(json.dumps({"run": str(run), "damages": damages}, indent=2))
    return 1 if damages else 0


def _digest(run: Path) -> int:
    print(inspection.run_digest(run))
    return 0


def _merge(run: Path, output: Path) -> int:
    from cluster.commands.export import merge_last

    version = merge_last(run, output)
    print(f"{output}: version {version} of {run} as a whole model")
    return 0


def _average(run: Path, output: Path, first: int, last: int | None) -> int:
    from cluster.commands.export import average_versions

    versions = average_versions(run, output, first, last)
    print(f"{output}: the mean of the weights of versions {versions[0]} to {versions[-1]} of {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
