"""DeepSpeed's configuration and optimizer from LearnerConfig, and how ranks join a process group.

DeepSpeed chooses the accelerator when it is imported, so it is imported after the environment variables are set.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch

from engine.config.learner import LearnerConfig, OptimizerConfig
from engine.config.run import ModelConfig


def deepspeed_config(learner: LearnerConfig, model: ModelConfig, num_ranks: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration as a dict. The learner sets the learning rate before each step.

    The optimizers are torch's, which run on GPUs and CPUs; DeepSpeed's would be compiled at first use.
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
        # Sums of many micro-batches lose small terms in bfloat16. Stage 0 has no such option.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def make_optimizer(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer; the learner sets its learning rate before each step."""
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            parameters, lr=config.lr, alpha=config.alpha, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def free_address() -> tuple[str, int]:
    """This machine's address as other machines see it, and a port that is free at this moment.

    If another process takes the port before the group meets, joining fails and the group is started again.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: picks the outgoing interface, sends nothing
            host = probe.getsockname()[0]
        except OSError:
            host = "127.0.0.1"
    with socket.socket() as listener:
        listener.bind(("", 0))
        return host, listener.getsockname()[1]


def device() -> torch.device:
    """The device of this rank: its first visible GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def join_group(host: str, port: int, rank: int, world_size: int, num_threads: int, timeout_s: float) -> None:
    """Join the process group at host:port; NCCL between GPUs, gloo between CPUs.

    timeout_s limits the rendezvous and each later collective, so that a dead rank ends the others too.
    """
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # every rank sees its own GPUs only
        LOCAL_SIZE="1",  # the CPU accelerator would count NUMA nodes
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    on_gpu = device().type == "cuda"
    if on_gpu:
        # cuDNN's attention builds a plan for each new shape, and nearly every micro-batch has one. On an H100 with a
        # Llama of 1 billion parameters this took 25 ms per layer and pass, 3/4 of the time of a first step.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(num_threads)
    import deepspeed
    import deepspeed.ops

    # This op needs a compiler, takes 45 s to compile at the first start on a CPU, and is for inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")  # its warnings concern settings that are chosen on purpose
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout_s),
        rank=rank,
        world_size=world_size,
    )
