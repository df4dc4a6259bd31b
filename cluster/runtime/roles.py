"""The pools of a run and the switch between them.

`prepare` is where weights are delivered and where, if roles take turns, one rests before the next one
works. Knows the roles' methods by name; knows nothing of tables, algorithms or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cluster.runtime.placement import Placement
from cluster.runtime.pool import Group, Pool
from engine.loop.roles import Stage
from engine.loop.weight_probe import ProbeBatch
from engine.store.run import Policy

HOLDERS = ("generator", "learner")
"""Roles that hold a policy; the others only need to be awake."""


class ClusterRoles:
    """Implements engine.loop.roles.Roles over pools, side by side or in turns."""

    def __init__(
        self,
        pools: Mapping[str, Pool | Group],
        *,
        turns: bool,
        probe: ProbeBatch,
        note: Callable[[str], None],
        pin: Callable[[str, str], None],
        placement: Placement | None = None,
        judges: bool = False,
    ):
        """`judges`: the generators are the scorer too."""
        self._pools, self._turns, self._probe, self._note = pools, turns, probe, note
        self._pin, self._judges = pin, judges
        self._placement = placement
        self._ready: dict[str, int | None] = {}
        """role -> version of the policy that it holds; None: of no one; absent: at rest. Two may have one digest."""

    def pool(self, role: str) -> Pool | Group:
        return self._pools[role]

    def together(self, stages: Sequence[Stage]) -> list[Sequence[Stage]]:
        groups: list[list[Stage]] = []
        for stage in stages:
            if groups and all(self._compatible(stage, other) for other in groups[-1]):
                groups[-1].append(stage)
            else:
                groups.append([stage])
        return list(groups)

    def _compatible(self, one: Stage, other: Stage) -> bool:
        """Whether both can work at the same time."""
        return one.policy == other.policy if one.role == other.role else not self._turns

    def prepare(self, policies: Mapping[str, Policy | None]) -> None:
        if self._turns:
            for role in [r for r in self._ready if r not in policies]:
                self._rest(role)
        for role, policy in policies.items():
            version = policy.version if policy and role in HOLDERS else None
            if role not in self._ready or self._ready[role] != version:
                getattr(self, f"_prepare_{role}")(policy)
                self._ready[role] = version

    def invalidate(self, role: str) -> None:
        self._ready[role] = None

    def open_learner(self, folder: str, digest: str) -> list[list[float]]:
        """Open the start model, version 0, in the learner; return its log-probabilities on the probe batch."""
        learner = self._pools["learner"]
        learner.tell("open", folder)
        self._ready["learner"] = 0
        return learner.ask("probe", self._probe.prompt_token_ids, self._probe.answer_token_ids)[0]

    def close(self) -> None:
        """End every replica and give the resources back."""
        for pool in self._pools.values():
            pool.close()
        if self._placement:
            self._placement.release()

    def _prepare_generator(self, policy: Policy) -> None:
        """Deliver the weights; every replica proves them on the probe batch, replacements too."""
        batch = self._probe
        gaps = self._pools["generator"].tell(
            "deliver",
            str(policy.folder),
            policy.digest,
            batch.prompt_token_ids,
            batch.answer_token_ids,
            policy.probe,
            _base(policy),
        )
        many = "1 generator; its" if len(gaps) == 1 else f"{len(gaps)} generators; their"
        self._note(
            f"version {policy.version} ({policy.digest[:12]}) is served by {many} log-probabilities differ from the "
            f"learner's by at most {max(gaps):.1e} nats per token"
        )
        if self._judges:
            self._identify("generator", "scorer")

    def _prepare_scorer(self, policy: None) -> None:
        self._identify("scorer", "scorer")

    def _prepare_evaluator(self, policy: None) -> None:
        self._identify("evaluator", "evaluator")

    def _prepare_learner(self, policy: Policy) -> None:
        self._pools["learner"].tell("open", str(policy.folder), _base(policy), policy.version)

    def _identify(self, role: str, name: str) -> None:
        """Load whoever scores; all replicas, in all sessions of a run, must be the same `name`."""
        for identity in self._pools[role].tell("identify"):
            self._pin(name, identity)

    def _rest(self, role: str) -> None:
        """Free what the role holds: by sleeping where its actors may stay, else by ending them."""
        del self._ready[role]
        pool = self._pools[role]
        if self._placement is None or self._placement.sleeps:
            pool.ask("sleep")
        else:
            pool.retire()


def _base(policy: Policy) -> str | None:
    return str(policy.base) if policy.base else None
