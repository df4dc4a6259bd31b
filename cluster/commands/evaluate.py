"""kumite eval: published benchmarks on run versions, model folders, adapters, hub ids or files of answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.command import Command
from engine.config.evaluate import EvaluateConfig
from engine.config.load import load_as
from engine.config.run import Setup
from engine.errors import ConfigError

if TYPE_CHECKING:
    from actors.factories import Engines


class Evaluate(Command):
    name = "eval"
    summary = "run benchmarks on versions of a run, models, adapters or files of answers"
    description = """Run the benchmarks of `evaluation.benchmarks`. POLICY is a run folder (RUN, RUN@2, RUN@1,3 or
RUN@best), a model folder, a PEFT adapter, a hub id, or a JSON file of answers; none for a benchmark of the annotator,
as reward_bench. Each is evaluated in a folder of its own
under output/name; the same command continues what was interrupted. docs/evaluation.md describes the benchmarks."""

    def __init__(self, engines: Engines | None = None):
        """engines: the classes of the roles; None: the real ones."""
        self._engines = engines

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config", type=Path, help="YAML file with the section `evaluation`")
        parser.add_argument("arguments", nargs="*", metavar="POLICY | key=value")

    def run(self, arguments: argparse.Namespace) -> int:
        """Return 1 if a benchmark failed."""
        from rich.console import Console

        from cluster.evaluation.candidates import NO_MODEL, Source, read_sources, scorer_alone
        from cluster.evaluation.evaluation import Evaluation
        from cluster.evaluation.results import write_results
        from engine.benchmarks import benchmarks

        policies = [argument for argument in arguments.arguments if "=" not in argument]
        overrides = [argument for argument in arguments.arguments if "=" in argument]
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)  # Python rules given by dotted path are searched in the current folder

        def config(source: Source) -> EvaluateConfig:
            return load_as(EvaluateConfig, arguments.config, overrides, {"name": "evaluation"} | source.config)

        general = load_as(Setup, arguments.config, overrides, {"name": "evaluation"} | NO_MODEL)
        folder = Path(general.output).resolve() / general.name
        found = read_sources(policies, folder) if policies else [scorer_alone()]
        sources = [(source, config(source)) for source in found]
        if not policies and any(benchmark.depends_on_policy for benchmark in benchmarks(sources[0][1])):
            raise ConfigError(["POLICY is missing: name a run folder, a model, an adapter or a file of answers"])
        console = Console(width=None if sys.stdout.isatty() else 160)
        failed: list[str] = []
        done = []
        for source, settings in sources:
            evaluation = Evaluation(source, settings, console, self._engines)
            with evaluation:
                failed += evaluation.run()
            done.append(evaluation)
        write_results(folder, done, console)
        for sentence in failed:
            console.print(f"failed: {sentence}", markup=False, highlight=False, style="bold red")
        return 1 if failed else 0
