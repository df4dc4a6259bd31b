"""The pools of a run and the switch between them.

`prepare` is where weights are delivered and where, if roles take turns, one rests before the next one
works. Knows the roles' methods by name; knows nothing of tables, algorithms or files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from cluster.placement import Placement
from cluster.pool import Group, Pool
from engine.loop.roles import Stage
from engine.maths.probe import ProbeBatch
from engine.store.run import Policy


class ClusterRoles:
    """Implements engine.loop.roles.Roles over pools, side by side or in turns."""

    def __init__(
        self,
        pools: Mapping[str, Pool | Group],
        *,
        turns: bool,
        probe: ProbeBatch,
        note: Callable[[str], None],
        seal: Callable[[str, str], None],
        placement: Placement | None = None,
    ):
        self._pools, self._turns, self._probe, self._note = pools, turns, probe, note
        self._seal = seal
        self._placement = placement
        self._ready: dict[str, int] = {}
        """role -> version of the policy it was prepared for; absent: at rest. Two versions may have one digest."""

    def pool(self, role: str) -> Pool | Group:
        return self._pools[role]

    def together(self, stages: Sequence[Stage]) -> list[Sequence[Stage]]:
        if not self._turns:
            return [stages]
        return [list(group) for _, group in itertools.groupby(stages, key=lambda stage: stage.role)]

    def prepare(self, roles: Sequence[str], policy: Policy) -> None:
        if self._turns:
            for role in [r for r in self._ready if r not in roles]:
                self._rest(role)
        for role in roles:
            if self._ready.get(role) != policy.version:
                getattr(self, f"_prepare_{role}")(policy)
                self._ready[role] = policy.version

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
            "deliver", str(policy.folder), policy.digest, batch.prompt_token_ids, batch.answer_token_ids, policy.probe
        )
        many = "1 generator; its" if len(gaps) == 1 else f"{len(gaps)} generators; their"
        self._note(
            f"version {policy.version} ({policy.digest[:12]}) is served by {many} log-probabilities differ from the "
            f"learner's by at most {max(gaps):.1e} nats per token"
        )

    def _prepare_scorer(self, policy: Policy) -> None:
        self._start("scorer")

    def _prepare_evaluator(self, policy: Policy) -> None:
        self._start("evaluator")

    def _prepare_learner(self, policy: Policy) -> None:
        self._pools["learner"].tell("open", str(policy.folder))

    def _start(self, role: str) -> None:
        """Load the scorers; all replicas, in all sessions of a run, must be the same one."""
        if role not in self._ready:
            for identity in self._pools[role].tell("identify"):
                self._seal(role, identity)

    def _rest(self, role: str) -> None:
        """Free what the role holds: by sleeping where its actors may stay, else by ending them."""
        del self._ready[role]
        pool = self._pools[role]
        if self._placement is None or self._placement.sleeps:
            pool.ask("sleep")
        else:
            pool.retire()
