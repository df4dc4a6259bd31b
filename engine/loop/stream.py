"""Shards flow through stages; each result is committed the moment it exists.

    shards -> stage 0 -> commit -> stage 1 -> commit -> ...

A shard enters a stage as soon as the stage before has committed it, whatever the other shards do, so
stages overlap where there is hardware to overlap on. Work in flight is bounded by each pool's
capacity; what waits between stages waits on disk. Resume is no special case: a stage of a shard that
is committed is not submitted. Knows nothing of what the stages compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

import pyarrow as pa

from engine.loop.roles import Answered, Pool, Stage
from engine.metrics.monitor import Monitor
from engine.store.run import RunStore


class Stream:
    """The shards of one iteration on their way through some stages."""

    def __init__(self, store: RunStore, monitor: Monitor, iteration: int, num_shards: int):
        self._store, self._monitor, self._iteration = store, monitor, iteration
        self._num_shards = num_shards

    def run(self, stages: Sequence[Stage], pools: Sequence[Pool]) -> None:
        """Bring every shard through all stages. Raises the first error; what is committed stays."""
        ready = self.missing(stages)
        self._announce(stages, ready)
        running: dict[Future[Answered], tuple[int, int, pa.Table]] = {}
        try:
            while running or any(ready):
                for index, (stage, pool) in enumerate(zip(stages, pools, strict=True)):
                    busy = sum(i == index for i, _, _ in running.values())
                    while ready[index] and busy < pool.capacity:
                        shard = ready[index].popleft()
                        table = self._input(stage, shard)
                        running[stage.submit(pool, table, shard)] = (index, shard, table)
                        busy += 1
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: running[future][:2]):
                    index, shard, table = running.pop(future)
                    self._commit(stages[index], shard, table, future.result())
                    if index + 1 < len(stages):
                        ready[index + 1].append(shard)
        finally:
            for future in running:
                future.cancel()

    def missing(self, stages: Sequence[Stage]) -> list[deque[int]]:
        """For each stage the shards that can start there at once: input committed, output not."""
        ready: list[deque[int]] = [deque() for _ in stages]
        for shard in range(self._num_shards):
            done = [self._store.has(self._iteration, stage.name, shard) for stage in stages]
            if not all(done):
                ready[done.index(False)].append(shard)
        return ready

    def _announce(self, stages: Sequence[Stage], ready: Sequence[deque[int]]) -> None:
        for index, stage in enumerate(stages):
            todo = sum(len(queue) for queue in ready[: index + 1])
            self._monitor.expect(stage.name, self._num_shards, self._num_shards - todo)

    def _input(self, stage: Stage, shard: int) -> pa.Table:
        iteration = self._iteration if stage.source_iteration is None else stage.source_iteration
        return self._store.read(iteration, stage.source, shard, stage.source_schema)

    def _commit(self, stage: Stage, shard: int, given: pa.Table, answer: Answered) -> None:
        table = stage.finish(given, answer)
        self._store.commit(self._iteration, stage.name, shard, table, stage.schema)
        self._monitor.shard_done(stage.name, answer.start, answer.end, **stage.amounts(table))
