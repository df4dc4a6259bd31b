"""The undisturbed run with real engines, to which every disturbed run must be equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.store import inspection
from tests.cluster.runtime.drivers import sppo
from tests.cluster.runtime.worlds import make_world, real_values, write_config


@dataclass(frozen=True)
class CalmRun:
    """A finished run, as a user started it."""

    world: Path
    folder: Path
    exit_code: int
    output: str

    @property
    def digest(self) -> str:
        return inspection.run_digest(self.folder)


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> CalmRun:
    """`python recipes/sppo.py` on the tiny inputs, undisturbed. About a minute."""
    root = tmp_path_factory.mktemp("calm")
    world = make_world(root / "world")
    config = write_config(root / "calm.yaml", real_values(world, root / "runs", "calm"))
    with sppo(root / "log", "--config", str(config)) as driver:
        code = driver.wait()
    return CalmRun(world, root / "runs/calm", code, driver.output)
