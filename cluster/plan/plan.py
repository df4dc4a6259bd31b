"""What a run will need, computed before anything starts: placement, work, memory, disk.

The plan compares what the machines have (machines.py) with what the roles need (machines.py, estimates.py). It needs
neither torch nor a connection to a cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from actors.scorers.judge.prompt_file import read_judge_prompt
from cluster.plan import estimates
from cluster.plan.machines import ADVICE, GIB, Machines, Need, machines, shortages
from engine.config.judge import JudgeConfig, VLLMServer
from engine.config.run import GeneratorConfig, RoleName, RunConfig, Setup, StatedCluster
from engine.config.scorer import ScorerConfig
from engine.errors import PlanError

SECTIONS: dict[RoleName, str] = {
    "scorer": "scorer",
    "evaluator": "evaluation.scorer",
    "annotator": "evaluation.annotator",
}
"""The section of the config that describes the scorer of a role."""


@dataclass(frozen=True)
class Plan:
    """The plan as people read it, and the reasons why it cannot work."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise PlanError if the plan cannot work."""
        if self.problems:
            raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {p}" for p in self.problems) + ADVICE)

    def section(self, name: str, text: str) -> None:
        """Add the first line of a section."""
        self.lines.append(f"{name:<11}{text}")

    def detail(self, text: str) -> None:
        """Add a further line to the section."""
        self.lines.append(f"{'':<13}{text}")


def needs(config: Setup) -> dict[RoleName, Need]:
    """The resources that each role of this config needs."""
    pools = {role: Need(s.num_replicas, s.cpus, s.gpus) for role, s in config.pools.items()}
    if not isinstance(config, RunConfig):
        return pools
    learner = config.learner
    return pools | {"learner": Need(learner.num_ranks, learner.cpus, learner.gpus, strategy="PACK")}


def make_plan(config: RunConfig, stated: StatedCluster | None = None) -> Plan:
    """Plan for the stated cluster, else for the one to which the run will connect, else for this machine.

    Raises ConfigError for a judge's prompt file that cannot be used, ModelError for a damaged model folder.
    """
    for role, judge in _judges(config).items():
        read_judge_prompt(judge, f"{SECTIONS[role]}.prompt")
    available = machines(config, stated)
    parameters = config.model.num_parameters or estimates.count_parameters(config.model.path)
    plan = Plan()
    _placement(plan, config, available)
    _work(plan, config)
    if parameters is None:
        plan.section("memory", "unknown: the model is not on this machine and model.num_parameters is not set")
    else:
        _Memory(plan, config, available, parameters).write()
    _disk(plan, config, available, parameters)
    return plan


def _scorers(config: RunConfig) -> dict[RoleName, ScorerConfig]:
    """The scorers of each role, as far as the config has them."""
    scorers: dict[RoleName, ScorerConfig | None] = {
        "scorer": config.scorer,
        "evaluator": config.evaluator,
        "annotator": config.annotator,
    }
    return {role: scorer for role, scorer in scorers.items() if scorer is not None}


def _judges(config: RunConfig) -> dict[RoleName, JudgeConfig]:
    """The LLM judges among the scorers, by role."""
    return {role: scorer for role, scorer in _scorers(config).items() if isinstance(scorer, JudgeConfig)}


def _placement(plan: Plan, config: RunConfig, available: Machines) -> None:
    """Where each role runs, and whether there are enough CPUs and GPUs."""
    colocated, resources = config.cluster.placement == "colocated", available.resources()
    amounts = f": {resources['CPU']:g} CPUs, {resources['GPU']:g} GPUs" if resources else ""
    plan.section("cluster", f"{available.where}{amounts}")
    on_ray = config.cluster.backend == "ray"
    if not on_ray:
        plan.section("placement", "one after the other, in this process")
    elif colocated:
        plan.section("placement", "colocated: the roles share the same resources, one role at a time")
    else:
        plan.section("placement", "disaggregated: each role has resources of its own")
    kinds: dict[RoleName, str] = {"generator": "vllm", "learner": "deepspeed"}
    kinds |= {role: scorer.kind for role, scorer in _scorers(config).items()}
    for role, need in needs(config).items():
        kind = kinds[role] + (", also the judge" if role == "generator" and config.policy_judges else "")
        replicas = f"{need.num_replicas} x " if need.num_replicas > 1 else "    "
        plan.detail(f"{replicas}{role} ({kind}): {need.cpus:g} CPUs, {need.gpus:g} GPUs each")
        if on_ray and available.gpus is not None and 0 < available.gpus < need.gpus:
            plan.problems.append(f"{role}: {need.gpus:g} GPUs needed on one node, a node has {available.gpus:g}")
    if on_ray and resources:
        plan.problems.extend(shortages(needs(config), colocated, resources))


