"""A pool of replicas that pull calls, and a group of ranks that make every call together.

Both answer through futures, replace what died, tell the replacement what its predecessor had been
told, and try the call again a bounded number of times. Both kinds of replica, local and remote, go
through the same code. Knows nothing of what roles do.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from cluster.runtime.replica import Replica, ReplicaDied
from engine.errors import DeadlineError, RoleError

Spawn = Callable[[int], Replica]
"""Starts replica (or rank) `index` and returns it when it runs."""

QUEUED = 2
"""Calls waiting per pool beyond those being worked on, so that a replica that finishes finds the next one."""


@dataclass(frozen=True)
class Call:
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """The result of a call and the interval, on the driver's monotonic clock, in which it was worked on."""

    value: Any
    start: float
    end: float


@dataclass(frozen=True)
class Limits:
    """How long a call may take, how often it is tried again, and who hears of it."""

    deadline_s: float
    max_retries: int
    note: Callable[[str], None] = lambda text: None


class Memory:
    """The calls that a replacement must hear, in order, before it may serve."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(self, call: Call) -> None:
        """A call of the same method takes the former's place and forgets what came after it."""
        index = next((i for i, known in enumerate(self.calls) if known.method == call.method), len(self.calls))
        self.calls[index:] = [call]


@dataclass
class _Task:
    call: Call
    queue: deque[_Task]
    future: Future[Answer] = field(default_factory=Future)
    deaths: int = 0


class StartError(DeadlineError):
    """A replica did not start within its deadline: most often there is no room for it in the cluster."""


