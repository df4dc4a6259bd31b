"""The main function of every recipe: read the config, show the plan, run, report.

    config -> plan -> run folder -> prompts -> roles -> self-play -> table and report

No heavy library is imported before the plan is made, so `--help`, `--dry-run` and error messages come at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actors.factories import Engines
from cluster.plan.plan import make_plan
from cluster.run.play import reported, run
from engine.config.keys import describe, describe_most_used
from engine.config.load import load
from engine.config.run import RunConfig
from engine.metrics.services import check_installed

if TYPE_CHECKING:
    from cluster.plan.cost import Prediction
    from cluster.plan.rates import Rates

WIDTH = 160
"""Columns of the output if it is no terminal: wide enough for the tables in a job's log."""


def main(base: dict[str, Any], description: str, argv: list[str] | None = None, engines: Engines | None = None) -> int:
    """Run a recipe with the values `base` of its own; return the exit code of the process.

    0: finished, or a dry run whose plan fits; 1: the run failed; 2: config, plan or input is wrong; 130: interrupted;
    143: terminated. After the last two the same command resumes the run.
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    arguments, overrides = _parser(base, description).parse_known_args(argv)
    if arguments.help_all:
        print(describe(), end="")
        return 0
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # Python rules given by dotted path are searched in the current folder

    def start() -> int:
        config = load(arguments.config, overrides, base)
        check_installed(config.tracking.report_to)
        plan = make_plan(config, config.cluster.stated if arguments.dry_run else None)
        console.print("\n".join(plan.lines), markup=False, highlight=False, soft_wrap=True)
        plan.check()
        prediction = _predict(config, arguments, console, engines)
        if arguments.dry_run:
            console.print("dry run: nothing was started", markup=False)
            return 0
        return run(config, console, engines, prediction=prediction.record() if prediction else None)

    return reported(console, start)


@contextmanager
def rates_of(
    config: RunConfig, arguments: argparse.Namespace, console: Console, engines: Engines | None = None
) -> Iterator[Rates | None]:
    """The rates that --rates names or --calibrate measures; None without them."""
    from cluster.commands.calibrate import calibrated
    from cluster.plan.rates import read_rates

    if arguments.calibrate:
        with calibrated(config, console, engines) as rates:
            yield rates
    else:
        yield read_rates(arguments.rates) if arguments.rates else None


def _predict(
    config: RunConfig, arguments: argparse.Namespace, console: Console, engines: Engines | None
) -> Prediction | None:
    """Print how long the run will take, if rates are named or asked to be measured."""
    from cluster.plan.cost import predict

    with rates_of(config, arguments, console, engines) as rates:
        if rates is None:
            return None
        prediction = predict(config, rates)
    for number, line in enumerate(prediction.lines()):
        console.print(f"{'time' if not number else '':<11}{line}", markup=False, highlight=False, soft_wrap=True)
    return prediction


def _parser(base: dict[str, Any], description: str) -> argparse.ArgumentParser:
    keys = describe_most_used(base.get("algorithm", {}).get("name"))
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"the most used keys (key=value, later wins), defaults, meanings:\n{keys}--help-all lists every key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--config FILE] [--dry-run] [--rates RUN | --calibrate] [--help-all] [key.path=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action="store_true", help="list every key with its range, default and meaning")
    parser.add_argument("--config", type=Path, help="YAML file; may inherit from others with `defaults:`")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the plan, start nothing")
    add_rates(parser)
    return parser


def add_rates(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rates_of`."""
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--rates", type=Path, metavar="RUN", help="predict time and cost by what this run measured")
    rates.add_argument("--calibrate", action="store_true", help="predict them by playing a small part first")
