"""Estimates before anything runs: parameters, prompts, bytes of memory and disk.

Every function takes sections of the config and returns a number, or None where it cannot be known before the run.
Needs neither torch nor Ray.
"""

from __future__ import annotations

import math
from pathlib import Path

from engine.config.judge import JudgeConfig, VLLMServer
from engine.config.learner import OUTER
from engine.config.prompts import PromptsConfig
from engine.config.run import LearnerConfig, RunConfig
from engine.config.scorer import IFEvalScorerConfig, PairRMConfig, RewardModelConfig, RuleConfig, ScorerConfig
from engine.store.weights import tensor_shapes

BYTES = {"float32": 4, "bfloat16": 2}
NF4_BYTES = 0.52
"""4 bits per weight and the doubly quantized scales of blocks of 64 (QLoRA, arXiv 2305.14314, section 3)."""
OPTIMIZER_STATES = {"rmsprop": 1, "adamw": 2}
"""float32 numbers that the optimizer keeps per parameter."""
TABLE_BYTES_PER_TOKEN = 6
"""Ids, text and scores of an answer in the compressed tables; between 4 and 8 were measured."""
SCORER_PARAMETERS = 435e6
"""DeBERTa-v3-large with PairRM's head, where the checkpoint is not on this machine."""


def count_parameters(path: str) -> float | None:
    """Parameters of a model folder, from the safetensors headers; None if it is not on this machine."""
    return float(sum(math.prod(shape) for shape in _shapes(path).values())) or None


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of a model folder; {} if it is not on this machine. Raises ModelError if it is damaged."""
    return tensor_shapes(path) if any(Path(path).glob("*.safetensors")) else {}


def count_prompts(prompts: PromptsConfig) -> int | None:
    """Prompts of all sources together, before any is dropped; None if they must be read to know."""
    sources = prompts.source if isinstance(prompts.source, list) else [prompts.source]
    counts = [_count_rows(Path(source)) or prompts.expected or prompts.limit for source in sources]
    limited = [min(count, prompts.limit or count) for count in counts if count is not None]
    return sum(limited) if len(limited) == len(counts) else None


def prompts_per_iteration(config: RunConfig) -> int | None:
    """The largest number of prompts in one iteration; None if it is not known."""
    total, prompts = count_prompts(config.prompts), config.prompts
    if total is None:
        return None
    share = config.preferences.share if config.preferences else None
    total -= round((share or 0.0) * total)
    all_in_each = prompts.use == "all" and not isinstance(prompts.source, list)
    return total if all_in_each else math.ceil(total / config.iterations)


def _count_rows(path: Path) -> int | None:
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def max_steps(learner: LearnerConfig, rows: int) -> int:
    """Most optimizer steps of one iteration with `rows` training rows; early stopping makes fewer."""
    schedule = learner.schedule
    return schedule.max_steps or math.ceil(rows * schedule.stop_after_epochs / learner.batch_size)


def optimizer_bytes(learner: LearnerConfig, dtype: str) -> int:
    """Bytes per parameter for the optimizer's float32 numbers and, under bfloat16, the float32 master weights."""
    return 4 * OPTIMIZER_STATES[learner.optimizer.name] + (4 if dtype == "bfloat16" else 0)


def learner_bytes(learner: LearnerConfig, dtype: str, parameters: float, trained: float | None = None) -> float:
    """Bytes per rank for weights, gradients, master weights and optimizer state, without activations.

    ZeRO (arXiv 1910.02054, section 5): stage 1 divides the optimizer's share by the number of ranks, stage 2 the
    gradients too, stage 3 the weights too. From stage 1 on gradients are summed in float32.
    trained: number of trained parameters; None: all. Those of adapters are additional to the model's own.
    """
    trained = parameters if trained is None else trained
    gradients = 4 if learner.zero_stage > 0 else BYTES[dtype]
    parts = {3: weight_bytes(learner, dtype, parameters), 2: trained * gradients}
    if learner.lora:
        parts[3] += trained * BYTES[dtype]
    if not (learner.offload_optimizer and learner.zero_stage > 0):
        parts[1] = trained * optimizer_bytes(learner, dtype)
    return sum(size / (learner.num_ranks if learner.zero_stage >= stage else 1) for stage, size in parts.items())


def weight_bytes(learner: LearnerConfig, dtype: str, parameters: float) -> float:
    """Bytes of the whole model's weights in the learner."""
    return parameters * (NF4_BYTES if learner.lora and learner.lora.quantize else BYTES[dtype])


