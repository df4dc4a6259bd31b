"""Pools and groups: one contract, for replicas in this process and for replicas in Ray actors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.runtime.pool import Group, Limits, Pool, Workers
from cluster.runtime.replica import Call, LocalReplica, Replica, ReplicaDied
from engine.errors import DataError, DeadlineError, RoleError, StoreError
from tests.cluster.runtime.counter import Counter
from tests.cluster.runtime.drivers import until

Spawn = Callable[[int], Replica]
REPLAYED = (Counter.learn, Counter.relearn)
DEADLINE_S = 60.0


def local(index: int) -> Replica:
    return LocalReplica(f"counter {index}", Counter)


@pytest.fixture(scope="module")
def ray_spawn() -> Iterator[Spawn]:
    from cluster.runtime.replica import RayReplica
    from cluster.runtime.session import ray_session
    from engine.config.run import ClusterConfig

    with ray_session(ClusterConfig()):

        def spawn(index: int) -> Replica:
            replica = RayReplica(f"counter {index}", Counter, {"num_cpus": 0.1})
            replica.await_start(DEADLINE_S)
            return replica

        yield spawn


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.real)])
def spawn(request: pytest.FixtureRequest) -> Spawn:
    return local if request.param == "local" else request.getfixturevalue("ray_spawn")


@pytest.fixture
def pool(spawn: Spawn) -> Iterator[Pool]:
    made = Pool("counters", spawn, 2, Limits(DEADLINE_S, max_retries=2), REPLAYED)
    yield made
    made.close()


def test_every_shard_is_answered_exactly_once(pool: Pool) -> None:
    futures = [pool.submit(Counter.double, pa.table({"x": [i]})) for i in range(20)]
    assert [f.result(DEADLINE_S).value["x"].to_pylist() for f in futures] == [[2 * i] for i in range(20)]


def test_an_answer_says_when_it_was_worked_on(pool: Pool) -> None:
    answer = pool.submit(Counter.recall).result(DEADLINE_S)
    assert 0 < answer.start <= answer.end


def test_a_broadcast_reaches_every_replica(pool: Pool) -> None:
    assert len(pool.broadcast(Counter.learn, 3)) == 2
    assert pool.call_all(Counter.recall) == [[3], [3]]


def test_an_error_of_the_role_arrives_as_itself_and_is_not_tried_again(pool: Pool) -> None:
    with pytest.raises(DataError, match="row 7 is not a prompt"):
        pool.submit(Counter.refuse).result(DEADLINE_S)


def test_any_other_exception_arrives_named_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(RoleError, match=r"counter \d: stumble failed: KeyError: 'row 7'(.|\n)*in stumble"):
        pool.submit(Counter.stumble).result(DEADLINE_S)


def test_a_retired_pool_starts_again_without_replay(pool: Pool) -> None:
    pool.broadcast(Counter.learn, 3)
    pool.retire()
    assert pool.call_all(Counter.recall) == [[], []]


def test_a_closed_pool_refuses_calls(spawn: Spawn) -> None:
    made = Pool("counters", spawn, 1, Limits(DEADLINE_S, 0), REPLAYED)
    made.close()
    with pytest.raises(RoleError, match="closed"):
        made.submit(Counter.recall)


class DyingOnce:
    """A replica that dies in its first call of `double`, then stays dead."""

    def __init__(self, deaths: list[int], index: int):
        self._role, self._deaths, self._dead = Counter(), deaths, False

    def call(self, call: Call[Any], deadline_s: float) -> Any:
        if self._dead or (call.method == "double" and self._deaths):
            self._dead = True
            self._deaths and self._deaths.pop()
            raise ReplicaDied("counter: its process ended")
        return getattr(self._role, call.method)(*call.args, **call.kwargs)

    def kill(self) -> None:
        self._dead = True


def test_calls_are_replayed_to_a_replacement_before_it_serves() -> None:
    notes: list[str] = []
    pool = Pool("counters", partial(DyingOnce, [1]), 1, Limits(DEADLINE_S, 2, notes.append), REPLAYED)
    pool.broadcast(Counter.learn, 1)
    pool.broadcast(Counter.relearn, 2)
    pool.broadcast(Counter.learn, 3)  # in place of the first one; what built on that is dropped
    assert pool.submit(Counter.double, pa.table({"x": [4]})).result(DEADLINE_S).value["x"].to_pylist() == [8]
    assert pool.submit(Counter.recall).result(DEADLINE_S).value == [3]
    assert notes == ["counter: its process ended; starting a replacement (try 1 of 2)"]
    pool.close()


def test_a_call_that_kills_every_replica_is_given_up_by_name() -> None:
    pool = Pool("counters", partial(DyingOnce, [1, 1, 1]), 2, Limits(DEADLINE_S, 2), REPLAYED)
    with pytest.raises(RoleError, match="counters: double failed 3 times, and each time its replica died or hung"):
        pool.submit(Counter.double, pa.table({"x": [4]})).result(DEADLINE_S)
    assert pool.submit(Counter.recall).result(DEADLINE_S).value == []
    pool.close()


def test_a_group_answers_with_rank_0_and_restarts_as_a_whole() -> None:
    deaths = [1]
    group = Group("ranks", partial(DyingOnce, deaths), 3, Limits(DEADLINE_S, 1), REPLAYED)
    assert group.broadcast(Counter.learn, 5) == [os.getpid()] * 3
    assert group.submit(Counter.double, pa.table({"x": [4]})).result(DEADLINE_S).value["x"].to_pylist() == [8]
    assert group.call_all(Counter.recall) == [[5], [5], [5]]
    group.close()


class Crowded:
    """A cluster with room for some replicas; later ones wait for room until their deadline."""

    def __init__(self, room: int):
        self.room, self.living, self.lock = room, [], threading.Lock()

    def spawn(self, index: int) -> Replica:
        with self.lock:
            if len(self.living) >= self.room:
                raise DeadlineError(f"counter {index}: start took longer than its deadline of 1 s")
            self.living.append(index)
        return LocalReplica(f"counter {index}", Counter)


def test_a_pool_goes_on_without_a_replica_that_finds_no_room() -> None:
    notes: list[str] = []
    pool = Pool("counters", Crowded(room=1).spawn, 2, Limits(DEADLINE_S, 2, notes.append), REPLAYED)
    assert pool.submit(Counter.recall).result(DEADLINE_S).value == []
    assert len(pool.broadcast(Counter.learn, 3)) == 1
    assert pool.call_all(Counter.recall) == [[3]]
    futures = [pool.submit(Counter.double, pa.table({"x": [i]})) for i in range(9)]
    assert [f.result(DEADLINE_S).value["x"].to_pylist() for f in futures] == [[2 * i] for i in range(9)]
    assert len(notes) == 1 and notes[0].endswith("going on with 1 of 2 replicas")
    pool.close()


def test_a_pool_without_room_for_any_replica_fails_by_name() -> None:
    pool = Pool("counters", Crowded(room=0).spawn, 2, Limits(DEADLINE_S, 2), REPLAYED)
    with pytest.raises(RoleError, match=r"counters: recall failed 3 times(.|\n)*start took longer than its deadline"):
        pool.submit(Counter.recall).result(DEADLINE_S)
    pool.close()


def test_a_group_that_cannot_start_all_ranks_ends_those_that_started() -> None:
    made: list[DyingOnce] = []

    def spawn(rank: int) -> Replica:
        if rank == 1:
            raise DeadlineError("rank 1: start took longer than its deadline")
        made.append(DyingOnce([], rank))
        return made[-1]

    group = Group("ranks", spawn, 3, Limits(DEADLINE_S, 1), REPLAYED)
    with pytest.raises(RoleError, match="ranks: recall failed 2 times, and each time the group broke"):
        group.call_all(Counter.recall)
    assert len(made) == 4 and all(rank._dead for rank in made)
    group.close()


def test_a_disk_too_full_for_a_note_ends_the_call_instead_of_leaving_it_open() -> None:
    def full(text: str) -> None:
        raise StoreError("metrics.jsonl: No space left on device")

    pool = Pool("counters", partial(DyingOnce, [1]), 1, Limits(DEADLINE_S, 2, full), REPLAYED)
    with pytest.raises(StoreError, match="No space left"):
        pool.submit(Counter.double, pa.table({"x": [4]})).result(DEADLINE_S)
    pool.close()


class Busy:
    """A replica whose calls last until it is killed, as a Ray actor's do."""

    def __init__(self, index: int):
        self.killed, self.entered = threading.Event(), threading.Event()

    def call(self, call: Call[Any], deadline_s: float) -> Any:
        if call.method != "recall":
            return ("here", 1)
        self.entered.set()
        assert self.killed.wait(DEADLINE_S)
        raise ReplicaDied("counter: its process ended")

    def kill(self) -> None:
        self.killed.set()


