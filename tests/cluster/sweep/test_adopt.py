"""Runs of a sweep adopt what is equal, nothing else, and end with the digest of a run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines, FakeGenerator
from cluster.run.job import Job
from cluster.sweep.adopt import adopt, is_computing
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.store import inspection
from engine.store.reader import RunReader
from engine.store.run import RunStore
from tests.conftest import ROOT
from tests.engine.benchmarks.alpaca_world import RULE, section
from tests.runs import DyingDisk, Killed, fake_config, finished, play

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
    return finished(fake_config(tmp_path / "first"))


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


@pytest.mark.parametrize(
    "changes",
    [
        {"learner": rate(0.1) | {"lora": {"rank": 4}}},
        {"evaluation": {"scorer": RULE, "benchmarks": {"ifeval": {"prompts": "p.jsonl", "max_prompt_tokens": 9000}}}},
    ],
    ids=["adapters", "longer prompts"],
)
def test_engines_of_another_shape_share_no_answers(tmp_path: Path, changes: dict) -> None:
    plain = fake_config(tmp_path, evaluation={"scorer": RULE})
    other = fake_config(tmp_path, **({"evaluation": {"scorer": RULE}} | changes))
    assert is_computing(plain, plain, tmp_path / "not there")
    assert not is_computing(other, plain, tmp_path / "not there")


def test_no_scores_are_adopted_from_a_run_that_used_another_scorer(first: Path, tmp_path: Path) -> None:
    adopted: dict[str, int] = {}
    config = fake_config(tmp_path / "second", learner=rate(0.2))

    def prepare(store: RunStore) -> None:
        store.pin("scorer", "the rule as it was")
        adopted.update(adopt(store, config, [first]))

    with (
        Job(config, Console(quiet=True), engines=FakeEngines()) as job,
        pytest.raises(StoreError, match="was started with another scorer"),
    ):
        job.play(prepare)
    assert "completions" in adopted and "scores" not in adopted


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


def test_what_a_judge_was_paid_for_an_adopted_shard_is_not_paid_again(first: Path, tmp_path: Path) -> None:
    with RunStore(first) as store:
        record = dict(store.shard_record(0, "scores", 0) or {})
        store._add(
            **{**record, "counts": {"kept": 3, "paid_requests": 1, "paid_input_tokens": 9, "paid_output_tokens": 2}}
        )
    folder, _ = run(fake_config(tmp_path / "second", learner=rate(0.2)), first)
    assert RunReader(folder).counts(0, "scores") == {"kept": 3}


def test_a_run_waits_for_one_that_computes_what_both_need(tmp_path: Path) -> None:
    one, two = fake_config(tmp_path / "one"), fake_config(tmp_path / "two", learner=rate(0.2))
    folder = tmp_path / "one/run"
    assert is_computing(two, one, folder)  # nothing is there yet
    play_until(one, "completions")
    assert not RunReader(folder).shards(0, "ref_logps")
    assert is_computing(two, one, folder)
    play(one)
    assert not is_computing(two, one, folder)


def test_a_run_waits_no_longer_than_for_what_it_could_adopt(tmp_path: Path) -> None:
    one = fake_config(tmp_path / "one")
    folder = tmp_path / "one/run"
    other_scorer = {"kind": "rule", "function": "tests.engine.evaluation.test_gate:inverted"}
    two = fake_config(tmp_path / "two", scorer=other_scorer)
    play_until(one, "heldout_completions", "completions")
    assert not RunReader(folder).shards(0, "ref_logps")
    assert not is_computing(two, one, folder)  # all answers are there, and it shares nothing else
    assert is_computing(fake_config(tmp_path / "three", learner=rate(0.2)), one, folder)


def play_until(config: RunConfig, *stages: str) -> None:
    """Kill the run, again and again, until the stages are complete for the start policy."""
    folder = Path(config.output) / config.name
    while not (folder / "manifest.jsonl").exists() or any(len(RunReader(folder).shards(0, s)) < 4 for s in stages):
        with pytest.raises(Killed):
            play(config, DyingDisk(30))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"sampling": {"num_samples": 4, "max_new_tokens": 5}}])
def test_runs_that_share_nothing_do_not_wait(tmp_path: Path, changes: dict) -> None:
    assert not is_computing(fake_config(tmp_path, **changes), fake_config(tmp_path), tmp_path / "nothing")


def benchmarked(folder: Path, files: Path, **changes: Any) -> RunConfig:
    evaluation = {"annotator": RULE, "benchmarks": {"alpaca_eval": section(files)}}
    return fake_config(folder, iterations=1, shard_size=5, evaluation=evaluation, **changes)


def test_what_a_benchmark_found_about_the_start_policy_is_adopted_as_a_whole(tmp_path: Path) -> None:
    one = play(benchmarked(tmp_path / "one", tmp_path))
    folder, adopted = run(benchmarked(tmp_path / "two", tmp_path, learner=rate(0.2)), one)
    assert {"alpaca_eval_completions", "alpaca_eval_scores", "alpaca_eval_results"} <= set(adopted)
    alone = play(benchmarked(tmp_path / "alone", tmp_path, learner=rate(0.2)))
    assert inspection.run_digest(folder) == inspection.run_digest(alone)
    next((one / "tables/000/alpaca_eval_scores").glob("*.parquet")).write_bytes(b"x")
    _, adopted = run(benchmarked(tmp_path / "three", tmp_path, learner=rate(0.3)), one)
    assert not any(stage.startswith("alpaca_eval") for stage in adopted)


def test_held_out_preferences_are_adopted_too(tmp_path: Path) -> None:
    dpo: dict[str, Any] = {
        "prompts": {"source": str(ROOT / "recipes/configs/smoke_preferences.jsonl"), "limit": 8, "use": "all"},
        "algorithm": {"name": "dpo", "data": "dataset", "reference": "start"},
        "scorer": None,
        "evaluation": {"preferences": {"share": 0.25}},
    }
    one = play(fake_config(tmp_path / "one", **dpo))
    folder, adopted = run(fake_config(tmp_path / "two", learner=rate(0.2), **dpo), one)
    assert set(adopted) == {"validation_rows", "validation_ref_logps", "selected", "ref_logps"}
    alone = play(fake_config(tmp_path / "alone", learner=rate(0.2), **dpo))
    assert inspection.run_digest(folder) == inspection.run_digest(alone)
