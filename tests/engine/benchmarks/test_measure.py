"""Benchmarks in the loop: after every version, resumable, and never at the cost of the training."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from actors.fakes import FakeEngines
from cluster.run.job import Job
from engine.schema import BENCHMARK_RESULTS
from engine.store import inspection
from engine.store.reader import RunReader
from tests.engine.benchmarks.letters import Letters
from tests.runs import DyingDisk, Killed, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Letters:
    benchmark = Letters()
    for module in ("engine.loop.self_play", "cluster.run.job"):
        monkeypatch.setattr(f"{module}.benchmarks", lambda config: [benchmark])
    return benchmark


def values(folder: Path) -> list[float]:
    run = RunReader(folder)
    return [t["value"][0].as_py() for v in run.versions for t in run.tables(v, "letters_results", BENCHMARK_RESULTS)]


def test_every_version_is_measured_and_the_numbers_follow_the_policy(benchmark: Letters, tmp_path: Path) -> None:
    measured = values(play(fake_config(tmp_path)))
    assert len(measured) == 3
    assert measured[0] < measured[2]


def test_the_report_holds_the_benchmarks_files_of_every_version(benchmark: Letters, tmp_path: Path) -> None:
    with Job(fake_config(tmp_path), Console(quiet=True), engines=FakeEngines()) as job:
        job.play()
        job.report("finished")
    folder = tmp_path / "run/report/benchmarks/letters"
    assert [(folder / f"run-{v}/answers.txt").read_text() for v in (0, 1, 2)] == ["run-0", "run-1", "run-2"]


def test_a_benchmark_that_fails_is_noted_and_the_run_finishes(benchmark: Letters, tmp_path: Path) -> None:
    benchmark.broken = True
    run = RunReader(play(fake_config(tmp_path)))
    assert run.versions == [0, 1, 2]
    record = run.recorded("letters failed for version 2")
    assert record is not None
    assert record["reason"] == "letters: broken"


@pytest.mark.parametrize("k", range(60, 320, 150))
def test_a_run_that_was_killed_measures_the_same(benchmark: Letters, tmp_path: Path, k: int) -> None:
    whole = play(fake_config(tmp_path / "whole"))
    with pytest.raises(Killed):
        play(fake_config(tmp_path / "killed"), DyingDisk(k))
    resumed = play(fake_config(tmp_path / "killed"))
    assert values(resumed) == values(whole)
    assert inspection.run_digest(resumed) == inspection.run_digest(whole)