def offloaded_bytes(learner: LearnerConfig, dtype: str, trained: float) -> float:
    """Bytes per rank that the optimizer keeps in host memory."""
    if not learner.offload_optimizer or learner.zero_stage == 0:
        return 0.0
    return trained * optimizer_bytes(learner, dtype) / learner.num_ranks


def trained_parameters(config: RunConfig, parameters: float | None, rank: int | None = None) -> float | None:
    """Number of trained parameters: the model's, or those of adapters of `rank` (None: learner.lora.rank).

    Adapters are counted from the model's safetensors headers; None if it is not on this machine.
    """
    lora = config.learner.lora
    if lora is None:
        return parameters
    shapes = _adapted_shapes(config.model.path, lora.target_modules)
    return float((rank or lora.rank) * sum(map(sum, shapes))) or None


def _adapted_shapes(path: str, targets: str | list[str]) -> list[tuple[int, ...]]:
    """(out, in) of the layers that adapters change; all-linear: every matrix inside the blocks."""
    layers = {name.removesuffix(".weight"): shape for name, shape in _shapes(path).items() if name.endswith(".weight")}
    if isinstance(targets, list):
        return [s for n, s in layers.items() if any(n == t or n.endswith(f".{t}") for t in targets)]
    return [s for n, s in layers.items() if len(s) == 2 and not any(part in n for part in OUTER)]


def scorer_bytes(scorer: ScorerConfig) -> float | None:
    """Bytes of a scorer's weights per GPU; 0 for rules, and for judges served by the policy or a remote server.

    None for a judge that is not on this machine and whose num_parameters is not set.
    """
    if isinstance(scorer, JudgeConfig):
        return judge_bytes(scorer.server) if isinstance(scorer.server, VLLMServer) else 0.0
    if isinstance(scorer, RuleConfig | IFEvalScorerConfig):
        return 0.0
    width = BYTES[scorer.dtype] if isinstance(scorer, PairRMConfig | RewardModelConfig) else BYTES["float32"]
    return width * (count_parameters(scorer.path) or SCORER_PARAMETERS)


def judge_bytes(server: VLLMServer) -> float | None:
    """Bytes of a judge's weights per GPU."""
    parameters = server.num_parameters or count_parameters(server.path)
    return parameters and parameters * BYTES[server.dtype] / server.tensor_parallel_size


def answers_per_prompt(config: RunConfig) -> int:
    """Answers sampled per training prompt in the last iteration; the first may have no `start_completions`."""
    stages = config.algorithm.stages(config.iterations - 1)
    return config.sampling.num_samples * (("completions" in stages) + ("start_completions" in stages))


def num_verdicts(config: RunConfig, prompts: int, answers: int) -> tuple[int, str]:
    """Number of verdicts on `prompts` prompts with `answers` answers each, and what they are called."""
    pairs = prompts * answers * (answers - 1)
    if isinstance(config.scorer, JudgeConfig):
        if config.scorer.mode == "pointwise":
            return prompts * answers * config.scorer.num_judgements, "judgements"
        return (pairs if config.scorer.orders == "both" else pairs // 2), "comparisons"
    if isinstance(config.scorer, RewardModelConfig):
        return prompts * answers, "rewards"
    return pairs, "comparisons"


def disk_bytes(config: RunConfig, parameters: float | None) -> dict[str, float]:
    """{purpose: bytes} under `output`: weights of all iterations, two or three learner checkpoints, tables."""
    size, learner, dtype = parameters or 0.0, config.learner, config.model.dtype
    trained = trained_parameters(config, parameters) or 0.0
    prompts = (prompts_per_iteration(config) or 0) * config.iterations
    answers = (
        prompts
        * (answers_per_prompt(config) + config.algorithm.num_dataset_completions)
        * config.sampling.max_new_tokens
    )
    copies = 3 if learner.keep_best_step else 2  # the old, the new, and that of the best step
    return {
        "weights": _saved_parameters(config, size, trained) * BYTES[dtype],
        f"{copies} learner checkpoints": copies * trained * (BYTES[dtype] + optimizer_bytes(learner, dtype)),
        "tables": float(answers * TABLE_BYTES_PER_TOKEN),
    }


def _saved_parameters(config: RunConfig, parameters: float, trained: float) -> float:
    """Parameters in the weights of all iterations: whole models, or adapters; stacked adapters grow."""
    lora, t = config.learner.lora, config.iterations
    if lora is None or not lora.saves_adapters:
        return parameters * t
    return trained * (t * (t + 1) / 2 if lora.between_iterations == "stack" else t)