def _end(task: _Task, outcome: Answer | BaseException) -> None:
    """Give the task its ending, unless it was cancelled meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            task.future.set_exception(outcome)
        else:
            task.future.set_result(outcome)


class Told(ABC):
    """What pools and groups share: whoever joins later hears what the others were told."""

    def __init__(self) -> None:
        self._memory = Memory()

    @abstractmethod
    def ask(self, method: str, *args: Any) -> list[Any]:
        """Call every replica (every rank) and wait for all."""

    def tell(self, method: str, *args: Any) -> list[Any]:
        """Call every replica (every rank), wait for all, and remember the call for replacements."""
        values = self.ask(method, *args)
        self.remember(method, *args)
        return values

    def remember(self, method: str, *args: Any) -> None:
        """What a replacement is told before it serves, after everything remembered earlier."""
        self._memory.add(Call(method, args))


class Pool(Told):
    """`num_replicas` replicas of one role; a thread for each pulls calls from one queue."""

    def __init__(self, name: str, spawn: Spawn, num_replicas: int, limits: Limits):
        self.name, self._spawn, self._limits = name, spawn, limits
        self.capacity = num_replicas + QUEUED
        super().__init__()
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

    def submit(self, method: str, *args: Any) -> Future[Answer]:
        """Queue a call for whichever replica is free first."""
        return self._put(self._shared, Call(method, args))

    def ask(self, method: str, *args: Any) -> list[Any]:
        """Call every replica and wait for all. A replica that was given up has no part in the answer."""
        with self._wake:
            answers = [self._put(q, Call(method, args)) for i, q in enumerate(self._own) if i not in self._given_up]
        values = []
        for answer in answers:
            with contextlib.suppress(CancelledError):
                values.append(answer.result().value)
        if not values:
            raise RoleError(f"{self.name}: this pool was closed during {method}")
        return values

    def retire(self) -> None:
        """End all replicas but not the pool: the next call starts fresh ones, which have been told nothing."""
        self._memory.calls.clear()
        for index in range(len(self.replicas)):
            self._bury(index)

    def close(self) -> None:
        """End all replicas; calls still queued are cancelled."""
        with self._wake:
            self._closed = True
            for queue in (self._shared, *self._own):
                while queue:
                    queue.popleft().future.cancel()
            self._wake.notify_all()
        self.retire()
        for thread in self._threads:
            thread.join(timeout=10)

    def _put(self, queue: deque[_Task], call: Call) -> Future[Answer]:
        task = _Task(call, queue)
        with self._wake:
            if self._closed:
                raise RoleError(f"{self.name}: this pool is closed")
            queue.append(task)
            self._wake.notify_all()
        return task.future

    def _next(self, index: int) -> _Task | None:
        """The next task for this replica, its own first; None once the pool is closed."""
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
            except BaseException as error:  # without an ending, whoever waits for the task would wait for ever
                _end(task, error)

    def _serve(self, index: int, task: _Task) -> None:
        """Run one task to an answer or an error; a death puts it back at the head of the queue."""
        start = time.monotonic()
        try:
            replica = self.replicas[index] or self._revive(index)
            value = replica.call(task.call.method, task.call.args, self._limits.deadline_s)
        except StartError as error:
            self._give_up(index, task, error)
        except (ReplicaDied, DeadlineError) as error:
            self._bury(index)
            self._retry(task, error)
        else:
            _end(task, Answer(value, start, time.monotonic()))

    def _revive(self, index: int) -> Replica:
        """Start a replica and tell it everything that its pool was told, before it serves."""
        try:
            replica = self._spawn(index)
        except DeadlineError as error:
            raise StartError(str(error)) from error
        try:
            for call in list(self._memory.calls):
                replica.call(call.method, call.args, self._limits.deadline_s)
        except BaseException:
            replica.kill()
            raise
        with self._wake:
            if not self._closed:
                self.replicas[index] = replica
                return replica
        replica.kill()
        raise RoleError(f"{self.name}: this pool was closed while a replica started")

    def _bury(self, index: int) -> None:
        replica, self.replicas[index] = self.replicas[index], None
        if replica:
            replica.kill()

    def _retry(self, task: _Task, error: RoleError) -> None:
        task.deaths += 1
        if task.deaths > self._limits.max_retries:
            times = f"{task.deaths} times, each time with its replica"
            raise RoleError(f"{self.name}: {task.call.method} failed {times}. Last: {error}")
        if self._closed:
            raise error
        self._limits.note(f"{error}; starting a replacement (try {task.deaths} of {self._limits.max_retries})")
        self._put_back(task)

    def _give_up(self, index: int, task: _Task, error: StartError) -> None:
        """Go on without a replica that finds no place, as long as another one works; else the task has failed."""
        if self._closed or not any(self.replicas):
            self._retry(task, error)
            return
        with self._wake:
            self._given_up.add(index)
            for own in (*self._own[index], *([task] if task.queue is self._own[index] else [])):
                own.future.cancel()
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


class Group(Told):
    """Ranks in lock-step: a call goes to all at once; if one dies, all are replaced and told again."""

    capacity = 1 + QUEUED

    def __init__(self, name: str, spawn: Spawn, num_ranks: int, limits: Limits):
        self.name, self._spawn, self._num_ranks, self._limits = name, spawn, num_ranks, limits
        super().__init__()
        self.ranks: list[Replica] = []
        self._closed = False
        self._queue = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._calls = ThreadPoolExecutor(max_workers=num_ranks, thread_name_prefix=f"{name}-rank")

    def submit(self, method: str, *args: Any) -> Future[Answer]:
        """Queue a call for all ranks; rank 0 answers."""
        return self._queue.submit(lambda: self._persist(Call(method, args))[0])

    def ask(self, method: str, *args: Any) -> list[Any]:
        """Call all ranks and wait."""
        return [answer.value for answer in self._queue.submit(self._persist, Call(method, args)).result()]

    def retire(self) -> None:
        """End all ranks but not the group: the next call assembles one that has been told nothing."""
        self._memory.calls.clear()
        self._queue.submit(self._disband).result()

    def close(self) -> None:
        """End all ranks; a call in progress fails instead of starting them again."""
        self._closed = True
        self._queue.shutdown(wait=False, cancel_futures=True)
        self._disband()
        self._calls.shutdown(wait=False, cancel_futures=True)

    def _persist(self, call: Call) -> list[Answer]:
        """Make the call; when the group breaks, assemble it anew and make the call again."""
        for attempt in range(self._limits.max_retries + 1):
            try:
                if not self.ranks:
                    self._assemble()
                return self._all(call)
            except (ReplicaDied, DeadlineError) as error:
                self._disband()
                if self._closed:
                    raise
                last = error
                self._limits.note(f"{error}; restarting the group (try {attempt + 1} of {self._limits.max_retries})")
        raise RoleError(f"{self.name}: {call.method} failed {attempt + 1} times with its group. Last: {last}")

    def _assemble(self) -> None:
        """Start every rank, let rank 0 name the meeting point, and tell all what the group was told."""
        starting = [self._calls.submit(self._spawn, rank) for rank in range(self._num_ranks)]
        wait(starting)
        self.ranks = [future.result() for future in starting if not future.exception()]
        for future in starting:
            future.result()  # a rank that did not start: the others are disbanded, or they would keep its place
        if self._closed:
            raise ReplicaDied(f"{self.name}: the group was closed while it started")
        self._meet()
        for call in self._memory.calls:
            self._all(call)

    def _meet(self) -> None:
        """Let rank 0 name a meeting point and all join there. A port that was taken meanwhile is worth a new try."""
        try:
            meeting = self.ranks[0].call("rendezvous", (), self._limits.deadline_s)
            self._all(Call("join", (*meeting, self._limits.deadline_s)))
        except RoleError as error:
            raise ReplicaDied(f"{self.name}: the ranks did not meet: {error}") from error

    def _all(self, call: Call) -> list[Answer]:
        """One call on every rank. A death outranks other errors: the survivors' complaints are its echo."""
        start = time.monotonic()
        futures = [self._calls.submit(r.call, call.method, call.args, self._limits.deadline_s) for r in self.ranks]
        while pending := wait(futures, timeout=1.0).not_done:
            if any(f.done() and f.exception() for f in futures):
                wait(pending, timeout=ECHO_S)  # a broken collective ends by itself, or the others never will
                break
        errors = [f.exception() for f in futures if f.done() and f.exception()]
        stuck = [f for f in futures if not f.done()]
        deaths = [error for error in errors if isinstance(error, ReplicaDied)]
        if stuck and not deaths:
            told = f"{errors[0]}" if errors else "nothing was told"
            raise ReplicaDied(f"{self.name}: {len(stuck)} ranks did not answer {call.method}: {told}")
        for error in deaths or errors:
            raise error
        end = time.monotonic()
        return [Answer(f.result(), start, end) for f in futures]

    def _disband(self) -> None:
        ranks, self.ranks = self.ranks, []
        for rank in ranks:
            rank.kill()


ECHO_S = 20.0
"""How long the other ranks may take to notice that one of them failed."""
