"""Pool: replicas that take calls from one queue. Group: ranks that make every call together.

Both return futures, replace dead replicas, replay calls to the replacement to restore its state, and try a failed call
again a bounded number of times. Local and remote replicas use the same code.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from cluster.runtime.replica import Call, Replica, ReplicaDied, call_of
from engine.errors import DeadlineError, RoleError
from engine.loop.roles import Timed

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Spawn = Callable[[int], Replica]
"""Starts replica (or rank) `index`; returns it when it is running."""

QUEUED = 2
"""Calls queued per pool beyond the running ones, so that a replica that finishes has a next call at once."""


@dataclass(frozen=True)
class Limits:
    """How long a call may take, how often it is tried again, and the function that reports retries."""

    deadline_s: float
    max_retries: int
    note: Callable[[str], None] = lambda text: None


class Replay:
    """The calls that a replacement gets before it serves: the last call of each method, in order."""

    def __init__(self, order: Sequence[Callable[..., Any]]):
        """`order`: the methods, each after those that it depends on."""
        self._order = [method.__name__ for method in order]
        self.calls: list[Call[Any]] = []

    def void(self, method: str) -> None:
        """Drop the kept call of `method`, and those of the later methods, which depend on it."""
        position = self._order.index(method)
        self.calls = [kept for kept in self.calls if self._order.index(kept.method) < position]

    def add(self, call: Call[Any]) -> None:
        """Keep `call` in place of what it voids."""
        self.void(call.method)
        self.calls.append(call)


@dataclass
class _Task:
    call: Call[Any]
    queue: deque[_Task]
    future: Future[Timed[Any]] = field(default_factory=Future)
    deaths: int = 0


class StartError(DeadlineError):
    """A replica did not start within its deadline, most often because the cluster has no room for it."""


def _end(task: _Task, outcome: Timed[Any] | BaseException) -> None:
    """Set the result or the error of the task, unless it was cancelled."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            task.future.set_exception(outcome)
        else:
            task.future.set_result(outcome)


