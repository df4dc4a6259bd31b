"""`recipes/sweep.py --dry-run`: every run is checked and planned, and its time told, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.commands.sweep import main
from engine.config.load import dump
from tests.cluster.plan.test_cost import config, measured

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    base, sweep = tmp_path / "base.yaml", tmp_path / "sweep.yaml"
    base.write_text(dump(config(tmp_path)))
    sweep.write_text("vary:\n  seed: [0, 1]\n  iterations: [2, 3]\n")
    return [str(sweep), "--config", str(base), "--dry-run"]


def test_a_dry_run_tells_the_time_and_cost_of_every_run_and_of_all(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = measured(tmp_path / "earlier")
    assert main("", [*files, "--rates", str(earlier), "cluster.cost_per_hour=36"]) == 0
    said = capsys.readouterr().out
    assert "seed-0_iterations-2: 6m 10s" in said
    assert "seed-1_iterations-3: 8m 5" in said  # 160 s more, and the ladder has one opponent more
    assert "all: 30m 0" in said and "with 1 at a time" in said
    assert "cost of all: 18.0" in said
    assert said.endswith("dry run: nothing was started\n")
    assert not (tmp_path / "sweep").exists()


def test_the_problems_of_all_plans_are_told_at_once(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("", [*files, "cluster.backend=ray", "generator.num_replicas=900"]) == 2
    said = capsys.readouterr().out
    assert said.count("CPUs needed") == 4
    assert "seed-1_iterations-3: " in said


def test_a_missing_tracker_is_told_before_anything_starts(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main("", [*files, "tracking.report_to=[trackio]"]) == 2
    assert "trackio" in capsys.readouterr().out


def test_rates_that_are_none_are_refused_before_anything_starts(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("", [*files[:-1], "--rates", str(tmp_path / "nothing")]) == 2
    assert "is not a run folder, so it holds no rates" in capsys.readouterr().out
    assert not (tmp_path / "sweep").exists()
