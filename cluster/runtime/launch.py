"""From a config to running pools: the class of each role, where it runs, and the time limits of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from actors.factories import Engines, Factory
from cluster.plan.plan import needs
from cluster.runtime.placement import Placement
from cluster.runtime.pool import Group, Limits, Pool
from cluster.runtime.replica import LocalReplica, RayReplica, Replica
from cluster.runtime.roles import ClusterRoles, Pools
from cluster.runtime.session import ray_session
from engine.config.run import RunConfig, Setup
from engine.config.scorer import ScorerConfig
from engine.loop.roles import REPLAYED, Learner, RoleName, Scorer
from engine.loop.weight_probe import ProbeBatch

Note = Callable[[str], None]
Pin = Callable[[str, str], None]
"""Takes (name, identity). Raises StoreError if the run began with another identity under this name."""


class Spawner(Protocol):
    """Starts replicas."""

    def spawn(self, role: RoleName, factory: Factory[Any], index: int) -> Replica:
        """Start replica (or rank) `index` of a role; returns when it runs."""


class LocalSpawner:
    """Starts replicas in this process."""

    def spawn(self, role: RoleName, factory: Factory[Any], index: int) -> Replica:
        return LocalReplica(f"{role} {index}", partial(factory.build, index))


class RaySpawner:
    """Starts replicas as Ray actors on the bundles of `placement`."""

    def __init__(self, placement: Placement, deadline_s: float):
        self._placement, self._deadline_s = placement, deadline_s

    def spawn(self, role: RoleName, factory: Factory[Any], index: int) -> Replica:
        options = self._placement.options(role, index)
        replica = RayReplica(f"{role} {index}", partial(factory.build, index), options)
        try:
            replica.await_start(self._deadline_s)
        except BaseException:
            replica.kill()
            raise
        return replica


@contextmanager
def launched(config: Setup, engines: Engines, probe: ProbeBatch, note: Note, pin: Pin) -> Iterator[ClusterRoles]:
    """Connect, reserve resources and build the pools, and end all of it on exit. Replicas start with a first call."""
    if config.cluster.backend == "local":
        yield from _roles(config, engines, LocalSpawner(), None, probe, note, pin)
        return
    with ray_session(config.cluster):
        deadline_s = config.cluster.start_deadline_s
        placement = Placement(needs(config), config.cluster.placement == "colocated", deadline_s)
        yield from _roles(config, engines, RaySpawner(placement, deadline_s), placement, probe, note, pin)


def _roles(
    config: Setup,
    engines: Engines,
    spawner: Spawner,
    placement: Placement | None,
    probe: ProbeBatch,
    note: Note,
    pin: Pin,
) -> Iterator[ClusterRoles]:
    """Yield the roles and close them afterwards."""
    roles = ClusterRoles(
        _pools(config, engines, spawner, note),
        colocated=config.cluster.placement == "colocated",
        policy_judges=config.policy_judges,
        probe=probe,
        note=note,
        pin=pin,
        placement=placement,
    )
    try:
        yield roles
    finally:
        roles.close()


def _pools(config: Setup, engines: Engines, spawner: Spawner, note: Note) -> Pools:
    cluster, pool_configs = config.cluster, config.pools

    def pool(role: RoleName, factory: Factory[Any]) -> Pool[Any]:
        limits = Limits(cluster.shard_deadline_s, cluster.max_retries, note)
        spawn = partial(spawner.spawn, role, factory)
        return Pool(role, spawn, pool_configs[role].num_replicas, limits, REPLAYED[role])

    def scorer(role: RoleName, section: ScorerConfig | None) -> Pool[Scorer] | None:
        return pool(role, engines.scorer(section, config.seed)) if section and role in pool_configs else None

    def learner(run: RunConfig) -> Group[Learner]:
        limits = Limits(cluster.step_deadline_s, cluster.max_retries, note)
        spawn = partial(spawner.spawn, "learner", engines.learner(run))
        return Group("learner", spawn, run.learner.num_ranks, limits, REPLAYED["learner"])

    return Pools(
        learner=learner(config) if isinstance(config, RunConfig) else None,
        generator=pool("generator", engines.generator(config)) if "generator" in pool_configs else None,
        scorer=scorer("scorer", config.scorer) if isinstance(config, RunConfig) else None,
        evaluator=scorer("evaluator", config.evaluator),
        annotator=scorer("annotator", config.annotator),
    )
