"""What a run will ask for, worked out before anything starts: placement, steps, memory, disk.

Estimates in plain arithmetic from the config and, where it is on this machine, the model's own files.
Needs neither torch nor a connected cluster. Knows nothing of how the work is done.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.needs import ADVICE, Need, shortages
from engine.config import ReplicasConfig, RuleConfig, RunConfig, StatedCluster
from engine.errors import PlanError

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_STATES = {"rmsprop": 1, "adamw": 2}
"""float32 numbers that the optimizer keeps per parameter."""
TABLE_BYTES_PER_TOKEN = 6
"""Ids, text and scores of an answer in the compressed tables; measured between 4 and 8."""
SCORER_PARAMETERS = 435e6
"""DeBERTa-v3-large with PairRM's head, where the checkpoint is not on this machine."""


@dataclass(frozen=True)
class Plan:
    """The plan as people read it, and what speaks against it."""

    lines: list[str]
    problems: list[str]

    def check(self) -> None:
        """Raise PlanError if the plan cannot work."""
        if self.problems:
            raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {p}" for p in self.problems) + ADVICE)


def needs(config: RunConfig) -> dict[str, Need]:
    """What every role of this config asks of the cluster."""
    sections: dict[str, ReplicasConfig | None] = {
        "generator": config.generator,
        "scorer": config.scorer,
        "evaluator": config.evaluator,
    }
    found = {role: Need(s.num_replicas, s.cpus, s.gpus) for role, s in sections.items() if s is not None}
    learner = config.learner
    return found | {"learner": Need(learner.num_ranks, learner.cpus, learner.gpus, strategy="PACK")}


def make_plan(config: RunConfig, resources: Mapping[str, float] | None = None) -> Plan:
    """Plan for `resources` (Ray's names), else for the stated cluster, else for this machine."""
    stated = config.cluster.stated
    where, available = _cluster(stated) if resources is None else ("the connected cluster", dict(resources))
    turns = config.cluster.placement == "turns"
    parameters = config.model.num_parameters or count_parameters(config.model.path)
    problems = shortages(needs(config), turns, available) if config.cluster.backend == "ray" else []
    lines = [f"cluster    {where}: {available.get('CPU', 0):g} CPUs, {available.get('GPU', 0):g} GPUs"]
    lines += _placement_lines(config, turns)
    lines += _work_lines(config)
    lines += _memory_lines(config, parameters, stated, turns, problems)
    lines += _disk_lines(config, parameters, stated, problems)
    return Plan(lines, problems)