@pytest.mark.parametrize("kind", [Pool, Group])
def test_closing_during_a_call_ends_it_and_starts_no_replica_again(kind: type) -> None:
    made: list[Busy] = []

    def spawn(index: int) -> Replica:
        made.append(Busy(index))
        return made[-1]

    workers: Workers[Counter] = kind("counters", spawn, 1, Limits(DEADLINE_S, max_retries=3))
    future = workers.submit(Counter.recall)
    until(lambda: made and made[0].entered.is_set(), "the call")
    workers.close()
    with pytest.raises(ReplicaDied):
        future.result(DEADLINE_S)
    assert len(made) == 1


@pytest.mark.real
def test_kill_9_costs_one_try_and_nothing_else(ray_spawn: Spawn, tmp_path: Path) -> None:
    notes: list[str] = []
    pool = Pool("counters", ray_spawn, 1, Limits(DEADLINE_S, 2, notes.append), REPLAYED)
    pool.broadcast(Counter.learn, 1)
    assert pool.submit(Counter.die_once, str(tmp_path / "marker")).result(DEADLINE_S).value == "alive"
    assert pool.submit(Counter.recall).result(DEADLINE_S).value == [1]
    assert len(notes) == 1 and "its process ended during die_once" in notes[0]
    pool.close()


