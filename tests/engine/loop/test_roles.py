"""The interface between the loop and the roles is checked by mypy: methods, arguments and results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CALLS = """
from actors.fakes import FakeGenerator, FakeLearner
from engine.loop.roles import Generator, Learner, Pool, Roles, Scorer
import pyarrow as pa

def calls(roles: Roles, prompts: pa.Table, generator: FakeGenerator, learner: FakeLearner) -> None:
    roles.generator.submit(Generator.generate, prompts, iteration=1)
    steps: list[dict[str, float]] = roles.learner.submit(Learner.advance, 5).result().value
    a_generator_can_score: Pool[Scorer] = roles.generator
    fakes: tuple[Generator, Learner] = (generator, learner)
"""
MISTAKES = {
    "an argument of another type": 'roles.generator.submit(Generator.generate, prompts, iteration="one")',
    "a missing argument": "roles.generator.submit(Generator.generate, prompts)",
    "a method of another role": "roles.scorer.submit(Generator.generate, prompts, iteration=1)",
    "a method that does not exist": "roles.learner.submit(Learner.advanse, 5)",
    "a result of another type": "step: str = roles.learner.submit(Learner.advance, 5).result().value",
    "a broadcast with another argument": "roles.learner.broadcast(Learner.load_checkpoint, 5)",
    "a scorer that cannot generate": "generates: Pool[Generator] = roles.scorer",
}


@pytest.mark.real
def test_mypy_finds_every_mistake_in_a_call_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text(CALLS + "".join(f"    {line}\n" for line in MISTAKES.values()), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(file)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    lines = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    first = len(CALLS.splitlines()) + 1
    assert lines == set(range(first, first + len(MISTAKES))), output
