"""The resources of the machines, the needs of the roles, and the shortages.

Reads the operating system's own files; starts nothing and needs no Ray.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.config.run import RoleName, Setup, StatedCluster

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Machines:
    """A cluster of equal nodes; None for what only the running cluster can tell."""

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
        """The resources of all nodes together, under Ray's names; None if they are not known."""
        if self.cpus is None or self.gpus is None:
            return None
        return {"CPU": self.nodes * self.cpus, "GPU": self.nodes * self.gpus}


def machines(config: Setup, stated: StatedCluster | None) -> Machines:
    """The stated cluster, else the one to which the run will connect, else this machine."""
    if stated is not None:
        nodes = "1 node" if stated.nodes == 1 else f"{stated.nodes} nodes"
        return Machines(f"as stated, {nodes}", stated.nodes, float(stated.cpus), float(stated.gpus),
                        stated.gpu_gib or None, stated.memory_gib, stated.disk_gib)  # fmt: skip
    free = shutil.disk_usage(nearest_folder(Path(config.output))).free / GIB
    if config.cluster.backend == "ray" and (address := config.cluster.address or os.environ.get("RAY_ADDRESS")):
        return Machines(f"{address}, asked when the run connects", 1, None, None, None, None, free)
    return Machines("this machine", 1, float(os.cpu_count() or 1), _visible_gpus(), None, _host_memory(), free)


def _visible_gpus() -> float:
    return float(len(list(NVIDIA.glob("*")))) if NVIDIA.is_dir() else 0.0


def _host_memory() -> float:
    """GiB that this process may use: the machine's memory, or the container's limit if that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # the file is missing, or holds "max"
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total / GIB


def nearest_folder(path: Path) -> Path:
    """The folder itself or the nearest one above it that exists: on the same storage."""
    while not path.is_dir():
        path = path.resolve().parent
    return path


ADVICE = "\nLower num_replicas, cpus or gpus, add nodes, or let roles share them: cluster.placement=colocated"
"""Appended to the error of a plan that does not fit."""


@dataclass(frozen=True)
class Need:
    """The resources that one role needs."""

    num_replicas: int
    cpus: float
    """Per replica."""
    gpus: float
    """Per replica."""
    strategy: str = "SPREAD"
    """Ray's placement strategy: SPREAD for replicas that work alone, PACK for ranks that communicate."""

    def total(self) -> dict[str, float]:
        return {"CPU": self.num_replicas * self.cpus, "GPU": self.num_replicas * self.gpus}


def share(needs: Mapping[RoleName, Need]) -> Need:
    """The bundles in which all roles fit, one role at a time."""
    return Need(
        num_replicas=max(n.num_replicas for n in needs.values()),
        cpus=max(n.cpus for n in needs.values()),
        gpus=max(n.gpus for n in needs.values()),
        strategy="PACK",
    )


def shortages(needs: Mapping[RoleName, Need], colocated: bool, available: Mapping[str, float]) -> list[str]:
    """One sentence for each resource of which the roles need more than is available."""
    reserved = [share(needs)] if colocated else list(needs.values())
    lines = []
    for resource in ("CPU", "GPU"):
        total = math.fsum(need.total()[resource] for need in reserved)
        if total > available.get(resource, 0.0) + 1e-9:
            parts = ", ".join(f"{role} {n.total()[resource]:g}" for role, n in needs.items() if n.total()[resource])
            size = reserved[0].total()[resource] / reserved[0].num_replicas
            shape = f"{reserved[0].num_replicas} bundles of {size:g} shared by all roles: " if colocated else ""
            lines.append(f"{total:g} {resource}s needed ({shape}{parts}), {available.get(resource, 0.0):g} available")
    return lines


def num_fitting(needs: Mapping[RoleName, Need], colocated: bool, available: Mapping[str, float]) -> int:
    """How many runs with these needs the resources have room for at the same time; at least 1."""
    reserved = [share(needs)] if colocated else list(needs.values())
    rooms = [
        int((available.get(resource, 0.0) + 1e-9) / total)
        for resource in ("CPU", "GPU")
        if (total := math.fsum(need.total()[resource] for need in reserved))
    ]
    return max(1, min(rooms, default=1))
