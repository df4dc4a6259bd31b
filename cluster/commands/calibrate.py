"""Measures the rates of a config by playing a small part of it with the real engines."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from actors.factories import Engines
from cluster.plan.machines import nearest_folder
from cluster.plan.rates import Rates, read_rates
from engine.config.evaluation import GateConfig
from engine.config.run import RunConfig, TrackingConfig

ITERATIONS = 2
"""The first starts the engines, the second does not."""
SHARDS = 2
"""Prompt shards per iteration."""


@contextmanager
def calibrated(config: RunConfig, console: Console, engines: Engines | None = None) -> Iterator[Rates]:
    """The rates of `config`, from a run of two iterations over two shards of its prompts in a folder that is removed.

    Held-out prompts are as many as in the run, up to two shards. Benchmarks are left out. A remote judge is asked, and
    paid, for these prompts.
    """
    from cluster.run.job import Job

    with tempfile.TemporaryDirectory(prefix="calibration-", dir=nearest_folder(Path(config.output))) as folder:
        console.print("calibration: two iterations over a few prompts", markup=False)
        with Job(small(config, Path(folder)), Console(quiet=True), engines=engines) as job:
            job.play()
        yield read_rates(job.folder, f"a calibration with {config.shard_size * SHARDS:,} prompts")


def small(config: RunConfig, output: Path) -> RunConfig:
    """The part of `config` that is played."""
    limit = SHARDS * config.shard_size
    prompts = config.prompts.model_copy(
        update={"limit": ITERATIONS * limit if config.prompts.use == "parts" else limit, "source": _first(config)}
    )
    evaluation = config.evaluation
    if evaluation and evaluation.prompts:
        heldout = evaluation.prompts.model_copy(update={"limit": min(limit, evaluation.prompts.limit or limit)})
        evaluation = evaluation.model_copy(update={"prompts": heldout, "benchmarks": None, "gate": GateConfig()})
    return config.model_copy(
        update={
            "name": "calibration",
            "output": str(output),
            "iterations": ITERATIONS,
            "prompts": prompts,
            "evaluation": evaluation,
            "tracking": TrackingConfig(),
        }
    )


def _first(config: RunConfig) -> str:
    source = config.prompts.source
    return source[0] if isinstance(source, list) else source
