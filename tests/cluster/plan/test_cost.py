"""Time and money by the rates of an earlier run: exact for the same work, scaled for other, refused without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines
from cluster.commands.calibrate import calibrated, small
from cluster.plan.cost import predict, read_rates
from engine.config.run import RunConfig
from engine.errors import PlanError
from tests.runs import PROMPTS, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

ITERATION = {
    "kind": "iteration", "step": None, "select/prompts": 8, "time/wall": 100.0, "time/completions/busy": 60.0,
    "time/scores/busy": 30.0, "time/ref_logps/busy": 10.0, "time/learn/busy": 25.0, "time/prepare/busy": 5.0,
}  # fmt: skip


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run of two iterations; the first took 20 s longer, to start engines."""
    folder = play(fake_config(tmp_path / "earlier", cluster=local()))
    lines = [
        ITERATION | {"iteration": 1, "time": "2026-01-01T00:03:00+00:00", "time/wall": 120.0},
        ITERATION | {"iteration": 2, "time": "2026-01-01T00:04:40+00:00"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"started": "2026-01-01T00:00:30Z"}))
    return folder


def local(**changes: Any) -> dict[str, Any]:
    return {"backend": "local"} | changes


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    prompts = {**PROMPTS, "use": "all", "expected": 8}
    return fake_config(tmp_path, prompts=prompts, **changes)


def test_the_same_run_takes_as_long_as_it_took(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path), read_rates(earlier))
    assert prediction.startup == 30.0
    assert prediction.iterations == (120.0, 100.0)
    assert prediction.seconds == 250.0


def test_more_iterations_are_like_the_last_one(earlier: Path, tmp_path: Path) -> None:
    assert predict(config(tmp_path, iterations=4), read_rates(earlier)).iterations == (120.0, 100.0, 100.0, 100.0)


def test_more_answers_and_other_replicas_change_the_stages_that_they_concern(earlier: Path, tmp_path: Path) -> None:
    changes = {"sampling": {"num_samples": 6, "max_new_tokens": 5}, "generator": {"num_replicas": 4}}
    prediction = predict(config(tmp_path, **changes), read_rates(earlier))
    assert prediction.stages["completions"] == pytest.approx(120.0 * 2 / 2)  # twice the answers, twice the replicas
    assert prediction.stages["scores"] == pytest.approx(60.0 * 30 / 6)  # K (K - 1) comparisons
    assert prediction.stages["learn"] == pytest.approx(50.0)
    added = 30.0 * (30 / 6) - 30.0  # one process: stages add up
    assert prediction.iterations == pytest.approx((120.0 + added, 100.0 + added))


def test_stages_that_overlap_count_as_long_as_the_slowest(earlier: Path, tmp_path: Path) -> None:
    settings = (earlier / "config.yaml").read_text().replace("backend: local", "backend: ray")
    (earlier / "config.yaml").write_text(settings)
    changes = {"sampling": {"num_samples": 6, "max_new_tokens": 5}, "cluster": {"backend": "ray"}}
    prediction = predict(config(tmp_path, **changes), read_rates(earlier))
    assert prediction.iterations[1] == pytest.approx(100.0 - 60.0 + 30.0 * 5)  # scores are the slowest now


def test_money_is_hours_times_the_price(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path, cluster=local(cost_per_hour=36.0)), read_rates(earlier))
    assert prediction.cluster_cost == pytest.approx(2.5)
    assert any("cost: 2.50" in line for line in prediction.lines())


def test_a_remote_judge_costs_its_tokens(earlier: Path, tmp_path: Path) -> None:
    server = {"kind": "openai", "base_url": "http://localhost:1", "model": "m",
              "usd_per_million_input_tokens": 4.0, "usd_per_million_output_tokens": 0.0}  # fmt: skip
    judge = {"kind": "judge", "prompt": "recipes/judges/pairwise.txt", "server": server}
    rates = read_rates(earlier)
    one = predict(config(tmp_path, scorer=judge), rates).judge_usd
    more = predict(config(tmp_path, scorer=judge, iterations=4), rates).judge_usd
    assert one is not None
    assert more == pytest.approx(2 * one)
    characters = one * 1e6 / (2 * 8 * 6)  # at 4 USD per million tokens of 4 characters
    assert characters > len(Path("recipes/judges/pairwise.txt").read_text()) * 0.8


def test_a_folder_without_a_finished_iteration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no iteration was measured there"):
        read_rates(tmp_path)


def test_a_calibration_plays_a_small_part_and_leaves_nothing(tmp_path: Path) -> None:
    whole = config(tmp_path, iterations=3)
    with calibrated(whole, Console(quiet=True), FakeEngines()) as rates:
        assert len(rates.iterations) == 2
        assert predict(whole, rates).seconds > 0
    assert not any(path.name.startswith("calibration-") for path in tmp_path.iterdir())


def test_a_calibration_reads_two_shards_for_each_of_its_iterations(tmp_path: Path) -> None:
    part = small(config(tmp_path, iterations=3).model_copy(update={"shard_size": 3}), tmp_path)
    assert (part.iterations, part.prompts.limit, part.name) == (2, 6, "calibration")
