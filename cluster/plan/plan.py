"""What a run will ask for, worked out before anything starts: placement, steps, memory, disk.

    machines: what there is    machines, estimates: what the roles need    here: the comparison

Needs neither torch nor a connected cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from actors.scorers.judge.prompt_file import read_judge_prompt
from cluster.plan import estimates
from cluster.plan.machines import ADVICE, GIB, Machines, Need, machines, shortages
from engine.config.judge import JudgeConfig, VLLMServer
from engine.config.run import GeneratorConfig, RoleName, RunConfig, StatedCluster
from engine.config.scorer import ScorerConfig
from engine.errors import PlanError


@dataclass(frozen=True)
class Plan:
    """The plan as people read it, and what speaks against it."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise PlanError if the plan cannot work."""
        if self.problems:
            raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {p}" for p in self.problems) + ADVICE)


def needs(config: RunConfig) -> dict[RoleName, Need]:
    """What every role of this config asks of the cluster."""
    needs = {role: Need(s.num_replicas, s.cpus, s.gpus) for role, s in config.pools.items()}
    learner = config.learner
    return needs | {"learner": Need(learner.num_ranks, learner.cpus, learner.gpus, strategy="PACK")}


def make_plan(config: RunConfig, stated: StatedCluster | None = None) -> Plan:
    """Plan for the stated cluster, else for the one that the run will connect to, else for this machine.

    Raises ConfigError for a judge whose prompt file cannot be used.
    """
    for role, judge in _judges(config).items():
        read_judge_prompt(judge, "scorer.prompt" if role == "scorer" else "evaluation.scorer.prompt")
    there = machines(config, stated)
    parameters = config.model.num_parameters or estimates.count_parameters(config.model.path)
    plan = Plan()
    _place(plan, config, there)
    _work(plan, config)
    _memory(plan, config, there, parameters)
    _disk(plan, config, there, parameters)
    return plan


def _scorers(config: RunConfig) -> dict[RoleName, ScorerConfig]:
    """The scorers by role."""
    scorers: dict[RoleName, ScorerConfig | None] = {"scorer": config.scorer, "evaluator": config.evaluator}
    return {role: scorer for role, scorer in scorers.items() if scorer is not None}


def _judges(config: RunConfig) -> dict[RoleName, JudgeConfig]:
    """The LLM judges among the scorers, by role."""
    return {role: scorer for role, scorer in _scorers(config).items() if isinstance(scorer, JudgeConfig)}


def _place(plan: Plan, config: RunConfig, there: Machines) -> None:
    """Who runs where, and whether that many CPUs and GPUs exist."""
    turns, resources = config.cluster.placement == "colocated", there.resources()
    has = f": {resources['CPU']:g} CPUs, {resources['GPU']:g} GPUs" if resources else ""
    together = "in turns on shared resources" if turns else "side by side"
    if config.cluster.backend == "local":
        together = "one after the other, in this process"
    plan.lines.extend([f"cluster    {there.where}{has}", f"placement  {together}"])
    kinds: dict[RoleName, str] = {"generator": "vllm", "learner": "deepspeed"}
    kinds |= {role: scorer.kind for role, scorer in _scorers(config).items()}
    for role, need in needs(config).items():
        kind = kinds[role]
        kind += ", also the judge" if role == "generator" and config.policy_judges else ""
        many = f"{need.num_replicas} x " if need.num_replicas > 1 else "    "
        plan.lines.append(f"             {many}{role} ({kind}): {need.cpus:g} CPUs, {need.gpus:g} GPUs each")
        if config.cluster.backend == "ray" and there.gpus is not None and 0 < there.gpus < need.gpus:
            plan.problems.append(f"{role}: {need.gpus:g} GPUs wanted on one node, a node has {there.gpus:g}")
    if config.cluster.backend == "ray" and resources:
        plan.problems.extend(shortages(needs(config), turns, resources))


