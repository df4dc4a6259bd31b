"""Shards flow through stages; each result is committed as soon as it is computed.

    shards -> stage 0 -> commit -> stage 1 -> commit -> ...

A shard enters a stage as soon as the stage before has committed it, independently of other shards, so stages overlap
where their roles have hardware of their own. The capacity of each pool bounds the work in flight; shards between two
stages are on disk. Resuming is no special case: a shard that a stage has committed is not submitted to it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import pyarrow as pa

from engine.loop.roles import Roles, Timed
from engine.loop.spending import spent
from engine.loop.stages import Stage
from engine.metrics.monitor import Monitor
from engine.store.run import RunStore


class Stream:
    """Runs the shards of one iteration through some stages."""

    def __init__(self, store: RunStore, monitor: Monitor, iteration: int, num_shards: int):
        self._store, self._monitor, self._iteration = store, monitor, iteration
        self._num_shards = num_shards

    def run(self, stages: Sequence[Stage[Any]], roles: Roles) -> None:
        """Run every shard through all stages. Raises the first error; what is committed stays committed."""
        ready = self.missing(stages)
        self._announce(stages, ready)
        running: dict[Future[Timed[Any]], tuple[int, int, pa.Table]] = {}
        try:
            while running or any(ready):
                for index, stage in enumerate(stages):
                    free = self._capacity(stage, roles) - sum(i == index for i, _, _ in running.values())
                    for _ in range(min(free, len(ready[index]))):
                        shard = ready[index].popleft()
                        table = self._input(stage, shard)
                        running[stage.submit(roles, table, shard)] = (index, shard, table)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: running[future][:2]):
                    index, shard, table = running.pop(future)
                    self._commit(stages[index], shard, table, future.result())
                    if index + 1 < len(stages):
                        ready[index + 1].append(shard)
        finally:
            for future in running:
                future.cancel()

    def missing(self, stages: Sequence[Stage[Any]]) -> list[deque[int]]:
        """For each stage the shards whose input is committed and whose output is not."""
        ready: list[deque[int]] = [deque() for _ in stages]
        for shard in range(self._num_shards):
            done = [self._store.has(self._iteration, stage.name, shard) for stage in stages]
            if not all(done):
                ready[done.index(False)].append(shard)
        return ready

    def _announce(self, stages: Sequence[Stage[Any]], ready: Sequence[deque[int]]) -> None:
        for index, stage in enumerate(stages):
            num_missing = sum(len(queue) for queue in ready[: index + 1])
            self._monitor.expect(stage.name, self._num_shards, self._num_shards - num_missing)

    def _capacity(self, stage: Stage[Any], roles: Roles) -> int:
        return roles.capacity(stage.role) if stage.role else 1

    def _input(self, stage: Stage[Any], shard: int) -> pa.Table:
        iteration = self._iteration if stage.reads_iteration is None else stage.reads_iteration
        return self._store.read(iteration, stage.reads, shard, stage.reads_schema)

    def _commit(self, stage: Stage[Any], shard: int, table: pa.Table, result: Timed[Any]) -> None:
        output = stage.finish(table, result.value)
        counts = stage.counts(table, result.value) | spent(result.value)
        self._store.commit(self._iteration, stage.name, shard, output, stage.schema, of=stage.of, counts=counts)
        self._monitor.shard_done(stage.name, result.start, result.end, stage.role, **stage.amounts(output))


def overlapping(stages: Sequence[Stage[Any]], colocated: bool) -> list[list[Stage[Any]]]:
    """Split stages, in dataflow order, into groups that may run at the same time.

    In a group no role needs two versions of the policy. Where roles are colocated, a group has one role.
    """
    groups: list[list[Stage[Any]]] = []
    for stage in stages:
        if groups and all(_may_overlap(stage, other, colocated) for other in groups[-1]):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _may_overlap(one: Stage[Any], other: Stage[Any], colocated: bool) -> bool:
    if one.role is None or other.role is None:
        return True
    return one.policy == other.policy if one.role == other.role else not colocated
