"""Published benchmarks: their input, their numbers and their files. `benchmarks` lists those of a run."""

from engine.benchmarks.base import Benchmark
from engine.config.run import RunConfig


def benchmarks(config: RunConfig) -> list[Benchmark]:
    """The benchmarks that `evaluation.benchmarks` names."""
    return []