def _work(plan: Plan, config: RunConfig) -> None:
    """Answers, comparisons and optimizer steps."""
    learner = config.learner
    each = estimates.prompts_per_iteration(config)
    prompts = each or 1000
    steps = estimates.max_steps(learner, prompts)
    amounts = ", ".join([*_stage_amounts(config, prompts), f"up to {steps:,} optimizer steps"])
    if each:
        text = (
            f"{config.iterations} iterations x {each:,} prompts: {amounts} each, {config.iterations * steps:,} in all"
        )
    else:
        text = f"unknown until the prompts are read; per 1,000 prompts and iteration: {amounts}"
    batch = f"{learner.num_ranks} ranks x {learner.micro_batch_size} prompts, accumulated to {learner.batch_size}"
    plan.lines.extend([f"work       {text}", f"batch      {batch}"])


def _stage_amounts(config: RunConfig, prompts: int) -> list[str]:
    """What the algorithm's stages amount to in the last iteration, in words; the first may do with fewer stages."""
    stages = config.algorithm.stages(config.iterations - 1)
    k = estimates.answers_per_prompt(config)
    answers = prompts * k
    found = [f"{answers:,} answers"] if "completions" in stages else []
    if "scored" in stages:
        count, word = estimates.num_verdicts(config, prompts, k)
        found.append(f"{count * (2 if 'rescored' in stages else 1):,} {word}")
    return found


def _memory(plan: Plan, config: RunConfig, there: Machines, parameters: float | None) -> None:
    """Weights and states per replica against a GPU, and what has to pass through host memory."""
    if parameters is None:
        plan.lines.append("memory     unknown: the model is not on this machine and model.num_parameters is not set")
        return
    plan.lines.append(f"memory     {_count(parameters)} parameters{_adapters(config)}; weights and states per replica:")
    _generator_memory(plan, config, there, parameters)
    _judge_memory(plan, config, there)
    dtype, learner = config.model.dtype, config.learner
    resting = {
        role: estimates.scorer_bytes(scorer) or 0.0
        for role, scorer in _scorers(config).items()
        if not isinstance(scorer, JudgeConfig)
    }
    trained = estimates.trained_parameters(config, parameters)
    resting["learner"] = estimates.learner_bytes(learner, dtype, parameters, trained or 0.0)
    for role, size in resting.items():
        if not size:
            continue
        gpus, text = needs(config)[role].gpus, f"             {role}: {_size(size)}"
        if gpus and there.gpu_gib:
            room = there.gpu_gib * min(1.0, gpus) * GIB
            text += f" of {_size(room)}" + (f", {_size(room - size)} left for activations" if size <= room else "")
            if size > room:
                plan.problems.append(f"{role}: {_size(size)} per replica, its share of a GPU has {_size(room)}")
        plan.lines.append(text)
    _host_memory(plan, config, there, parameters)


def _adapters(config: RunConfig) -> str:
    """What learns, where it is not the whole model."""
    if config.learner.lora is None:
        return ""
    trained = estimates.trained_parameters(config, None)
    size = _count(trained) if trained else "an unknown number (the model is not on this machine)"
    return f", frozen; adapters of rank {config.learner.lora.rank} train {size}"


def _generator_memory(plan: Plan, config: RunConfig, there: Machines, parameters: float) -> None:
    generator = config.generator
    if "generator" in config.pools:
        served = estimates.trained_parameters(config, None, config.served_rank) if config.served_rank else 0.0
        weights = (parameters + (served or 0.0)) * estimates.BYTES[config.model.dtype] / generator.tensor_parallel_size
        _engine_memory(plan, "generator", generator, generator.gpus, weights, there)


def _judge_memory(plan: Plan, config: RunConfig, there: Machines) -> None:
    for role, judge in _judges(config).items():
        if not isinstance(judge.server, VLLMServer):
            continue
        weights = estimates.scorer_bytes(judge)
        if weights is None:
            plan.lines.append(
                f"             {role}: unknown, its model is not here and server.num_parameters is not set"
            )
        else:
            _engine_memory(plan, role, judge.server, judge.gpus, weights, there)


