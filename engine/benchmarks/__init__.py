"""Published benchmarks: their input, their numbers and their files. `benchmarks` lists those of a run."""

from engine.benchmarks.base import Benchmark
from engine.config.run import Setup


def benchmarks(config: Setup) -> list[Benchmark]:
    """The benchmarks that `evaluation.benchmarks` names."""
    return []
