"""One replica of a role: an object in this process, or the same object inside a Ray actor.

A replica runs one call at a time. A call ends in one of three ways: a result, an error of the role itself
(the same input would fail anywhere), or the death of the replica (another replica may succeed).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from engine.errors import DeadlineError, KumiteError, RoleError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Factory = Callable[[], Any]
"""Builds the role. Cheap; runs where the replica lives, so it must be importable there."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of a role's method, which returns a T."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
    """The call of `method`, given as a member of the role's class or protocol: `call_of(Learner.advance, 5)`."""
    return Call(method.__name__, args, kwargs)


class ReplicaDied(RoleError):
    """The process of a replica ended or became unreachable during a call."""


class Replica(Protocol):
    """What pools and groups need of a replica."""

    def call(self, call: Call[T], deadline_s: float) -> T:
        """Run one call. Raises the role's KumiteError, RoleError, ReplicaDied or DeadlineError."""

    def kill(self) -> None:
        """End it at once, whatever it does. A call in progress raises ReplicaDied."""


@runtime_checkable
class Closeable(Protocol):
    """A role that holds something to give back at its end."""

    def close(self) -> None: ...


class LocalReplica:
    """A role in this process; a call that hangs cannot be interrupted here, so its deadline is not enforced."""

    def __init__(self, name: str, factory: Factory):
        self._name, self._role = name, factory()

    def call(self, call: Call[T], deadline_s: float) -> T:
        return _run(self._name, self._role, call)

    def kill(self) -> None:
        if isinstance(self._role, Closeable):
            self._role.close()


class Host:
    """What runs inside the Ray actor: it holds the role and reports where it lives."""

    def __init__(self, name: str, folder: str):
        if Path(folder).is_dir() and folder not in sys.path:
            sys.path.insert(0, folder)  # rules by dotted path come from the driver's folder
        self._name, self._role = name, None

    def build(self, factory: Factory) -> tuple[str, int]:
        """Build the role; return (node id, process id). No part of __init__, whose errors Ray takes for deaths."""
        self._role = factory()
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def call(self, call: Call[T]) -> T:
        return _run(self._name, self._role, call)


class RayReplica:
    """A role inside a Ray actor that never restarts by itself: a new one first needs the calls that are replayed."""

    def __init__(self, name: str, factory: Factory, options: dict[str, Any]):
        """`options` are Ray's own for actors."""
        self._name = name
        actor = ray.remote(Host).options(max_restarts=0, **options).remote(name, str(Path.cwd()))
        self._actor = cast(Any, actor)  # Ray adds `.remote` to its methods
        self._built = self._actor.build.remote(factory)
        self.node_id: str | None = None
        self.pid: int | None = None

    def await_start(self, deadline_s: float) -> None:
        """Wait until the role is built, and learn where. Raises RoleError, DeadlineError or ReplicaDied."""
        self.node_id, self.pid = self._get(self._built, deadline_s, "start")

    def call(self, call: Call[T], deadline_s: float) -> T:
        return self._get(self._actor.call.remote(call), deadline_s, call.method)

    def kill(self) -> None:
        with contextlib.suppress(RayError):  # dead already, or the cluster is gone
            ray.kill(self._actor, no_restart=True)

    def _get(self, ref: ray.ObjectRef, deadline_s: float, what: str) -> Any:
        try:
            return ray.get(ref, timeout=deadline_s)
        except GetTimeoutError as error:
            raise DeadlineError(f"{self._name}: {what} took longer than its deadline of {deadline_s:g} s") from error
        except RayActorError as error:
            raise ReplicaDied(f"{self._name}: its process ended during {what} ({_first_line(error)})") from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, KumiteError) else RoleError(f"{self._name}: {error}") from None
        except RayError as error:  # lost objects, out of memory, a node that vanished
            raise ReplicaDied(f"{self._name}: {what} was lost ({_first_line(error)})") from error


def _run(name: str, role: Any, call: Call[T]) -> T:
    """Run a call; anything but a KumiteError becomes a RoleError with its traceback as text.

    Errors cross processes as text because exceptions of libraries do not always survive pickling.
    """
    try:
        return getattr(role, call.method)(*call.args, **call.kwargs)
    except KumiteError:
        raise
    except Exception as error:
        detail = traceback.format_exc(limit=-12)
        raise RoleError(f"{name}: {call.method} failed: {type(error).__name__}: {error}\n{detail}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
