"""Shards on their way through stages: bounded, committed one by one, resumed where they stopped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from engine.errors import RoleError, SchemaError
from engine.loop.roles import Timed
from engine.loop.stages import Stage
from engine.loop.stream import Stream
from engine.metrics.monitor import Monitor
from engine.schema import AGREEMENT
from engine.store.run import RunStore

SHARDS = 6


class HeldPool:
    """Takes calls and answers them when the test says so; refuses more than it can hold."""

    def __init__(self, capacity: int, after: Callable[[], None] = lambda: None):
        self.capacity, self.after = capacity, after
        self.held: dict[str, Future] = {}
        self.seen: list[str] = []
        self.most = 0

    def submit(self, shard: str) -> Future:
        assert len(self.held) < self.capacity, "more was submitted than the pool said is worth submitting"
        future: Future = Future()
        self.held[shard] = future
        self.seen.append(shard)
        self.most = max(self.most, len(self.held))
        self.after()
        return future

    def answer(self, shard: str, error: Exception | None = None) -> None:
        future = self.held.pop(shard)
        future.set_exception(error) if error else future.set_result(Timed(float(len(self.seen)), 0.0, 1.0))

    def answer_all(self) -> None:
        for shard in list(self.held):
            self.answer(shard)


class Pools:
    """Roles of this test, one pool each."""

    def __init__(self, **pools: HeldPool):
        self.pools = pools

    def capacity(self, role: str) -> int:
        return self.pools[role].capacity


class AddOne(Stage[float]):
    """Adds 1 to `agreements`."""

    schema = reads_schema = AGREEMENT
    policy = None

    def __init__(self, name: str, reads: str):
        self.name = self.role = name
        self.reads = reads

    def submit(self, roles: Pools, table: pa.Table, shard: int) -> Future:
        return roles.pools[self.role].submit(table["prompt_id"][0].as_py())

    def finish(self, table: pa.Table, result: float) -> pa.Table:
        return table.set_column(1, "agreements", pa.array([table["agreements"][0].as_py() + 1.0]))

    def counts(self, table: pa.Table, result: float) -> dict[str, int]:
        return {"rows": table.num_rows, "odd": int(table["prompt_id"][0].as_py()) % 2}

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"rows": table.num_rows}


STAGES = [AddOne("first", "given"), AddOne("second", "first")]


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture
def store(tmp_path: Path):
    with RunStore(tmp_path) as store:
        for shard in range(SHARDS):
            row = {"prompt_id": [str(shard)], "agreements": [0.0], "comparable": pa.array([1], pa.int32())}
            store.commit(0, "given", shard, pa.table(row), AGREEMENT)
        yield store


@pytest.fixture
def stream(store: RunStore):
    with Monitor(store.folder, console=Console(quiet=True)) as monitor:
        yield Stream(store, monitor, 0, SHARDS)


def values(store: RunStore, name: str) -> list[float]:
    return [table["agreements"][0].as_py() for table in store.tables(0, name, AGREEMENT)]


def eager(capacity: int) -> HeldPool:
    """A pool that answers as soon as it is full, and answers the rest when no more calls come."""
    pool = HeldPool(capacity)
    pool.after = pool.answer_all
    return pool


def test_every_shard_goes_through_every_stage(store, stream):
    stream.run(STAGES, Pools(first=eager(1), second=eager(1)))
    assert values(store, "first") == [1.0] * SHARDS
    assert values(store, "second") == [2.0] * SHARDS


def test_what_a_stage_counts_is_committed_with_its_shards(store, stream):
    stream.run(STAGES, Pools(first=eager(1), second=eager(1)))
    assert store.counts(0, "first") == {"rows": SHARDS, "odd": SHARDS // 2}
    assert store.counts(0, "given") == store.counts(1, "first") == {}


@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_no_pool_holds_more_than_its_capacity_and_each_is_kept_full(store, stream, capacity):
    first, second = HeldPool(capacity), HeldPool(1)

    def answer_when_full() -> None:
        if len(first.held) == capacity:
            first.answer(next(iter(first.held)))

    def empty_the_first_at_the_end() -> None:
        second.answer_all()
        if len(first.seen) == SHARDS:
            first.answer_all()

    first.after, second.after = answer_when_full, empty_the_first_at_the_end
    stream.run(STAGES, Pools(first=first, second=second))
    assert first.most == capacity
    assert second.most == 1
    assert values(store, "second") == [2.0] * SHARDS


def test_a_shard_is_scored_before_the_last_one_is_generated(store, stream):
    first, second = eager(1), eager(1)
    order: list[str] = []
    first.after = lambda: (order.append(f"first {first.seen[-1]}"), first.answer_all())
    second.after = lambda: (order.append(f"second {second.seen[-1]}"), second.answer_all())
    stream.run(STAGES, Pools(first=first, second=second))
    assert order.index("second 0") < order.index(f"first {SHARDS - 1}")


def test_a_shard_that_is_slow_holds_up_no_other(store, stream):
    """Shard 0 is answered only when all others have passed both stages."""
    first, second = HeldPool(2), eager(2)

    def others_first() -> None:
        for shard in [s for s in first.held if s != "0"]:
            first.answer(shard)

    def let_it_go() -> None:
        second.answer_all()
        if len(second.seen) == SHARDS - 1 and "0" in first.held:
            first.answer("0")

    first.after, second.after = others_first, let_it_go
    stream.run(STAGES, Pools(first=first, second=second))
    assert second.seen[-1] == "0"
    assert values(store, "second") == [2.0] * SHARDS


def test_what_is_committed_is_not_computed_again(store, stream):
    for name, shard in (("first", 0), ("first", 1), ("second", 1)):
        row = {"prompt_id": [str(shard)], "agreements": [7.0], "comparable": pa.array([1], pa.int32())}
        store.commit(0, name, shard, pa.table(row), AGREEMENT)
    first, second = eager(1), eager(1)
    stream.run(STAGES, Pools(first=first, second=second))
    assert sorted(first.seen) == ["2", "3", "4", "5"]
    assert sorted(second.seen) == ["0", "2", "3", "4", "5"]
    assert values(store, "second") == [8.0, 7.0, 2.0, 2.0, 2.0, 2.0]


def test_a_finished_stream_submits_nothing(store, stream):
    stream.run(STAGES, Pools(first=eager(2), second=eager(2)))
    idle = HeldPool(0)
    stream.run(STAGES, Pools(first=idle, second=idle))
    assert idle.seen == []
    assert not any(stream.missing(STAGES))


def test_the_first_error_ends_the_stream_committed_shards_stay_and_the_rest_is_cancelled(store, stream):
    first, second = HeldPool(2), eager(1)
    waiting: list[Future] = []

    def fail_on_the_fourth() -> None:
        if first.seen[-1] == "3":
            waiting.extend(future for shard, future in first.held.items() if shard != "3")
            first.answer("3", RoleError("generator 0 died"))
        elif len(first.held) == 2 or first.seen[-1] == "0":
            first.answer(next(iter(first.held)))

    first.after = fail_on_the_fourth
    with pytest.raises(RoleError, match="generator 0 died"):
        stream.run(STAGES, Pools(first=first, second=second))
    done = store.shards(0, "first")
    assert done and 3 not in done
    assert all(future.cancelled() for future in waiting)

    again, rest = eager(1), eager(1)
    stream.run(STAGES, Pools(first=again, second=rest))
    assert sorted(again.seen) == [str(s) for s in range(SHARDS) if s not in done]
    assert values(store, "second") == [2.0] * SHARDS


def test_an_answer_that_may_not_be_used_is_not_committed(store, stream):
    class Refuse(AddOne):
        def finish(self, table: pa.Table, result: float) -> pa.Table:
            raise SchemaError("answered something else")

    with pytest.raises(SchemaError, match="answered something else"):
        stream.run([Refuse("first", "given")], Pools(first=eager(1)))
    assert store.shards(0, "first") == []
