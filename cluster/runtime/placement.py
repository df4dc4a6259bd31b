"""Which role gets which share of a connected Ray cluster.

Side by side, each role holds its own bundles. In turns, all roles share one set of bundles: with up to
one GPU per replica each actor holds a fraction and frees its memory by sleeping; with more, actors end
and start again, because Ray has no fractions of several GPUs. Knows nothing of what roles do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.plan.machines import ADVICE, Need, share, shortages
from engine.config.run import RoleName
from engine.errors import PlanError


class Placement:
    """The reserved bundles of a run on a connected Ray cluster."""

    def __init__(self, needs: Mapping[RoleName, Need], turns: bool, deadline_s: float):
        """Reserve, or raise PlanError naming what is missing."""
        self._needs, self._turns = needs, turns
        if short := shortages(needs, turns, ray.cluster_resources()):
            raise PlanError("the roles do not fit the cluster:\n" + "\n".join(f"  - {s}" for s in short) + ADVICE)
        groups = {"shared": share(needs)} if turns else needs
        self._groups = {name: self._reserve(name, need, deadline_s) for name, need in groups.items()}

    @property
    def sleeps(self) -> bool:
        """Whether a resting role stays as a sleeping actor (True) or ends (False)."""
        return all(need.gpus <= 1 for need in self._needs.values())

    def options(self, role: RoleName, index: int) -> dict[str, Any]:
        """Ray's options for replica `index` of a role."""
        group = self._groups["shared" if self._turns else role]
        need = self._needs[role]
        divisor = len(self._needs) if self._turns and self.sleeps else 1
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        options = {"num_cpus": need.cpus / divisor, "num_gpus": need.gpus / divisor, "scheduling_strategy": strategy}
        if not need.gpus and ray.cluster_resources().get("GPU"):
            # Ray leaves all GPUs visible to an actor that asks for none, and the roles use what they see.
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options

    def release(self) -> None:
        for group in self._groups.values():
            remove_placement_group(group)

    def _reserve(self, name: str, need: Need, deadline_s: float) -> PlacementGroup:
        wanted = {"CPU": need.cpus, "GPU": need.gpus}
        bundle = {resource: amount for resource, amount in wanted.items() if amount} or {"CPU": TOUCH}
        group = placement_group([bundle] * need.num_replicas, strategy=need.strategy, name=f"kumite-{name}")
        if not group.wait(timeout_seconds=deadline_s):
            remove_placement_group(group)
            raise PlanError(
                f"{name}: {need.num_replicas} bundles of {bundle} were not placed within {deadline_s:g} s; the cluster "
                f"has {ray.available_resources()} free now. Something else may hold it, or no single node fits a bundle"
            )
        return group


TOUCH = 0.001
"""Ray wants a bundle to hold something; roles that ask for nothing hold this much of a CPU."""