@pytest.mark.real
def test_a_replica_that_hangs_is_replaced_at_its_deadline(ray_spawn: Spawn, tmp_path: Path) -> None:
    pool = Pool("counters", ray_spawn, 1, Limits(3.0, max_retries=1), REPLAYED)
    assert pool.submit(Counter.hang, str(tmp_path / "marker")).result(DEADLINE_S).value == "answered"
    pool.close()


@pytest.mark.real
def test_a_group_whose_rank_is_killed_starts_again_and_answers(ray_spawn: Spawn, tmp_path: Path) -> None:
    group = Group("ranks", ray_spawn, 2, Limits(DEADLINE_S, 1), REPLAYED)
    group.broadcast(Counter.learn, 5)
    assert group.submit(Counter.die_once, str(tmp_path / "marker")).result(DEADLINE_S).value == "alive"
    assert group.call_all(Counter.recall) == [[5], [5]]
    group.close()


def test_a_call_that_is_broadcast_anew_is_not_replayed_in_its_old_form_while_it_is_made() -> None:
    """What depends on the old call may be gone: after `open`, a checkpoint of the iteration before."""
    group = Group("ranks", partial(DyingOnce, []), 2, Limits(DEADLINE_S, 1), REPLAYED)
    group.broadcast(Counter.learn, 5)
    group.replay(Counter.relearn)  # type: ignore[call-arg]  # without its argument it fails in whoever replays it
    for rank in group.ranks:
        rank.kill()
    group.broadcast(Counter.learn, 6)
    assert group.call_all(Counter.recall) == [[6], [6]]
    group.close()
