"""Time and money by the rates of an earlier run: exact for the same work, scaled for other, refused without data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines
from cluster.commands.calibrate import calibrated, small
from cluster.plan.cost import predict
from cluster.plan.rates import read_rates
from engine.config.run import RunConfig
from engine.errors import PlanError
from engine.store.run import RunStore
from tests.runs import PROMPTS, fake_config, finished

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

BUSY = {"completions": 60.0, "scores": 30.0, "selected": 1.0, "ref_logps": 10.0, "agreement": 5.0, "learn": 25.0,
        "prepare": 5.0, "heldout_completions": 4.0, "heldout_win_rates": 1.0, "heldout_start_logps": 2.0}  # fmt: skip
JUDGE = {"kind": "judge", "prompt": "recipes/judges/pairwise.txt"}


def server(**limits: float) -> dict[str, Any]:
    prices = {"usd_per_million_input_tokens": 4.0, "usd_per_million_output_tokens": 100.0}
    return {"kind": "openai", "base_url": "http://localhost:1", "model": "m", **prices, **limits}


def local(**changes: Any) -> dict[str, Any]:
    return {"backend": "local"} | changes


def measured(folder: Path, walls: Sequence[float] = (180.0, 160.0), busy: Any = BUSY, **changes: Any) -> Path:
    """A run whose times are set: 30 s to start, of which 4 answer held-out prompts; the first iteration also warms up,
    for which `completions` needs 20 s more."""
    run = finished(fake_config(folder, iterations=len(walls), **changes))
    metrics, timeline, now = [], [{"kind": "process", "start": 0.0, "end": 0.0}], 30.0
    timeline.append(work("heldout_completions", None, 25.0, 29.0))
    for number, wall in enumerate(walls, start=1):
        times = dict(busy) | ({"completions": busy["completions"] + 20.0} if number == 1 else {})
        metrics.append({"kind": "iteration", "iteration": number, "step": None, "time/wall": wall, "select/prompts": 8}
                       | {f"time/{stage}/busy": seconds for stage, seconds in times.items()})  # fmt: skip
        timeline.append({"kind": "iteration", "iteration": number, "start": now, "end": now + wall})
        timeline.append(work("completions", number, now, now + 1))
        now += wall
    for name, lines in {"metrics": metrics, "timeline": timeline}.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def work(stage: str, iteration: int | None, start: float, end: float) -> dict[str, Any]:
    return {"kind": "work", "stage": stage, "role": "generator", "iteration": iteration, "start": start, "end": end}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return measured(tmp_path / "earlier")


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    prompts = {**PROMPTS, "use": "all", "expected": 8}
    return fake_config(tmp_path, **({"prompts": prompts} | changes))


def test_the_same_run_takes_as_long_as_it_took(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path), read_rates(earlier))
    assert prediction.startup == 30.0
    assert prediction.iterations == pytest.approx((180.0, 160.0))
    assert prediction.seconds == pytest.approx(370.0)
    assert prediction.stages["completions"] == pytest.approx(140.0)
    assert prediction.left_out == ()


def test_more_iterations_are_like_the_mean_of_the_later_ones_within_their_range(tmp_path: Path) -> None:
    evaluation = {"prompts": PROMPTS, "scorer": {"kind": "rule", "function": "actors.fakes:utility"}, "ladder": False}
    rates = read_rates(measured(tmp_path / "earlier", (180.0, 150.0, 170.0), evaluation=evaluation))
    prediction = predict(config(tmp_path, iterations=5, evaluation=evaluation), rates)
    assert prediction.iterations == pytest.approx((180.0, 160.0, 160.0, 160.0, 160.0))
    assert (prediction.low, prediction.high) == pytest.approx((850.0 * 150 / 160, 850.0 * 170 / 160))
    assert "14m 10s in all, between 13m 17s and 15m 03s" in prediction.lines()[0]


def test_one_later_iteration_gives_no_range(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path), read_rates(earlier))
    assert (prediction.low, prediction.high) == (None, None)


def test_stages_grow_with_their_work_and_engines_warm_up_once(earlier: Path, tmp_path: Path) -> None:
    changes = {"sampling": {"num_samples": 6, "max_new_tokens": 5}}
    prediction = predict(config(tmp_path, **changes), read_rates(earlier))
    assert prediction.stages["completions"] == pytest.approx(2 * 60.0 * 2 + 20.0)  # twice the answers
    assert prediction.stages["scores"] == pytest.approx(2 * 30.0 * 30 / 6)  # K (K - 1) comparisons
    assert prediction.stages["learn"] == pytest.approx(50.0)
    added = 60.0 + 30.0 * 4 + 5.0 * 4  # one process: stages add up
    assert prediction.iterations == pytest.approx((180.0 + added, 160.0 + added))


def test_replicas_share_the_work_of_their_role(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path, generator={"num_replicas": 4}), read_rates(earlier))
    assert prediction.stages["completions"] == pytest.approx(140.0 / 2)
    assert prediction.stages["heldout_start_logps"] == pytest.approx(2.0)
    assert prediction.startup == pytest.approx(28.0)  # the start policy's answers too
    assert prediction.stages["scores"] == pytest.approx(60.0)


def test_stages_that_overlap_count_as_long_as_the_slowest(earlier: Path, tmp_path: Path) -> None:
    settings = (earlier / "config.yaml").read_text().replace("backend: local", "backend: ray")
    (earlier / "config.yaml").write_text(settings)
    changes = {"sampling": {"num_samples": 6, "max_new_tokens": 5}, "cluster": {"backend": "ray"}}
    prediction = predict(config(tmp_path, **changes), read_rates(earlier))
    assert prediction.iterations[1] == pytest.approx(160.0 - 60.0 + 30.0 * 5)  # scores are the slowest now


def test_half_the_prompts_are_half_the_work_but_start_and_warm_up_stay(earlier: Path, tmp_path: Path) -> None:
    half = {**PROMPTS, "use": "all", "limit": 4}
    prediction = predict(config(tmp_path, prompts=half), read_rates(earlier))
    assert prediction.startup == 30.0
    halved = 60.0 + 30.0 + 1.0 + 10.0 + 5.0 + 25.0
    assert prediction.iterations == pytest.approx((180.0 - halved / 2, 160.0 - halved / 2))


def test_what_the_run_does_not_do_is_not_counted(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path, evaluation=None), read_rates(earlier))
    assert not any(stage.startswith("heldout") or stage == "agreement" for stage in prediction.stages)
    assert prediction.startup == 26.0
    assert prediction.iterations[1] == pytest.approx(160.0 - 5.0 - 4.0 - 1.0 - 2.0)


def test_what_was_not_measured_is_named(tmp_path: Path) -> None:
    busy = {stage: seconds for stage, seconds in BUSY.items() if stage not in ("agreement", "heldout_win_rates")}
    rates = read_rates(measured(tmp_path / "earlier", busy=busy))
    prediction = predict(config(tmp_path), rates)
    assert prediction.left_out == ("agreement", "heldout_win_rates")
    assert prediction.lines()[-1].startswith("left out, because it was not measured: ")


def test_what_a_run_adopted_at_its_start_is_named(tmp_path: Path) -> None:
    run = measured(tmp_path / "earlier")
    lines = (run / "timeline.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("stage") != "heldout_completions"]
    (run / "timeline.jsonl").write_text("\n".join(kept) + "\n")
    assert predict(config(tmp_path), read_rates(run)).left_out == ("heldout_completions of the start policy",)


def test_interrupted_iterations_and_adopted_shards_are_no_rates(tmp_path: Path) -> None:
    run = measured(tmp_path / "earlier", (180.0, 500.0, 160.0, 90.0))
    with (run / "timeline.jsonl").open("a") as timeline:
        timeline.write(json.dumps(work("completions", 2, 100.0, 110.0)) + "\n")  # before iteration 2 began again
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"time/completions/busy": 0.0})  # another run's shards
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    rates = read_rates(run)
    assert [m.wall for m in (rates.first, *rates.later)] == [180.0, 160.0]


def test_money_is_hours_times_the_price(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path, cluster=local(cost_per_hour=36.0)), read_rates(earlier))
    assert prediction.cost == pytest.approx(3.7)
    assert any("cost 3.70" in line for line in prediction.lines())


@pytest.fixture
def judged(earlier: Path) -> Path:
    """In each iteration of the earlier run the scorer's remote judge read 9,600 tokens and wrote 480."""
    with RunStore(earlier) as store:
        for t in (0, 1):
            record = dict(store.shard_record(t, "scores", 0) or {})
            record["counts"] = {"paid_requests": 48, "paid_input_tokens": 9600, "paid_output_tokens": 480}
            store._add(**record)
    return earlier


