"""The pools of a run, and which weights each of them has loaded.

`prepare` delivers weights. If roles are colocated, it first frees the memory of the roles that are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.runtime.placement import Placement
from cluster.runtime.pool import Group, Pool, Workers
from engine.errors import RoleError
from engine.loop.roles import Generator, Learner, RoleName, Scorer
from engine.loop.weight_probe import ProbeBatch
from engine.store.reader import Policy

T = TypeVar("T")


@dataclass(frozen=True)
class Pools:
    """One pool per role that is needed."""

    learner: Group[Learner] | None = None
    generator: Pool[Generator] | None = None
    scorer: Pool[Scorer] | None = None
    evaluator: Pool[Scorer] | None = None
    annotator: Pool[Scorer] | None = None

    def of(self, role: RoleName) -> Workers[Any]:
        pools: dict[RoleName, Workers[Any] | None] = {
            "learner": self.learner,
            "generator": self.generator,
            "scorer": self.scorer,
            "evaluator": self.evaluator,
            "annotator": self.annotator,
        }
        return required(pools[role], role)

    def close(self) -> None:
        for pool in (self.generator, self.scorer, self.evaluator, self.annotator, self.learner):
            if pool is not None:
                pool.close()


def required(pool: T | None, role: str) -> T:
    """Return `pool`. Raises RoleError if the run has no pool of this role."""
    if pool is None:
        raise RoleError(f"this run has no {role}: the algorithm of the config uses none")
    return pool


class ClusterRoles:
    """Implements engine.loop.roles.Roles over pools, disaggregated or colocated."""

    def __init__(
        self,
        pools: Pools,
        *,
        colocated: bool,
        policy_judges: bool,
        probe: ProbeBatch,
        note: Callable[[str], None],
        pin: Callable[[str, str], None],
        placement: Placement | None = None,
    ):
        """`policy_judges`: the generators are also the training scorer. `pin(name, identity)` raises on a change."""
        self._pools, self._probe, self._note, self._pin = pools, probe, note, pin
        self.colocated, self._policy_judges, self._placement = colocated, policy_judges, placement
        self._ready: dict[RoleName, int | None] = {}
        """Version of the policy that each role has loaded; None: the weights are of no version; absent: asleep.
        Not the digest, because two versions may have the same one."""

    @property
    def generator(self) -> Pool[Generator]:
        return required(self._pools.generator, "generator")

    @property
    def scorer(self) -> Pool[Scorer] | Pool[Generator]:
        return self.generator if self._policy_judges else required(self._pools.scorer, "scorer")

    @property
    def evaluator(self) -> Pool[Scorer] | Pool[Generator]:
        return self._pools.evaluator or self.scorer

    @property
    def annotator(self) -> Pool[Scorer] | Pool[Generator]:
        return self._pools.annotator or self.evaluator

    @property
    def learner(self) -> Group[Learner]:
        return required(self._pools.learner, "learner")

    def capacity(self, role: RoleName) -> int:
        return self._pools.of(role).capacity

    def prepare(self, policies: Mapping[RoleName, Policy | None]) -> None:
        if self.colocated:
            for role in [role for role in self._ready if role not in policies]:
                self._free(role)
        for role, policy in policies.items():
            holds_policy = role in ("generator", "learner")
            version = policy.version if policy and holds_policy else None
            if role not in self._ready or self._ready[role] != version:
                self._load(role, policy)
                self._ready[role] = version

    def invalidate(self, role: RoleName) -> None:
        self._ready[role] = None

    def open_learner(self, folder: str, digest: str) -> list[list[float]]:
        """Open the start model, version 0, in the learner; return its log-probabilities on the probe batch."""
        self.learner.broadcast(Learner.open, folder)
        self._ready["learner"] = 0
        probe = self._probe
        return self.learner.call_all(Learner.token_logps, probe.prompt_token_ids, probe.completion_token_ids)[0]

    def close(self) -> None:
        """End every replica and release the resources."""
        self._pools.close()
        if self._placement:
            self._placement.release()

    def _load(self, role: RoleName, policy: Policy | None) -> None:
        if role in ("scorer", "evaluator", "annotator"):
            self._identify(self._pools.of(role), role)
        elif policy is None:
            raise RoleError(f"{role}: a stage that uses it does not say which version of the policy it needs")
        elif role == "generator":
            self._deliver(policy)
        else:
            self.learner.broadcast(Learner.open, str(policy.folder), _base(policy), policy.version)

    def _deliver(self, policy: Policy) -> None:
        """Let every generator, later replacements too, load the weights and check them on the probe batch."""
        differences = self.generator.broadcast(
            Generator.deliver,
            str(policy.folder),
            policy.digest,
            self._probe.prompt_token_ids,
            self._probe.completion_token_ids,
            policy.probe_logps,
            _base(policy),
        )
        generators = "1 generator; its" if len(differences) == 1 else f"{len(differences)} generators; their"
        checked = (
            f"{generators} log-probabilities differ from the learner's by at most {max(differences):.1e} nats per token"
            if policy.probe_logps
            else f"{generators} log-probabilities are not checked, because no learner computed them"
        )
        self._note(f"version {policy.version} ({policy.digest[:12]}) is served by {checked}")
        if self._policy_judges:
            self._identify(self.generator, "scorer")

    def _identify(self, pool: Workers[Any], name: str) -> None:
        """Load a scorer. All its replicas, in all sessions of a run, must have the same identity."""
        for identity in pool.broadcast(Scorer.identify):
            self._pin(name, identity)

    def _free(self, role: RoleName) -> None:
        """Free the memory of a role: its actors sleep, or end where they cannot share their resources."""
        del self._ready[role]
        if self._placement is not None and not self._placement.sleeps:
            self._pools.of(role).retire()
        elif role == "learner":
            self.learner.call_all(Learner.sleep)
        else:
            self._pools.of(role).call_all(Scorer.sleep)


def _base(policy: Policy) -> str | None:
    return str(policy.base) if policy.base else None
