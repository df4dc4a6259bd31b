"""Joining a lock-step group of ranks: environment, backend, first meeting point.

Knows nothing of models or of who starts the ranks. DeepSpeed is imported here only once the
environment says which accelerator there is: it decides at import.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch


def free_address() -> tuple[str, int]:
    """This machine's address, as other machines see it, and a port that was free a moment ago.

    Somebody may take the port before the group meets; joining fails then and the group is started again.
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
    """The accelerator of this rank: the first GPU it may see, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def join_group(host: str, port: int, rank: int, world_size: int, num_threads: int, timeout_s: float) -> None:
    """Meet the other ranks at host:port; NCCL between GPUs, gloo between CPUs.

    timeout_s bounds the meeting and each later exchange, so that a dead rank ends the others too.
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
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(num_threads)
    import deepspeed
    import deepspeed.ops

    # Compiled for 45 s at the first start on a CPU, needs a compiler, and serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")  # its warnings are about choices made on purpose
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout_s),
        rank=rank,
        world_size=world_size,
    )