def _work(plan: Plan, config: RunConfig) -> None:
    """Answers, comparisons and optimizer steps."""
    learner, iterations = config.learner, config.iterations
    num_prompts = estimates.prompts_per_iteration(config)
    prompts = num_prompts or 1000
    steps = estimates.max_steps(learner, prompts)
    amounts = ", ".join([*_stage_amounts(config, prompts), f"up to {steps:,} optimizer steps"])
    if num_prompts:
        plan.section(
            "work", f"{iterations} iterations x {prompts:,} prompts: {amounts} each, {iterations * steps:,} in all"
        )
    else:
        plan.section("work", f"unknown until the prompts are read; per 1,000 prompts and iteration: {amounts}")
    ranks = f"{learner.num_ranks} ranks x {learner.micro_batch_size} prompts"
    plan.section("batch", f"{ranks}, accumulated to {learner.batch_size}")


def _stage_amounts(config: RunConfig, prompts: int) -> list[str]:
    """The work of the stages in the last iteration, in words; the first iteration may have fewer stages."""
    stages = config.algorithm.stages(config.iterations - 1)
    k = estimates.answers_per_prompt(config)
    amounts = [f"{prompts * k:,} answers"] if "completions" in stages else []
    if "scores" in stages:
        count, unit = estimates.num_verdicts(config, prompts, k)
        amounts.append(f"{count * (2 if 'previous_scores' in stages else 1):,} {unit}")
    return amounts


class _Memory:
    """The section on memory: per replica on GPUs, and on the host while models load."""

    def __init__(self, plan: Plan, config: RunConfig, available: Machines, parameters: float):
        self.plan, self.config, self.available, self.parameters = plan, config, available, parameters

    def write(self) -> None:
        count = f"{_count(self.parameters)} parameters{self._adapters()}"
        self.plan.section("memory", f"{count}; weights and states per replica:")
        self._generator()
        for role, judge in _judges(self.config).items():
            if isinstance(judge.server, VLLMServer):
                self._judge(role, judge, judge.server)
        self._scorers_and_learner()
        self._host()

    def _adapters(self) -> str:
        """What is trained, if it is not the whole model."""
        if self.config.learner.lora is None:
            return ""
        trained = estimates.trained_parameters(self.config, None)
        count = _count(trained) if trained else "an unknown number (the model is not on this machine)"
        return f", frozen; adapters of rank {self.config.learner.lora.rank} train {count}"

    def _generator(self) -> None:
        config, generator = self.config, self.config.generator
        if "generator" in config.pools:
            adapter = estimates.trained_parameters(config, None, config.served_rank) if config.served_rank else 0.0
            parameters = self.parameters + (adapter or 0.0)
            weights = parameters * estimates.BYTES[config.model.dtype] / generator.tensor_parallel_size
            self._engine("generator", generator, generator.gpus, weights)

    def _judge(self, role: str, judge: JudgeConfig, server: VLLMServer) -> None:
        weights = estimates.scorer_bytes(judge)
        if weights is None:
            self.plan.detail(f"{role}: unknown, its model is not on this machine and server.num_parameters is not set")
        else:
            self._engine(role, server, judge.gpus, weights)

    def _engine(self, role: str, engine: GeneratorConfig | VLLMServer, gpus: float, weights: float) -> None:
        """vLLM takes a fixed share of each GPU; the part without weights is the key-value cache."""
        text, gpu_gib = f"{role}: {_size(weights)}", self.available.gpu_gib
        if gpus and gpu_gib:
            share = engine.gpu_memory_utilization * gpu_gib * GIB
            if weights < share:
                text += f", which leaves up to {_size(share - weights)} of {gpu_gib:g} GiB for the key-value cache"
            else:
                self.plan.problems.append(
                    f"{role}: {_size(weights)} of weights per GPU, gpu_memory_utilization = "
                    f"{engine.gpu_memory_utilization:g} of {gpu_gib:g} GiB allows {_size(share)}; "
                    f"raise it or tensor_parallel_size"
                )
        elif not gpus:
            text += f", and a key-value cache of {engine.kv_cache_gib:g} GiB"
        self.plan.detail(text)

    def _scorers_and_learner(self) -> None:
        """Roles that keep weights and states in memory and leave the rest to activations."""
        config, learner = self.config, self.config.learner
        sizes: dict[RoleName, float] = {
            role: estimates.scorer_bytes(scorer) or 0.0
            for role, scorer in _scorers(config).items()
            if not isinstance(scorer, JudgeConfig)
        }
        trained = estimates.trained_parameters(config, self.parameters) or 0.0
        sizes["learner"] = estimates.learner_bytes(learner, config.model.dtype, self.parameters, trained)
        for role, size in sizes.items():
            if not size:
                continue
            gpus, text = needs(config)[role].gpus, f"{role}: {_size(size)}"
            if gpus and self.available.gpu_gib:
                share = self.available.gpu_gib * min(1.0, gpus) * GIB
                text += f" of {_size(share)}" + (
                    f", {_size(share - size)} left for activations" if size <= share else ""
                )
                if size > share:
                    self.plan.problems.append(
                        f"{role}: {_size(size)} per replica, its share of a GPU has {_size(share)}"
                    )
            self.plan.detail(text)

    def _host(self) -> None:
        parts, memory_gib = host_bytes(self.config, self.available, self.parameters), self.available.memory_gib
        if not parts:
            return
        total = max(parts.values()) if self.config.cluster.placement == "colocated" else sum(parts.values())
        text = ", ".join(f"{role} {_size(size)}" for role, size in parts.items())
        limit = f" of {memory_gib:,.0f} GiB" if memory_gib else ""
        self.plan.detail(f"host memory: up to {_size(total)}{limit} on one node, while models load ({text})")
        if memory_gib and total > memory_gib * GIB:
            self.plan.problems.append(
                f"host memory: up to {_size(total)} needed on one node while models load ({text}), "
                f"a node has {memory_gib:,.0f} GiB"
            )


