"""Runs the shards of an input through stages: the weights of each role are prepared, then the shards stream."""

from __future__ import annotations

from typing import Any

from engine.loop.roles import Roles
from engine.loop.stages import Stage
from engine.loop.stream import Stream, overlapping
from engine.metrics.monitor import Monitor
from engine.store.run import RunStore


class Flow:
    """The stages of one store over the roles."""

    def __init__(self, store: RunStore, roles: Roles, monitor: Monitor):
        self._store, self._roles, self._monitor = store, roles, monitor

    def run(self, t: int, stages: list[Stage[Any]], source: tuple[int, str]) -> None:
        """Run the shards of `source` (iteration, stage) through the stages, one group of stages after the other.

        t: the iteration, or the version of the policy, to which the output belongs. What is committed is not computed
        again, and a role without work is not prepared.
        """
        stream = Stream(self._store, self._monitor, t, num_shards=len(self._store.shards(*source)))
        for group in overlapping(stages, self._roles.colocated):
            first = next((index for index, shards in enumerate(stream.missing(group)) if shards), len(group))
            if working := {stage.role: stage.policy for stage in group[first:] if stage.role}:
                with self._monitor.timed("prepare"):
                    self._roles.prepare(working)
            stream.run(group, self._roles)
