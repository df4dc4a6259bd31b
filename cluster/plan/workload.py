"""The work of each stage of a config, in units that its time grows with, and which stages overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.plan import estimates
from engine.config.run import RoleName, RunConfig
from engine.loop.stages import NullModel

OVERLAPPING: dict[str, str] = {
    **dict.fromkeys(
        ("completions", "start_completions", "scores", "previous_scores", "null_model", "selected", "ref_logps",
         "agreement"), "training"
    ),
    **dict.fromkeys(("validation_rows", "validation_ref_logps"), "validation rows"),
    **dict.fromkeys(("heldout_completions", "heldout_win_rates"), "heldout"),
}  # fmt: skip
"""{stage: the group of stages that its shards pass one after the other}; any other stage is a group of its own."""


@dataclass(frozen=True)
class Load:
    """The work of one stage in one iteration."""

    amount: float
    role: RoleName | None
    """Whose replicas share it; None: the driver."""


def workload(config: RunConfig, t: int, prompts: int) -> dict[str, Load]:
    """{stage: its work} in iteration `t`, counted from 0, with `prompts` prompts; without benchmarks."""
    k, algorithm, learner = config.sampling.num_samples, config.algorithm, config.learner
    stages = algorithm.stages(t)
    answers = k * max(1, ("completions" in stages) + ("start_completions" in stages))
    verdicts = float(estimates.num_verdicts(config, prompts, answers)[0])
    scorer = config.scoring_role
    loads: dict[str, Load] = {
        "completions": Load(prompts * k, "generator"),
        "start_completions": Load(prompts * k, "generator"),
        "scores": Load(verdicts, scorer),
        "previous_scores": Load(verdicts, scorer),
    }
    loads = {stage: load for stage, load in loads.items() if stage in stages}
    loads |= {"selected": Load(prompts, None), "ref_logps": Load(prompts, "learner")}
    if "scores" in stages and config.audits:
        loads["agreement"] = Load(prompts * answers * (answers - 1), config.evaluating_role)
    if "scores" in stages and config.null_model:
        loads["null_model"] = Load(2.0 * prompts * min(1.0, NullModel.num_prompts / config.shard_size), scorer)
    steps = estimates.max_steps(learner, prompts)
    loads["learn"] = Load(steps * learner.batch_size, "learner")
    if config.preferences:
        loads["validation"] = Load(steps // learner.evaluate_every if learner.evaluate_every else 1, "learner")
    return loads | _heldout(config, t + 1)


def _heldout(config: RunConfig, version: int) -> dict[str, Load]:
    """The stages of one version's evaluation on held-out prompts."""
    evaluation = config.evaluation
    if evaluation is None or evaluation.prompts is None:
        return {}
    prompts, m = estimates.count_prompts(evaluation.prompts) or 1, evaluation.num_samples
    opponents = version if evaluation.ladder else min(version, 2)
    loads = {
        "heldout_completions": Load(prompts * m, "generator"),
        "heldout_win_rates": Load(prompts * m**2 * opponents, config.evaluating_role),
    }
    return loads | ({"heldout_start_logps": Load(prompts * m, "generator")} if config.measures_kl else {})


def replicas(config: RunConfig, role: RoleName | None) -> float:
    """The processes among which the role divides its shards, or the learner its rows; 1 for the driver."""
    if role == "learner":
        return float(config.learner.num_ranks)
    section = config.pools.get(role) if role else None
    return float(section.num_replicas) if section else 1.0


def benchmark_of(stage: str, config: RunConfig) -> str | None:
    """The benchmark of this config to which a stage belongs."""
    return next((name for name in benchmark_names(config) if stage.startswith(f"{name}_")), None)


def benchmark_names(config: RunConfig) -> list[str]:
    """The keys of `evaluation.benchmarks` that are set."""
    benchmarks = config.benchmarks
    return [name for name in type(benchmarks).model_fields if getattr(benchmarks, name) is not None]


def elapsed(busy: Mapping[str, float], config: RunConfig) -> float:
    """Seconds that an iteration takes whose stages are busy for so long.

    Stages of one group overlap where each role has resources of its own, so that the slowest counts, and follow one
    another where roles share them. Groups follow one another.
    """
    groups: dict[str, list[float]] = {}
    for stage, seconds in busy.items():
        group = OVERLAPPING.get(stage) or benchmark_of(stage, config) or stage
        groups.setdefault(group, []).append(seconds)
    overlap = config.cluster.placement == "disaggregated" and config.cluster.backend == "ray"
    return sum(map(max if overlap else sum, groups.values()))