def host_bytes(config: RunConfig, available: Machines, parameters: float) -> dict[RoleName, float]:
    """{role: bytes of host memory} on the node that needs most.

    Every rank reads the whole model into host memory before ZeRO-3 divides it among the ranks.
    """
    dtype, learner, generator = config.model.dtype, config.learner, config.generator
    weights = parameters * estimates.BYTES[dtype]
    trained = estimates.trained_parameters(config, parameters) or 0.0
    resident = estimates.offloaded_bytes(learner, dtype, trained)
    if not learner.gpus:
        resident += estimates.learner_bytes(learner, dtype, parameters, trained)
    sizes: dict[RoleName, float] = {
        "learner": _on_one_node(needs(config)["learner"], available) * max(weights, resident)
    }
    if "generator" in config.pools and not generator.gpus:
        replica = weights + generator.kv_cache_gib * GIB
        sizes["generator"] = math.ceil(generator.num_replicas / available.nodes) * replica
    for role, scorer in _scorers(config).items():
        if not scorer.gpus and (size := estimates.scorer_bytes(scorer)):
            if isinstance(scorer, JudgeConfig) and isinstance(scorer.server, VLLMServer):
                size += scorer.server.kv_cache_gib * GIB
            sizes[role] = math.ceil(scorer.num_replicas / available.nodes) * size
    return sizes


def _on_one_node(need: Need, available: Machines) -> int:
    """How many of the replicas are on one node when they are packed."""
    pairs = ((available.cpus, need.cpus), (available.gpus, need.gpus))
    fits = [int(amount / per_replica) for amount, per_replica in pairs if amount is not None and per_replica]
    return max(1, min([need.num_replicas, *fits]))


def _disk(plan: Plan, config: RunConfig, available: Machines, parameters: float | None) -> None:
    parts = estimates.disk_bytes(config, parameters)
    total, free = sum(parts.values()), available.disk_gib * GIB
    text = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    plan.section(
        "disk", f"up to {_size(total)} of {_size(free)} free ({text})" if text else f"unknown, {_size(free)} free"
    )
    if total > free:
        plan.problems.append(f"disk: up to {_size(total)} needed under {config.output}, {_size(free)} free")


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters / 1e6:.3g} million"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
