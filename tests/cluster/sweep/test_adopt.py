"""Runs of a sweep adopt what is equal, nothing else, and end with the digest of a run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines, FakeGenerator
from cluster.commands.job import Job
from cluster.sweep.adopt import adopt
from engine.config.run import RunConfig
from engine.store import inspection
from tests.runs import fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def rate(lr: float) -> dict[str, Any]:
    return {"batch_size": 2, "checkpoint_every": 1, "zero_stage": 0, "optimizer": {"name": "adamw", "lr": lr}}


def run(config: RunConfig, *siblings: Path) -> tuple[Path, dict[str, int]]:
    """Play a run that may adopt from `siblings`; return its folder and what it adopted."""
    adopted: dict[str, int] = {}
    with Job(config, Console(quiet=True), engines=FakeEngines()) as job:
        job.play(lambda store: adopted.update(adopt(store, config, siblings)))
    return job.folder, adopted


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return play(fake_config(tmp_path / "first"))


def test_another_learning_rate_adopts_everything_before_the_first_update(first: Path, tmp_path: Path) -> None:
    folder, adopted = run(fake_config(tmp_path / "second", learner=rate(0.2)), first)
    stages = ("heldout_completions", "completions", "scores", "agreement", "selected", "ref_logps")
    assert adopted == dict.fromkeys(stages, 4)
    alone = play(fake_config(tmp_path / "alone", learner=rate(0.2)))
    assert inspection.run_digest(folder) == inspection.run_digest(alone)


def test_another_algorithm_adopts_up_to_the_scores(first: Path, tmp_path: Path) -> None:
    _, adopted = run(fake_config(tmp_path / "second", algorithm={"name": "sppo", "eta": 5.0}), first)
    assert set(adopted) == {"heldout_completions", "completions", "scores", "agreement"}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"sampling": {"num_samples": 4, "max_new_tokens": 5}},
        {"shard_size": 4},
    ],
)
def test_what_decides_the_answers_is_never_adopted_across(first: Path, tmp_path: Path, changes: dict) -> None:
    _, adopted = run(fake_config(tmp_path / "second", **changes), first)
    assert adopted == {}


def test_another_scorer_adopts_the_answers_alone(first: Path, tmp_path: Path) -> None:
    other = {"kind": "rule", "function": "tests.engine.evaluation.test_gate:inverted"}
    _, adopted = run(fake_config(tmp_path / "second", scorer=other), first)
    assert set(adopted) == {"heldout_completions", "completions"}


def test_adopted_answers_are_not_generated_again(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    generate = FakeGenerator.generate
    monkeypatch.setattr(
        FakeGenerator, "generate", lambda self, *a, **k: calls.append(k["iteration"]) or generate(self, *a, **k)
    )
    run(fake_config(tmp_path / "second", learner=rate(0.2), evaluation=None), first)
    assert set(calls) == {1}


def test_a_sibling_that_is_damaged_or_not_there_is_passed_over(first: Path, tmp_path: Path) -> None:
    next((first / "tables/000/completions").glob("*.parquet")).write_bytes(b"x")
    _, adopted = run(fake_config(tmp_path / "second", learner=rate(0.2)), tmp_path / "nothing", first)
    assert adopted["completions"] == 3
