"""Roles that die by SIGKILL in a call of the test's choice, once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.factories import Engines, Factory
from engine.config.run import RunConfig, Setup
from engine.config.scorer import PairRMConfig, ScorerConfig


@dataclass(frozen=True)
class Victim:
    """Builds the roles of `factory`; replica `index` dies in its `call`-th call of `method` and leaves its pid behind.

    It dies within the call, before the work: of a group, the other ranks are then left waiting for it. Its replacement
    finds `grave` and lives.
    """

    factory: Factory[Any]
    index: int
    method: str
    call: int
    grave: Path

    def build(self, index: int) -> Any:
        role = self.factory.build(index)
        if index == self.index and not self.grave.exists():
            left = iter(range(self.call - 1))
            original = getattr(role, self.method)

            def method(*args: Any, **kwargs: Any) -> Any:
                if next(left, None) is None:
                    self.grave.write_text(str(os.getpid()))
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(role, self.method, method)
        return role


@dataclass(frozen=True)
class Victims(Engines):
    """The real engines; one process of each role is a victim. `graves`: an empty folder."""

    graves: Path

    def generator(self, config: Setup) -> Factory[Any]:
        return Victim(super().generator(config), 0, "generate", 3, self.graves / "generator 0")

    def learner(self, config: RunConfig) -> Factory[Any]:
        return Victim(super().learner(config), 1, "advance", 3, self.graves / "learner 1")

    def scorer(self, config: ScorerConfig, seed: int) -> Factory[Any]:
        factory = super().scorer(config, seed)
        trains = isinstance(config, PairRMConfig)  # the evaluator is a rule
        return Victim(factory, 0, "score", 2, self.graves / "scorer 0") if trains else factory
