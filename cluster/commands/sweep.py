"""The main function of recipes/sweep.py: read the sweep, check and plan every run, play them, compare them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from cluster.commands.train import WIDTH, reported
from cluster.plan.plan import make_plan
from cluster.sweep.grid import Sweep, read_sweep
from engine.errors import PlanError


def main(description: str, argv: list[str] | None = None) -> int:
    """Return 0 if every run finished, 1 if one failed, 2 if the sweep, a config or the plan is wrong."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="the keys that are varied, and their values")
    parser.add_argument("--config", type=Path, required=True, help="YAML file that all runs share")
    parser.add_argument("--dry-run", action="store_true", help="check every run, show the plan, start nothing")
    arguments, overrides = parser.parse_known_args(argv)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # Python rules given by dotted path are searched in the current folder
    return reported(console, lambda: _sweep(arguments, overrides, console))


def _sweep(arguments: argparse.Namespace, overrides: list[str], console: Console) -> int:
    sweep = read_sweep(arguments.sweep, arguments.config, overrides)
    _check_plans(sweep, console, arguments.dry_run)
    if arguments.dry_run:
        console.print("dry run: nothing was started", markup=False)
        return 0
    from cluster.sweep.runner import Runner
    from cluster.sweep.table import write_table

    outcomes = Runner(sweep, console).play()
    write_table(sweep, outcomes, console)
    return 1 if any(outcome.exit_code for outcome in outcomes) else 0


def _check_plans(sweep: Sweep, console: Console, dry_run: bool) -> None:
    """Print the plan of the first run and the names of all. Raises PlanError with the problems of every plan."""
    problems: list[str] = []
    for number, run in enumerate(sweep.runs):
        plan = make_plan(run.config, run.config.cluster.stated if dry_run else None)
        if not number:
            console.print("\n".join(plan.lines), markup=False, highlight=False, soft_wrap=True)
        problems += [f"{run.name}: {problem}" for problem in plan.problems]
    for run in sweep.runs:
        values = ", ".join(f"{key} = {value}" for key, value in run.values.items())
        console.print(f"run        {run.name}: {values}", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {problem}" for problem in problems))
