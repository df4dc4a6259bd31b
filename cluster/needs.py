"""What each role asks of a cluster, and a clear word when that is more than there is.

Plain arithmetic that needs no Ray, so a plan can be made before anything is imported or connected.
Knows nothing of what roles do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

ADVICE = "\nLower num_replicas, cpus or gpus, add nodes, or let roles take turns: cluster.placement=turns"
"""The ways out."""


@dataclass(frozen=True)
class Need:
    """What one role asks for."""

    num_replicas: int
    cpus: float
    gpus: float
    strategy: str = "SPREAD"
    """SPREAD replicas that work alone; PACK ranks that talk to each other."""

    def total(self) -> dict[str, float]:
        return {"CPU": self.num_replicas * self.cpus, "GPU": self.num_replicas * self.gpus}


def share(needs: Mapping[str, Need]) -> Need:
    """The bundles that serve every role in turn."""
    return Need(
        num_replicas=max(n.num_replicas for n in needs.values()),
        cpus=max(n.cpus for n in needs.values()),
        gpus=max(n.gpus for n in needs.values()),
        strategy="PACK",
    )


def shortages(needs: Mapping[str, Need], turns: bool, available: Mapping[str, float]) -> list[str]:
    """One sentence for each resource of which the roles want more than the cluster has."""
    wanted = [share(needs)] if turns else list(needs.values())
    lines = []
    for resource in ("CPU", "GPU"):
        total = math.fsum(need.total()[resource] for need in wanted)
        if total > available.get(resource, 0.0) + 1e-9:
            parts = ", ".join(f"{role} {n.total()[resource]:g}" for role, n in needs.items() if n.total()[resource])
            size = wanted[0].total()[resource] / wanted[0].num_replicas
            shape = f"{wanted[0].num_replicas} bundles of {size:g} that serve all in turn: " if turns else ""
            lines.append(f"{total:g} {resource}s wanted ({shape}{parts}), {available.get(resource, 0.0):g} there")
    return lines