def _engine_memory(
    plan: Plan, role: str, engine: GeneratorConfig | VLLMServer, gpus: float, weights: float, there: Machines
) -> None:
    """vLLM takes a fixed share of each GPU; what its weights leave of it is the key-value cache."""
    text = f"             {role}: {_size(weights)}"
    if gpus and there.gpu_gib:
        room = engine.gpu_memory_utilization * there.gpu_gib * GIB
        if weights < room:
            text += f", which leaves up to {_size(room - weights)} of {there.gpu_gib:g} GiB for the key-value cache"
        else:
            plan.problems.append(
                f"{role}: {_size(weights)} of weights per GPU, gpu_memory_utilization = "
                f"{engine.gpu_memory_utilization:g} of {there.gpu_gib:g} GiB allows {_size(room)}; "
                f"raise it or tensor_parallel_size"
            )
    elif not gpus:
        text += f", and a key-value cache of {engine.kv_cache_gib:g} GiB"
    plan.lines.append(text)


def host_bytes(config: RunConfig, there: Machines, parameters: float) -> dict[str, float]:
    """Bytes of host memory by role, on the node that holds most of it.

    Every rank reads the whole model into host memory before ZeRO-3 divides it among the ranks.
    """
    dtype, learner, generator = config.model.dtype, config.learner, config.generator
    weights, found = parameters * estimates.BYTES[dtype], {}
    trained = estimates.trained_parameters(config, parameters) or 0.0
    stays = estimates.offloaded_bytes(learner, dtype, trained)
    if not learner.gpus:
        stays += estimates.learner_bytes(learner, dtype, parameters, trained)
    found["learner"] = _on_one_node(needs(config)["learner"], there) * max(weights, stays)
    if "generator" in config.pools and not generator.gpus:
        one = weights + generator.kv_cache_gib * GIB
        found["generator"] = math.ceil(generator.num_replicas / there.nodes) * one
    for role, scorer in (("scorer", config.scorer), ("evaluator", config.evaluator)):
        if scorer is not None and not scorer.gpus and (size := estimates.scorer_bytes(scorer)):
            if isinstance(scorer, JudgeConfig) and isinstance(scorer.server, VLLMServer):
                size += scorer.server.kv_cache_gib * GIB
            found[role] = math.ceil(scorer.num_replicas / there.nodes) * size
    return found


def _host_memory(plan: Plan, config: RunConfig, there: Machines, parameters: float) -> None:
    parts = host_bytes(config, there, parameters)
    if not parts:
        return
    alone = config.cluster.placement == "colocated"
    total = max(parts.values()) if alone else sum(parts.values())
    text = ", ".join(f"{role} {_size(size)}" for role, size in parts.items())
    room = f" of {there.memory_gib:,.0f} GiB" if there.memory_gib else ""
    plan.lines.append(f"             host memory: up to {_size(total)}{room} on one node, while models load ({text})")
    if there.memory_gib and total > there.memory_gib * GIB:
        plan.problems.append(
            f"host memory: up to {_size(total)} wanted on one node while models load ({text}), "
            f"a node has {there.memory_gib:,.0f} GiB"
        )


def _on_one_node(need: Need, there: Machines) -> int:
    """How many of the replicas share a node when they are packed."""
    pairs = ((there.cpus, need.cpus), (there.gpus, need.gpus))
    fits = [int(has / wants) for has, wants in pairs if has is not None and wants]
    return max(1, min([need.num_replicas, *fits]))


def _disk(plan: Plan, config: RunConfig, there: Machines, parameters: float | None) -> None:
    parts = estimates.disk_bytes(config, parameters)
    total, free = sum(parts.values()), there.disk_gib * GIB
    text = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    if text:
        plan.lines.append(f"disk       up to {_size(total)} of {_size(free)} free ({text})")
    else:
        plan.lines.append(f"disk       unknown, {_size(free)} free")
    if total > free:
        plan.problems.append(f"disk: up to {_size(total)} wanted under {config.output}, {_size(free)} free")


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters / 1e6:.3g} million"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