class Workers(ABC, Generic[R]):
    """Base of Pool and Group: calls to all replicas, and their replay to replacements."""

    capacity: int

    def __init__(self, replayed: Sequence[Callable[..., Any]]) -> None:
        self._replay = Replay(replayed)

    @abstractmethod
    def submit(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[Timed[T]]:
        """Queue a call."""

    def call_all(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call every replica (every rank) and wait for all."""
        return self._call_all(call_of(method, *args, **kwargs))

    def broadcast(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call every replica (every rank), wait for all, and replay the call to replacements."""
        call = call_of(method, *args, **kwargs)
        self._replay.void(call.method)  # a replacement that joins now gets this call itself, not its predecessor's
        values = self._call_all(call)
        self._replay.add(call)
        return values

    def replay(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Replay this call to replacements from now on, without making it."""
        self._replay.add(call_of(method, *args, **kwargs))

    @abstractmethod
    def _call_all(self, call: Call[T]) -> list[T]: ...

    @abstractmethod
    def retire(self) -> None:
        """End all replicas; the pool stays open. The next call starts new replicas without any replay."""

    @abstractmethod
    def close(self) -> None:
        """End all replicas; calls that are queued or running fail."""


class Pool(Workers[R]):
    """`num_replicas` replicas of one role; a thread per replica takes calls from one queue."""

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        num_replicas: int,
        limits: Limits,
        replayed: Sequence[Callable[..., Any]] = (),
    ):
        super().__init__(replayed)
        self.name, self._spawn, self._limits = name, spawn, limits
        self.capacity = num_replicas + QUEUED
        self._shared: deque[_Task] = deque()
        self._own: list[deque[_Task]] = [deque() for _ in range(num_replicas)]
        self._given_up: set[int] = set()
        self._wake = threading.Condition()
        self._closed = False
        self.replicas: list[Replica | None] = [None] * num_replicas
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"{name}-{i}", daemon=True) for i in range(num_replicas)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[Timed[T]]:
        """Queue a call for the first replica that is free."""
        return self._put(self._shared, call_of(method, *args, **kwargs))

    def _call_all(self, call: Call[T]) -> list[T]:
        """Return one result per replica, without those that were given up."""
        with self._wake:
            futures = [self._put(queue, call) for i, queue in enumerate(self._own) if i not in self._given_up]
        values = []
        for future in futures:
            with contextlib.suppress(CancelledError):
                values.append(future.result().value)
        if not values:
            raise RoleError(f"{self.name}: this pool was closed during {call.method}")
        return values

    def retire(self) -> None:
        self._replay.calls.clear()
        for index in range(len(self.replicas)):
            self._remove(index)

    def close(self) -> None:
        with self._wake:
            self._closed = True
            for queue in (self._shared, *self._own):
                while queue:
                    queue.popleft().future.cancel()
            self._wake.notify_all()
        self.retire()
        for thread in self._threads:
            thread.join(timeout=10)

    def _put(self, queue: deque[_Task], call: Call[T]) -> Future[Timed[T]]:
        task = _Task(call, queue)
        with self._wake:
            if self._closed:
                raise RoleError(f"{self.name}: this pool is closed")
            queue.append(task)
            self._wake.notify_all()
        return task.future

    def _next(self, index: int) -> _Task | None:
        """Wait for this replica's next task; tasks for it alone come first. Returns None when the pool is closed."""
        with self._wake:
            while not self._closed:
                queue = self._own[index] or self._shared
                if queue:
                    return queue.popleft()
                self._wake.wait()
            return None

    def _work(self, index: int) -> None:
        while index not in self._given_up and (task := self._next(index)):
            if task.future.cancelled():
                continue
            try:
                self._serve(index, task)
            except BaseException as error:  # without a result or an error, the caller would wait for ever
                _end(task, error)

    def _serve(self, index: int, task: _Task) -> None:
        """Run one task. If the replica dies, the task goes back to the head of its queue."""
        start = time.monotonic()
        try:
            replica = self.replicas[index] or self._start(index)
            value = replica.call(task.call, self._limits.deadline_s)
        except StartError as error:
            self._give_up(index, task, error)
        except (ReplicaDied, DeadlineError) as error:
            self._remove(index)
            self._retry(task, error)
        else:
            _end(task, Timed(value, start, time.monotonic()))

    def _start(self, index: int) -> Replica:
        """Start a replica and replay the pool's calls to it."""
        try:
            replica = self._spawn(index)
        except DeadlineError as error:
            raise StartError(str(error)) from error
        try:
            for call in list(self._replay.calls):
                replica.call(call, self._limits.deadline_s)
        except BaseException:
            replica.kill()
            raise
        with self._wake:
            if not self._closed:
                self.replicas[index] = replica
                return replica
        replica.kill()
        raise RoleError(f"{self.name}: this pool was closed while a replica started")

    def _remove(self, index: int) -> None:
        replica, self.replicas[index] = self.replicas[index], None
        if replica:
            replica.kill()

    def _retry(self, task: _Task, error: RoleError) -> None:
        task.deaths += 1
        if task.deaths > self._limits.max_retries:
            times = f"{task.deaths} times, and each time its replica died or hung"
            raise RoleError(f"{self.name}: {task.call.method} failed {times}. Last: {error}")
        if self._closed:
            raise error
        self._limits.note(f"{error}; starting a replacement (try {task.deaths} of {self._limits.max_retries})")
        self._put_back(task)

    def _give_up(self, index: int, task: _Task, error: StartError) -> None:
        """Continue without a replica that cannot start, if another one runs; else count the task as failed."""
        if self._closed or not any(self.replicas):
            self._retry(task, error)
            return
        with self._wake:
            self._given_up.add(index)
            for own_task in (*self._own[index], *([task] if task.queue is self._own[index] else [])):
                own_task.future.cancel()
            self._own[index].clear()
        left = len(self.replicas) - len(self._given_up)
        self._limits.note(f"{error}; going on with {left} of {len(self.replicas)} replicas")
        if task.queue is self._shared:
            self._put_back(task)

    def _put_back(self, task: _Task) -> None:
        with self._wake:
            if self._closed:
                task.future.cancel()
                return
            task.queue.appendleft(task)
            self._wake.notify_all()


class Rank(Protocol):
    """The methods with which the ranks of a group connect to each other."""

    def rendezvous(self) -> tuple[str, int]:
        """Return host and port where the ranks can connect; called on rank 0."""

    def join(self, host: str, port: int, timeout_s: float) -> None:
        """Connect to the other ranks there."""


class Group(Workers[R]):
    """Ranks in lock-step: all make each call together. If one dies, all are replaced and the calls are replayed."""

    capacity = 1 + QUEUED

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        num_ranks: int,
        limits: Limits,
        replayed: Sequence[Callable[..., Any]] = (),
    ):
        super().__init__(replayed)
        self.name, self._spawn, self._num_ranks, self._limits = name, spawn, num_ranks, limits
        self.ranks: list[Replica] = []
        self._closed = False
        self._queue = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._calls = ThreadPoolExecutor(max_workers=num_ranks, thread_name_prefix=f"{name}-rank")

    def submit(self, method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[Timed[T]]:
        """Queue a call for all ranks; the result is that of rank 0."""
        call = call_of(method, *args, **kwargs)
        return self._queue.submit(lambda: self._retry_call(call)[0])

    def _call_all(self, call: Call[T]) -> list[T]:
        return [result.value for result in self._queue.submit(self._retry_call, call).result()]

    def retire(self) -> None:
        self._replay.calls.clear()
        self._queue.submit(self._end_ranks).result()

    def close(self) -> None:
        self._closed = True
        self._queue.shutdown(wait=False, cancel_futures=True)
        self._end_ranks()
        self._calls.shutdown(wait=False, cancel_futures=True)

    def _retry_call(self, call: Call[T]) -> list[Timed[T]]:
        """Make the call. If a rank dies, restart the group and make the call again."""
        for attempt in range(self._limits.max_retries + 1):
            try:
                if not self.ranks:
                    self._assemble()
                return self._all(call)
            except (ReplicaDied, DeadlineError) as error:
                self._end_ranks()
                if self._closed:
                    raise
                last = error
                self._limits.note(f"{error}; restarting the group (try {attempt + 1} of {self._limits.max_retries})")
        raise RoleError(
            f"{self.name}: {call.method} failed {attempt + 1} times, and each time the group broke. Last: {last}"
        )

    def _assemble(self) -> None:
        """Start every rank, connect them, and replay the group's calls."""
        starting = [self._calls.submit(self._spawn, rank) for rank in range(self._num_ranks)]
        wait(starting)
        self.ranks = [future.result() for future in starting if not future.exception()]
        for future in starting:
            future.result()  # raises if a rank did not start; the caller then ends the others
        if self._closed:
            raise ReplicaDied(f"{self.name}: the group was closed while it started")
        self._connect()
        for call in self._replay.calls:
            self._all(call)

    def _connect(self) -> None:
        """Connect all ranks at an address that rank 0 chooses. A failure (the port may be taken) is tried again."""
        try:
            host, port = self.ranks[0].call(call_of(Rank.rendezvous), self._limits.deadline_s)
            self._all(call_of(Rank.join, host, port, self._limits.deadline_s))
        except RoleError as error:
            raise ReplicaDied(f"{self.name}: the ranks did not connect to each other: {error}") from error

    def _all(self, call: Call[T]) -> list[Timed[T]]:
        """Make one call on every rank. A death is raised before other errors, which may be its consequences."""
        start = time.monotonic()
        futures = [self._calls.submit(rank.call, call, self._limits.deadline_s) for rank in self.ranks]
        while pending := wait(futures, timeout=1.0).not_done:
            if any(f.done() and f.exception() for f in futures):
                wait(pending, timeout=FOLLOWING_ERRORS_S)  # the others notice a broken collective by then, or never
                break
        errors = [error for f in futures if f.done() and (error := f.exception())]
        unfinished = [f for f in futures if not f.done()]
        deaths = [error for error in errors if isinstance(error, ReplicaDied)]
        if unfinished and not deaths:
            reason = f"{errors[0]}" if errors else "without an error"
            raise ReplicaDied(f"{self.name}: {len(unfinished)} ranks did not return from {call.method}: {reason}")
        for error in deaths or errors:
            raise error
        end = time.monotonic()
        return [Timed(f.result(), start, end) for f in futures]

    def _end_ranks(self) -> None:
        ranks, self.ranks = self.ranks, []
        for rank in ranks:
            rank.kill()


FOLLOWING_ERRORS_S = 20.0
"""How long the other ranks may take to notice that one rank failed."""
