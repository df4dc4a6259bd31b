"""Reserves the resources of each role on a connected Ray cluster.

Disaggregated roles have bundles of their own. Colocated roles share one set of bundles: with up to one GPU per replica
each actor holds a fraction of a bundle and frees its memory by sleeping; with more GPUs actors end and start again,
because Ray has no fractions of several GPUs.
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

    def __init__(self, needs: Mapping[RoleName, Need], colocated: bool, deadline_s: float):
        """Reserve the bundles. Raises PlanError, naming the resources that are short."""
        self._needs, self._colocated = needs, colocated
        if short := shortages(needs, colocated, ray.cluster_resources()):
            raise PlanError("the roles do not fit the cluster:\n" + "\n".join(f"  - {s}" for s in short) + ADVICE)
        groups = {"shared": share(needs)} if colocated else needs
        self._groups = {name: self._reserve(name, need, deadline_s) for name, need in groups.items()}

    @property
    def sleeps(self) -> bool:
        """Whether the actors of an idle colocated role sleep (True) or end (False)."""
        return all(need.gpus <= 1 for need in self._needs.values())

    def options(self, role: RoleName, index: int) -> dict[str, Any]:
        """Ray's options for replica `index` of a role."""
        group = self._groups["shared" if self._colocated else role]
        need = self._needs[role]
        divisor = len(self._needs) if self._colocated and self.sleeps else 1
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        options = {"num_cpus": need.cpus / divisor, "num_gpus": need.gpus / divisor, "scheduling_strategy": strategy}
        if not need.gpus and ray.cluster_resources().get("GPU"):
            # To an actor that requests no GPU Ray leaves all of them visible, and the roles use every GPU they see.
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options

    def release(self) -> None:
        for group in self._groups.values():
            remove_placement_group(group)

    def _reserve(self, name: str, need: Need, deadline_s: float) -> PlacementGroup:
        resources = {"CPU": need.cpus, "GPU": need.gpus}
        bundle = {resource: amount for resource, amount in resources.items() if amount} or {"CPU": MIN_CPUS}
        group = placement_group([bundle] * need.num_replicas, strategy=need.strategy, name=f"kumite-{name}")
        if not group.wait(timeout_seconds=deadline_s):
            remove_placement_group(group)
            raise PlanError(
                f"{name}: {need.num_replicas} bundles of {bundle} were not placed within {deadline_s:g} s; the cluster "
                f"has {ray.available_resources()} free now. Another job may use the rest, or no node fits a bundle"
            )
        return group


MIN_CPUS = 0.001
"""CPUs reserved for a role that needs none, because Ray allows no empty bundle."""
