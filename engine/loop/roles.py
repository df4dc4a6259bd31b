"""What the loop asks of the roles, wherever they run.

The loop sees pools (replicas that each take one shard at a time) and one group (ranks in lock-step),
both through futures, and one switch for whose turn it is. Knows nothing of Ray, processes or GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from engine.store.run import Policy


class Answered(Protocol):
    """The result of a submitted call, with the interval in which the replica worked."""

    value: Any
    start: float
    end: float


class Pool(Protocol):
    """Replicas of one role. Idle ones pull the next call; a dead one is replaced and its call tried again.

    The learner group has the same face: there, a call goes to every rank and rank 0 answers.
    """

    @property
    def capacity(self) -> int:
        """Calls worth submitting at a time: enough that no replica idles, few enough to bound memory."""

    def submit(self, method: str, *args: Any) -> Future[Answered]:
        """Queue a call. The future raises the role's own error, or RoleError once the retries are used up."""

    def tell(self, method: str, *args: Any) -> list[Any]:
        """Call every replica now, and remember the call. Returns one answer per replica."""

    def remember(self, method: str, *args: Any) -> None:
        """What a replacement is told before it serves, after everything remembered earlier.

        A call of the same method takes the former's place and forgets what was remembered after it.
        """


@dataclass(frozen=True)
class Stage:
    """One step of a shard's way: where its input lies, who computes it, what comes out."""

    name: str
    """Name of the output in the store, and for people."""
    role: str
    policy: Policy | None
    """The version that the role must have ready; None where it holds no policy."""
    source: str
    """Stage whose committed shards are the input."""
    source_schema: pa.Schema
    schema: pa.Schema
    submit: Callable[[Pool, pa.Table, int], Future[Answered]]
    """(pool, input, number of the shard) -> the answer to come."""
    finish: Callable[[pa.Table, Answered], pa.Table]
    """(input, answer) -> output table; runs in the driver. Raises if the answer may not be used."""
    amounts: Callable[[pa.Table], dict[str, float]]
    """What the shard amounted to (tokens, pairs, rows), for rates."""
    source_iteration: int | None = None
    """Iteration in which the input lies; None: the one that the stream belongs to."""


class Roles(Protocol):
    """All pools of a run, and who may use the machine at the moment."""

    def pool(self, role: str) -> Pool:
        """The pool of "generator", "scorer", "learner" or "evaluator"."""

    def together(self, stages: Sequence[Stage]) -> list[Sequence[Stage]]:
        """Split stages, in dataflow order, into groups whose roles may work at the same time.

        No group asks one role for two policies.
        """

    def prepare(self, policies: Mapping[str, Policy | None]) -> None:
        """Have these roles ready, each with its policy's weights; where roles take turns, send the others to rest.

        Raises WeightsError if a replica does not prove that it serves exactly these weights.
        """

    def invalidate(self, role: str) -> None:
        """The role's weights were trained and are no version's any more: `prepare` must deliver them anew."""
