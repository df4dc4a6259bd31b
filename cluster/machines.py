"""What there is to plan with: a stated cluster, this machine, or a cluster that will be asked.

Reads the operating system's own files and starts nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.config.model import RunConfig, StatedCluster

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Machines:
    """Equal nodes; None where only asking the cluster would tell."""

    where: str
    nodes: int
    cpus: float | None
    """Per node."""
    gpus: float | None
    """Per node."""
    gpu_gib: float | None
    """Memory of one GPU."""
    memory_gib: float | None
    """Host memory of one node."""
    disk_gib: float
    """Free on the storage of `output`."""

    def resources(self) -> dict[str, float] | None:
        """What all nodes have together, under Ray's names."""
        if self.cpus is None or self.gpus is None:
            return None
        return {"CPU": self.nodes * self.cpus, "GPU": self.nodes * self.gpus}


def machines(config: RunConfig, stated: StatedCluster | None) -> Machines:
    """The stated cluster, else the one that the run will connect to, else this machine."""
    if stated is not None:
        nodes = "1 node" if stated.nodes == 1 else f"{stated.nodes} nodes"
        return Machines(f"as stated, {nodes}", stated.nodes, float(stated.cpus), float(stated.gpus),
                        stated.gpu_gib or None, stated.memory_gib, stated.disk_gib)  # fmt: skip
    free = shutil.disk_usage(_existing(Path(config.output))).free / GIB
    if config.cluster.backend == "ray" and (address := config.cluster.address or os.environ.get("RAY_ADDRESS")):
        return Machines(f"{address}, asked when the run connects", 1, None, None, None, None, free)
    return Machines("this machine", 1, float(os.cpu_count() or 1), _visible_gpus(), None, _host_memory(), free)


def _visible_gpus() -> float:
    return float(len(list(NVIDIA.glob("*")))) if NVIDIA.is_dir() else 0.0


def _host_memory() -> float:
    """GiB that this process may use; a container's limit counts where it is the smaller one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total / GIB


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.resolve().parent
    return path
