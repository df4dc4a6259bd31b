"""One replica of a role: an object in this process, or the same object inside a Ray actor.

A replica runs one call at a time and tells three endings apart: an answer, an error of the role itself
(the same input would fail anywhere), and its own death (another replica may succeed). Knows nothing of
pools, of retries or of what roles do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from engine.errors import DeadlineError, KumiteError, RoleError

Factory = Callable[[], Any]
"""Builds the role. Cheap; runs where the replica lives, so it must be importable there."""


class ReplicaDied(RoleError):
    """The process of a replica ended or became unreachable during a call."""


class Replica(Protocol):
    """What pools and groups need of a replica."""

    def call(self, method: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        """Run one method. Raises the role's KumiteError, RoleError, ReplicaDied or DeadlineError."""

    def kill(self) -> None:
        """End it at once, whatever it does. A call in progress raises ReplicaDied."""


class LocalReplica:
    """A role in this process; a call that hangs cannot be interrupted here, so its deadline is not kept."""

    def __init__(self, name: str, factory: Factory):
        self._name, self._role = name, factory()

    def call(self, method: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        return _call(self._name, self._role, method, args)

    def kill(self) -> None:
        close = getattr(self._role, "close", None)
        if close:
            close()


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

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        return _call(self._name, self._role, method, args)


class RayReplica:
    """A role inside a Ray actor that never restarts by itself: a fresh one must be told its weights first."""

    def __init__(self, name: str, factory: Factory, options: dict[str, Any]):
        """`options` are Ray's own for actors."""
        self._name = name
        self._actor = ray.remote(Host).options(max_restarts=0, **options).remote(name, str(Path.cwd()))
        self._built = self._actor.build.remote(factory)
        self.node_id: str | None = None
        self.pid: int | None = None

    def await_start(self, deadline_s: float) -> None:
        """Wait until the role is built, and learn where. Raises RoleError, DeadlineError or ReplicaDied."""
        self.node_id, self.pid = self._get(self._built, deadline_s, "start")

    def call(self, method: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        return self._get(self._actor.call.remote(method, args), deadline_s, method)

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


def _call(name: str, role: Any, method: str, args: tuple[Any, ...]) -> Any:
    """Run a role's method; anything but a KumiteError becomes a RoleError with its traceback as text.

    Errors cross processes as text because exceptions of libraries do not always survive pickling.
    """
    try:
        return getattr(role, method)(*args)
    except KumiteError:
        raise
    except Exception as error:
        detail = traceback.format_exc(limit=-12)
        raise RoleError(f"{name}: {method} failed: {type(error).__name__}: {error}\n{detail}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
