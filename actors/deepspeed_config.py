"""From LearnerConfig to DeepSpeed's configuration and to a torch optimizer. Imports no DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from engine.config.learner import LearnerConfig, OptimizerConfig
from engine.config.model import ModelConfig


def deepspeed_config(learner: LearnerConfig, model: ModelConfig, num_ranks: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration as a dict; the learning rate is set from outside before each step.

    Torch's own optimizers run on GPUs and CPUs alike; DeepSpeed's would be compiled at first use.
    """
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload_optimizer and learner.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings = {
        "train_batch_size": learner.batch_size,
        "train_micro_batch_size_per_gpu": learner.micro_batch_size,
        "gradient_accumulation_steps": learner.batch_size // (learner.micro_batch_size * num_ranks),
        "gradient_clipping": learner.optimizer.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": model.dtype == "bfloat16"},
    }
    if learner.zero_stage > 0:
        # Sums of many micro-batches would lose their small terms in bfloat16; stage 0 offers nothing else.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def make_optimizer(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer, its learning rate to be set before each step."""
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            parameters, lr=config.lr, alpha=config.alpha, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
