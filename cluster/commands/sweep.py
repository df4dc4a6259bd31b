"""The main function of recipes/sweep.py: read the sweep, check and plan every run, play them, compare them."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from cluster.commands.train import WIDTH, add_rates, rates_of
from cluster.plan.cost import Prediction
from cluster.plan.machines import machines
from cluster.plan.plan import make_plan
from cluster.run.play import interrupt, reported
from cluster.sweep.grid import Sweep, read_sweep
from engine.errors import PlanError
from engine.metrics.progress import duration
from engine.metrics.services import check_installed


def main(description: str, argv: list[str] | None = None) -> int:
    """Return 0 if every run finished, 1 if one failed, 2 if the sweep, a config or the plan is wrong."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="the keys that are varied, and their values")
    parser.add_argument("--config", type=Path, required=True, help="YAML file that all runs share")
    parser.add_argument("--dry-run", action="store_true", help="check every run, show the plan, start nothing")
    add_rates(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # Python rules given by dotted path are searched in the current folder
    return reported(console, lambda: _sweep(arguments, overrides, console))


def _sweep(arguments: argparse.Namespace, overrides: list[str], console: Console) -> int:
    sweep = read_sweep(arguments.sweep, arguments.config, overrides)
    _check_plans(sweep, console, arguments.dry_run)
    predictions = _predict(sweep, arguments, console)
    if arguments.dry_run:
        console.print("dry run: nothing was started", markup=False)
        return 0
    from cluster.sweep.runner import Runner
    from cluster.sweep.table import write_table

    signal.signal(signal.SIGTERM, interrupt)
    outcomes = Runner(sweep, console, predictions).play()
    write_table(sweep, outcomes, console)
    return 1 if any(outcome.exit_code for outcome in outcomes) else 0


def _check_plans(sweep: Sweep, console: Console, dry_run: bool) -> None:
    """Print the plan of the first run and the names of all. Raises PlanError with the problems of every plan."""
    problems: list[str] = []
    for number, run in enumerate(sweep.runs):
        check_installed(run.config.tracking.report_to)
        plan = make_plan(run.config, run.config.cluster.stated if dry_run else None)
        if not number:
            console.print("\n".join(plan.lines), markup=False, highlight=False, soft_wrap=True)
        problems += [f"{run.name}: {problem}" for problem in plan.problems]
    for run in sweep.runs:
        values = ", ".join(f"{key} = {value}" for key, value in run.values.items())
        console.print(f"run        {run.name}: {values}", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _predict(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> dict[str, Prediction]:
    """Print the time and money of every run and of all; nothing unless rates are given or asked for."""
    from cluster.plan.cost import predict
    from cluster.sweep.runner import num_parallel

    first = sweep.runs[0].config
    with rates_of(first, arguments, console) as rates:
        if rates is None:
            return {}
        predictions = {run.name: predict(run.config, rates) for run in sweep.runs}
    resources = machines(first, first.cluster.stated if arguments.dry_run else None).resources() or {}
    parallel = min(len(sweep.runs), num_parallel(sweep, resources))
    seconds = sum(p.seconds for p in predictions.values())
    longest = max(p.seconds for p in predictions.values())
    lines = [f"{name}: {duration(p.seconds)}" for name, p in predictions.items()]
    at_a_time = f"{parallel} at a time" if resources else "one at a time, as the cluster's resources are not known here"
    lines.append(f"all: {duration(max(longest, seconds / parallel))} with {at_a_time}, by {rates.source}; "
                 f"less, because runs adopt from one another what they would compute alike")  # fmt: skip
    if first.cluster.cost_per_hour is not None:
        cost = first.cluster.cost_per_hour * max(longest, seconds / parallel) / 3600.0
        lines.append(f"cost of all: {cost:,.2f} at cluster.cost_per_hour")
    if usd := sum(sum(p.judges.values()) for p in predictions.values()):
        lines.append(f"remote judges of all: {usd:,.2f} USD")
    for number, line in enumerate(lines):
        console.print(f"{'time' if not number else '':<11}{line}", markup=False, highlight=False, soft_wrap=True)
    return predictions
