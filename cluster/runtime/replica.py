"""One replica of a role: an object in this process or in a Ray actor.

A replica runs one call at a time. A call ends with a result, with an error of the role itself (the same input would
fail on any replica), or with the death of the replica (another one may succeed).
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
"""Builds the role. Cheap; runs in the process of the replica, so it must be importable there."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of a role's method, which returns a T."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
    """Return the call of `method`, a member of the role's class or protocol: `call_of(Learner.advance, 5)`."""
    return Call(method.__name__, args, kwargs)


class ReplicaDied(RoleError):
    """The process of a replica ended or became unreachable during a call."""


class Replica(Protocol):
    """The interface of a replica for pools and groups."""

    def call(self, call: Call[T], deadline_s: float) -> T:
        """Run one call. Raises the role's KumiteError, RoleError, ReplicaDied or DeadlineError."""

    def kill(self) -> None:
        """End the replica at once. A call in progress raises ReplicaDied."""


@runtime_checkable
class Closeable(Protocol):
    """A role with resources that must be released at its end."""

    def close(self) -> None: ...


class LocalReplica:
    """A role in this process. A call that hangs cannot be interrupted here, so deadlines are not enforced."""

    def __init__(self, name: str, factory: Factory):
        self._name, self._role = name, factory()

    def call(self, call: Call[T], deadline_s: float) -> T:
        return _run(self._name, self._role, call)

    def kill(self) -> None:
        if isinstance(self._role, Closeable):
            self._role.close()


class Host:
    """The class of the Ray actor: holds the role, and reports node and process."""

    def __init__(self, name: str, folder: str):
        if Path(folder).is_dir() and folder not in sys.path:
            sys.path.insert(0, folder)  # Python rules given by dotted path are in the driver's folder
        self._name, self._role = name, None

    def build(self, factory: Factory) -> tuple[str, int]:
        """Build the role; return (node id, process id). Not in __init__, because Ray treats errors there as deaths."""
        self._role = factory()
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def call(self, call: Call[T]) -> T:
        return _run(self._name, self._role, call)


class RayReplica:
    """A role in a Ray actor. The actor never restarts by itself, because a new one needs the replayed calls first."""

    def __init__(self, name: str, factory: Factory, options: dict[str, Any]):
        """`options`: Ray's options for actors."""
        self._name = name
        actor = ray.remote(Host).options(max_restarts=0, **options).remote(name, str(Path.cwd()))
        self._actor = cast(Any, actor)  # Ray adds `.remote` to its methods
        self._built = self._actor.build.remote(factory)
        self.node_id: str | None = None
        self.pid: int | None = None

    def await_start(self, deadline_s: float) -> None:
        """Wait until the role is built; sets `node_id` and `pid`. Raises RoleError, DeadlineError or ReplicaDied."""
        self.node_id, self.pid = self._get(self._built, deadline_s, "start")

    def call(self, call: Call[T], deadline_s: float) -> T:
        return self._get(self._actor.call.remote(call), deadline_s, call.method)

    def kill(self) -> None:
        with contextlib.suppress(RayError):  # already dead, or the cluster no longer exists
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
    """Run a call. Any exception other than a KumiteError becomes a RoleError with its traceback as text.

    Errors are sent between processes as text because not every exception of a library can be pickled.
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