def count_parameters(path: str) -> float | None:
    """Parameters of a model folder on this machine, from the safetensors headers; None if there is none."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return float(total) or None


def count_prompts(config: RunConfig) -> int | None:
    """Prompts of all iterations together, before any is dropped; None where only reading them would tell."""
    source, limit = config.prompts.source, config.prompts.limit
    sources = source if isinstance(source, list) else [source]
    counts = [_count_rows(Path(s)) for s in sources]
    if any(count is None for count in counts):
        return limit * len(sources) if limit else None
    return sum(min(count, limit or count) for count in counts if count is not None)


def _count_rows(path: Path) -> int | None:
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def _cluster(stated: StatedCluster | None) -> tuple[str, dict[str, float]]:
    if stated is not None:
        nodes = "1 node" if stated.nodes == 1 else f"{stated.nodes} nodes"
        return f"as stated, {nodes}", {"CPU": stated.nodes * stated.cpus, "GPU": stated.nodes * stated.gpus}
    return "this machine", {"CPU": float(os.cpu_count() or 1), "GPU": float(_visible_gpus())}


def _visible_gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0


def _placement_lines(config: RunConfig, turns: bool) -> list[str]:
    together = "in turns on shared resources" if turns else "side by side"
    if config.cluster.backend == "local":
        together = "one after the other, in this process"
    lines = [f"placement  {together}"]
    for role, need in needs(config).items():
        kind = {"scorer": config.scorer, "evaluator": config.evaluator}.get(role) or getattr(config, role)
        many = f"{need.num_replicas} x " if need.num_replicas > 1 else "    "
        lines.append(f"             {many}{role} ({kind.kind}): {need.cpus:g} CPUs, {need.gpus:g} GPUs each")
    return lines


def _work_lines(config: RunConfig) -> list[str]:
    prompts, k, learner = count_prompts(config), config.sampling.num_samples, config.learner
    epochs = learner.schedule.stop_after_epochs
    batch = f"{learner.num_ranks} ranks x {learner.micro_batch_size} prompts, accumulated to {learner.batch_size}"
    if prompts is None:
        known = f"per 1,000 prompts and iteration: {1000 * k:,} answers, {1000 * k * (k - 1):,} comparisons, "
        work = known + f"up to {math.ceil(1000 * epochs / learner.batch_size)} optimizer steps"
    else:
        share = 1 if config.prompts.use == "all" and not isinstance(config.prompts.source, list) else config.iterations
        each = math.ceil(prompts / share)
        work = (
            f"{config.iterations} iterations x {each:,} prompts: {each * k:,} answers, {each * k * (k - 1):,} "
            f"comparisons, up to {math.ceil(each * epochs / learner.batch_size):,} optimizer steps each"
        )
    return [f"work       {work}", f"batch      {batch}"]


def learner_bytes(config: RunConfig, parameters: float) -> float:
    """Bytes per rank for weights, gradients, master weights and optimizer state, without activations.

    ZeRO (arXiv 1910.02054, section 5): stage 1 divides the optimizer's share by the number of ranks,
    stage 2 the gradients too, stage 3 the weights too.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    master = 4 if width == 2 else 0
    parts = {3: width, 2: width, 1: master + 4 * OPTIMIZER_STATES[learner.optimizer.name]}
    total = 0.0
    for stage, size in parts.items():
        if stage == 1 and learner.offload_optimizer:
            continue
        total += parameters * size / (learner.num_ranks if learner.zero_stage >= stage else 1)
    return total


def _memory_lines(
    config: RunConfig, parameters: float | None, stated: StatedCluster | None, turns: bool, problems: list[str]
) -> list[str]:
    if parameters is None:
        return ["memory     unknown: the model is not on this machine and model.num_parameters is not set"]
    generator = parameters * BYTES[config.model.dtype] / config.generator.tensor_parallel_size
    scorer = 0.0
    if not isinstance(config.scorer, RuleConfig):
        scorer = 4 * (count_parameters(config.scorer.path) or SCORER_PARAMETERS)
    each = {"generator": generator, "scorer": scorer, "learner": learner_bytes(config, parameters)}
    text = ", ".join(f"{role} {_size(size)}" for role, size in each.items())
    if stated is not None and stated.gpu_gib:
        for role, size in each.items():
            if needs(config)[role].gpus and size > stated.gpu_gib * GIB:
                problems.append(f"{role}: {_size(size)} per replica, one GPU has {stated.gpu_gib:g} GiB")
        used = each["learner"] / GIB
        text += (
            f"; a GPU has {stated.gpu_gib:g} GiB, so the learner has {stated.gpu_gib - used:.0f} GiB for activations"
        )
    return [f"memory     {_count(parameters)} parameters; per replica, for weights and states: {text}"]


def _disk_lines(
    config: RunConfig, parameters: float | None, stated: StatedCluster | None, problems: list[str]
) -> list[str]:
    prompts = count_prompts(config) or 0
    answers = prompts * config.sampling.num_samples * config.sampling.max_new_tokens
    weights = (parameters or 0) * BYTES[config.model.dtype] * config.iterations
    state = (parameters or 0) * (4 + 4 * OPTIMIZER_STATES[config.learner.optimizer.name] + 2)
    total = weights + 2 * state + answers * TABLE_BYTES_PER_TOKEN
    free = stated.disk_gib * GIB if stated else shutil.disk_usage(_existing(Path(config.output))).free
    if total > free:
        problems.append(f"disk: up to {_size(total)} wanted under {config.output}, {_size(free)} free")
    parts = f"weights {_size(weights)}, two learner checkpoints {_size(2 * state)}"
    return [f"disk       up to {_size(total)} of {_size(free)} free ({parts}, the rest tables)"]


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.resolve().parent
    return path


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters / 1e6:.3g} million"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
