"""A sweep with real vLLM and DeepSpeed, killed and started again: its runs are those that would run alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.store import inspection
from tests.cluster.runtime.drivers import committed, running, sppo, until

pytestmark = pytest.mark.real

CONFIG = ("--config", "recipes/configs/smoke_sppo.yaml")
KEYS = ("iterations=1", "evaluation.prompts.source=recipes/configs/smoke_prompts.jsonl")
SWEEP = "name: rates\nvary:\n  learner.optimizer.lr: [0.0001, 0.01]\n"


def test_a_killed_sweep_continues_and_its_runs_are_those_of_runs_alone(tmp_path: Path) -> None:
    file, folder = tmp_path / "sweep.yaml", tmp_path / "rates"
    file.write_text(SWEEP)
    command = (sys.executable, "recipes/sweep.py", *CONFIG, str(file), *KEYS, f"output={tmp_path}")
    with running(tmp_path / "killed.log", *command) as driver:
        first = folder / "lr-0.0001"
        until(lambda: committed(first, stage="completions"), "answers", lambda: driver.process.poll() is None)
        driver.kill()
        with running(tmp_path / "again.log", *command) as again:
            assert again.wait() == 0, again.output
            assert "lr-0.01: finished" in again.output and "up to 1 at a time" in again.output
        until(lambda: not driver.descendants(), "the end of everything that the killed sweep had started")
    log = (folder / "sweep/lr-0.01.log").read_text()
    for stage in ("heldout_completions", "completions", "scores", "selected", "ref_logps"):
        assert f"adopted from another run of the sweep: {stage}, 2 shards" in log
    alone_keys = (*KEYS, f"output={tmp_path}", "name=alone", "learner.optimizer.lr=0.01")
    with sppo(tmp_path / "alone.log", *CONFIG, *alone_keys) as alone:
        assert alone.wait() == 0, alone.output
    assert inspection.run_digest(folder / "lr-0.01") == inspection.run_digest(tmp_path / "alone")
    assert (folder / "sweep.md").read_text().count("finished") == 2
