"""Published benchmarks: their input, their numbers and their files. `benchmarks` lists those of a run."""

from engine.benchmarks.alpaca_eval.benchmark import AlpacaEval
from engine.benchmarks.base import Benchmark
from engine.benchmarks.harness.benchmark import Harness
from engine.benchmarks.ifeval.benchmark import IFEval
from engine.benchmarks.mt_bench.benchmark import MTBench
from engine.benchmarks.reward_bench.benchmark import RewardBench
from engine.benchmarks.side_by_side.benchmark import SideBySide
from engine.config.run import Setup


def benchmarks(config: Setup) -> list[Benchmark]:
    """The benchmarks that `evaluation.benchmarks` names."""
    sections = config.benchmarks
    found: list[Benchmark] = []
    if sections.alpaca_eval:
        found.append(AlpacaEval(sections.alpaca_eval, config.annotating_role, config.seed, config.shard_size))
    if sections.mt_bench:
        found.append(MTBench(sections.mt_bench, config.annotating_role, config.seed))
    if sections.reward_bench:
        found.append(RewardBench(sections.reward_bench, config.annotating_role, config.shard_size))
    if sections.lm_eval:
        found.append(Harness(sections.lm_eval, config.shard_size))
    if sections.ifeval:
        found.append(IFEval(sections.ifeval, config.shard_size))
    if sections.side_by_side:
        role = config.annotating_role if config.annotates else None
        found.append(SideBySide(sections.side_by_side, role, config.seed, config.shard_size))
    return found
