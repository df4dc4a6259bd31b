"""What a run took and cost, beside its prediction, from what is committed and timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.loop.spending import PAID, spent, with_spent
from engine.metrics.timeline import read_timeline
from engine.report import cost
from engine.store.reader import RunReader
from engine.store.run import RunStore
from tests.runs import fake_config, finished

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

SERVER = {"kind": "openai", "base_url": "http://localhost:1", "model": "m",
          "usd_per_million_input_tokens": 4.0, "usd_per_million_output_tokens": 100.0}  # fmt: skip


def lines_of(run: Path, **changes: Any) -> dict[str, list[str]]:
    config = fake_config(run.parent, **changes)
    found = cost.spent(RunReader(run), config, read_timeline(run))
    return {name: rest for name, *rest in (line.texts() for line in found)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that took 100 s in its first process and 20 s in its second; 125 s were predicted."""
    folder = finished(fake_config(tmp_path))
    with RunStore(folder) as store:
        store.record("prediction", seconds=150.0, startup=10.0, iterations=[90.0, 50.0], cost=1.5,
                     stages={"completions": 30.0}, judges={"scorer": 0.01})  # fmt: skip
        record = dict(store.shard_record(0, "scores", 0) or {})
        store._add(**{**record, "counts": dict(zip(PAID, (2, 1000, 100), strict=True))})
    events = [
        {"kind": "process", "start": 0.0, "end": 0.0},
        {"kind": "work", "stage": "completions", "role": "generator", "iteration": 1, "start": 20.0, "end": 50.0},
        {"kind": "work", "stage": "completions", "role": "generator", "iteration": 1, "start": 40.0, "end": 60.0},
        {"kind": "iteration", "iteration": 1, "start": 20.0, "end": 100.0},
        {"kind": "process", "start": 500.0, "end": 500.0},
        {"kind": "iteration", "iteration": 2, "start": 505.0, "end": 520.0},
    ]
    (folder / "timeline.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_time_between_two_processes_is_not_the_runs(run: Path) -> None:
    assert lines_of(run)["whole run"] == ["2m 30s", "2m 00s", "+25%"]


def test_start_iterations_and_stages_are_compared_with_their_predictions(run: Path) -> None:
    lines = lines_of(run)
    assert lines["start"] == ["10.0 s", "20.0 s", "-50%"]
    assert lines["iteration 1"] == ["1m 30s", "1m 20s", "+12%"]
    assert lines["iteration 2"] == ["50.0 s", "15.0 s", "+233%"]
    assert lines["completions, busy"] == ["30.0 s", "40.0 s", "-25%"]  # overlapping work counts once


def test_money_is_that_of_the_cluster_and_of_remote_judges(run: Path) -> None:
    scorer = {"kind": "judge", "prompt": "recipes/judges/pairwise.txt", "server": SERVER}
    lines = lines_of(run, cluster={"backend": "local", "cost_per_hour": 36.0}, scorer=scorer)
    assert lines["cluster, at cluster.cost_per_hour"] == ["1.50", "1.20", "+25%"]
    assert lines["remote judge (scorer), USD"] == ["0.01", "0.01", "-29%"]  # 1,000 x 4 + 100 x 100, per million


def test_a_run_that_is_not_finished_has_no_whole(run: Path) -> None:
    kept = [line for line in (run / "manifest.jsonl").read_text().splitlines() if '"name":"finished"' not in line]
    (run / "manifest.jsonl").write_text("\n".join(kept) + "\n")
    assert lines_of(run)["whole run"] == ["2m 30s", "–", "–"]


def test_the_end_of_a_run_says_how_far_the_prediction_was_off(run: Path) -> None:
    config = fake_config(run.parent, cluster={"backend": "local", "cost_per_hour": 36.0})
    words = cost.in_words(cost.spent(RunReader(run), config, read_timeline(run)))
    assert words == (
        "whole run: predicted 2m 30s, was 2m 00s (+25%); cluster, at cluster.cost_per_hour: predicted 1.50, was 1.20 "
        "(+25%)"
    )


def test_without_a_prediction_the_end_of_a_run_says_nothing(tmp_path: Path) -> None:
    folder = finished(fake_config(tmp_path))
    assert cost.in_words(cost.spent(RunReader(folder), fake_config(tmp_path), read_timeline(folder))) is None


def test_what_was_paid_travels_with_a_table_and_leaves_its_bytes_alone() -> None:
    table = pa.table({"x": [1]})
    paid = dict(zip(PAID, (1, 20, 3), strict=True))
    assert spent(with_spent(table, paid)) == paid
    assert with_spent(table, paid).equals(table)
    assert spent(with_spent(table, {})) == spent(table) == spent([[0.5]]) == {}