def test_a_remote_judge_costs_its_tokens(judged: Path, tmp_path: Path) -> None:
    rates, scorer = read_rates(judged), {**JUDGE, "server": server()}
    usd = 2 * (9600 * 4.0 + 480 * 100.0) / 1e6
    assert predict(config(tmp_path, scorer=scorer), rates).judges == pytest.approx({"scorer": usd})
    once = {**JUDGE, "server": server(), "orders": "random"}
    assert predict(config(tmp_path, scorer=once), rates).judges == pytest.approx({"scorer": usd / 2})


def test_a_judge_that_would_exceed_its_limit_is_refused(judged: Path, tmp_path: Path) -> None:
    scorer = {**JUDGE, "server": server(max_cost_usd=0.1)}
    with pytest.raises(PlanError, match=r"scorer: the judge would cost 0.17 USD, server.max_cost_usd = 0.1"):
        predict(config(tmp_path, scorer=scorer), read_rates(judged))


def test_a_judge_whose_tokens_were_not_measured_has_no_price(earlier: Path, tmp_path: Path) -> None:
    prediction = predict(config(tmp_path, scorer={**JUDGE, "server": server()}), read_rates(earlier))
    assert prediction.judges == {}
    assert "the price of the scorer" in prediction.left_out


def test_folders_without_a_measured_iteration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is not a run folder"):
        read_rates(tmp_path)
    run = measured(tmp_path / "earlier")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(PlanError, match="no iteration was measured from its beginning to its end"):
        read_rates(run)


def test_a_calibration_plays_a_small_part_and_leaves_nothing(tmp_path: Path) -> None:
    whole = config(tmp_path, iterations=3)
    with calibrated(whole, Console(quiet=True), FakeEngines()) as rates:
        assert len(rates.later) == 1
        assert predict(whole, rates).seconds > 0
        assert rates.source == "a calibration with 4 prompts"
    assert not any(path.name.startswith("calibration-") for path in tmp_path.iterdir())


def test_a_calibration_reads_two_shards_for_each_of_its_iterations(tmp_path: Path) -> None:
    part = small(config(tmp_path, iterations=3).model_copy(update={"shard_size": 3}), tmp_path)
    assert (part.iterations, part.prompts.limit, part.name) == (2, 6, "calibration")
