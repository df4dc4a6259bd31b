"""Counting before anything runs: parameters, prompts, bytes of memory and of disk, from the config alone.

Plain arithmetic; every function takes sections of the config and returns a number. What cannot be
known from here is None, never a guess. Needs neither torch nor Ray.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from engine.config.model import LearnerConfig, PairRMConfig, PromptsConfig, RuleConfig, RunConfig, ScorerConfig

BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_STATES = {"rmsprop": 1, "adamw": 2}
"""float32 numbers that the optimizer keeps per parameter."""
TABLE_BYTES_PER_TOKEN = 6
"""Ids, text and scores of an answer in the compressed tables; measured between 4 and 8."""
SCORER_PARAMETERS = 435e6
"""DeBERTa-v3-large with PairRM's head, where the checkpoint is not on this machine."""


def count_parameters(path: str) -> float | None:
    """Parameters of a model folder on this machine, from the safetensors headers; None if there is none."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return float(total) or None


def count_prompts(prompts: PromptsConfig) -> int | None:
    """Prompts of all sources together, before any is dropped; None where only reading them would tell."""
    sources = prompts.source if isinstance(prompts.source, list) else [prompts.source]
    counts = [_count_rows(Path(source)) or prompts.expected or prompts.limit for source in sources]
    known = [min(count, prompts.limit or count) for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def prompts_per_iteration(config: RunConfig) -> int | None:
    """Prompts that one iteration answers, at most."""
    total, prompts = count_prompts(config.prompts), config.prompts
    if total is None:
        return None
    every_time = prompts.use == "all" and not isinstance(prompts.source, list)
    return total if every_time else math.ceil(total / config.iterations)


def _count_rows(path: Path) -> int | None:
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def max_steps(learner: LearnerConfig, rows: int) -> int:
    """Optimizer steps of one iteration in which every prompt gives a row."""
    return math.ceil(rows * learner.schedule.stop_after_epochs / learner.batch_size)


def optimizer_bytes(learner: LearnerConfig, dtype: str) -> int:
    """Bytes per parameter for the optimizer's float32 numbers and, under bfloat16, the float32 master weights."""
    return 4 * OPTIMIZER_STATES[learner.optimizer.name] + (4 if dtype == "bfloat16" else 0)


def learner_bytes(learner: LearnerConfig, dtype: str, parameters: float) -> float:
    """Bytes per rank for weights, gradients, master weights and optimizer state, without activations.

    ZeRO (arXiv 1910.02054, section 5): stage 1 divides the optimizer's share by the number of ranks,
    stage 2 the gradients too, stage 3 the weights too. Gradients are summed in float32 from stage 1 on.
    """
    gradients = 4 if learner.zero_stage > 0 else BYTES[dtype]
    parts = {3: BYTES[dtype], 2: gradients, 1: optimizer_bytes(learner, dtype)}
    total = 0.0
    for stage, size in parts.items():
        if stage == 1 and learner.offload_optimizer and learner.zero_stage > 0:
            continue
        total += parameters * size / (learner.num_ranks if learner.zero_stage >= stage else 1)
    return total


def offloaded_bytes(learner: LearnerConfig, dtype: str, parameters: float) -> float:
    """Bytes per rank that the optimizer keeps in host memory."""
    if not learner.offload_optimizer or learner.zero_stage == 0:
        return 0.0
    return parameters * optimizer_bytes(learner, dtype) / learner.num_ranks


def scorer_bytes(scorer: ScorerConfig) -> float:
    """Bytes of a scorer's weights; rules have none."""
    if isinstance(scorer, RuleConfig):
        return 0.0
    width = BYTES[scorer.dtype] if isinstance(scorer, PairRMConfig) else BYTES["float32"]
    return width * (count_parameters(scorer.path) or SCORER_PARAMETERS)


def disk_bytes(config: RunConfig, parameters: float | None) -> dict[str, float]:
    """Bytes under `output` by what they are for: weights of every iteration, two learner checkpoints, tables."""
    size, learner, dtype = parameters or 0.0, config.learner, config.model.dtype
    prompts = (prompts_per_iteration(config) or 0) * config.iterations
    sampled = config.sampling.num_samples if "completions" in config.algorithm.stages(0) else 0
    answers = prompts * (sampled + config.algorithm.given) * config.sampling.max_new_tokens
    return {
        "weights": size * BYTES[dtype] * config.iterations,
        "two learner checkpoints": 2 * size * (BYTES[dtype] + optimizer_bytes(learner, dtype)),
        "tables": float(answers * TABLE_BYTES_PER_TOKEN),
    }
