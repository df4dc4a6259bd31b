"""A policy that judges itself, through the whole loop over fake roles: what is stored, measured and refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from actors.fakes import FakeJudge, letter_logps
from actors.scorers.judge.judge import Question, Reply
from cluster.run.job import Job
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.metrics.trackers import read_metrics
from engine.schema import NULL_MODEL, PREVIOUS_SCORES, SCORES
from engine.store import inspection
from engine.store.run import RunStore
from tests.runs import DyingDisk, Killed, fake_config, play

JUDGES = Path(__file__).parents[3] / "recipes" / "judges"
SELF = {"kind": "judge", "server": {"kind": "policy"}, "prompt": str(JUDGES / "pairwise.txt"), "null_model": "Hello."}
POINTS = {**SELF, "mode": "pointwise", "prompt": str(JUDGES / "additive_rubric.txt"), "num_judgements": 2}


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(fake_config(tmp_path_factory.mktemp("heldout_win_rates"), scorer=SELF))


def ends(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "iteration"]


def test_the_policy_learns_from_its_own_verdicts(judged: Path) -> None:
    likes = [np.exp(letter_logps(judged / p))[0] for p in ("start", "weights/001", "weights/002")]
    assert likes[0] < likes[1] < likes[2]


def test_every_verdict_is_stored_word_by_word(judged: Path) -> None:
    with RunStore(judged) as store:
        for row in (row for table in store.tables(0, "scores", SCORES) for row in table.to_pylist()):
            counts = [answer.count("a") for answer in row["completions"]]
            assert row["pair_logits"] == [[pytest.approx(one - other) for other in counts] for one in counts]
            distinct = len(set(row["completions"]))
            assert len(row["verdicts"]) == distinct * (distinct - 1)
            assert {verdict["text"] for verdict in row["verdicts"]} <= {"A", "B"}
            assert row["scorer"].startswith("judge:pairwise:policy:pairwise@")
            assert row["scores"] == []
        assert [table.num_rows for table in store.tables(1, "null_model", NULL_MODEL)] == [2] * 4


def test_metrics_and_report_show_how_it_judges(judged: Path) -> None:
    for figures in ends(judged):
        assert figures["judge/consistency"] == 1.0
        assert figures["judge/position_bias"] == pytest.approx(0.0, abs=1e-12)
        assert figures["judge/missing_rate"] == 0.0
        assert figures["score/agreement"] == 1.0, "the evaluator counts the same letters"
        assert 0.0 <= figures["judge/null_model_win_rate"] <= 0.5
    with Job(fake_config(judged.parent, scorer=SELF), Console(quiet=True)) as job:
        job.report("finished")
    with (judged / "report" / "iterations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["judge_consistency"]) for row in rows] == [1.0, 1.0]
    summary = json.loads((judged / "report" / "summary.json").read_text("utf-8"))
    assert summary["iterations"][0]["judge"]["judge/tie_rate"] == ends(judged)[0]["judge/tie_rate"]
    assert "judge: orders agree" in (judged / "report" / "report.md").read_text("utf-8")


def test_pointwise_scores_train_too_and_a_second_run_gives_the_same(tmp_path: Path) -> None:
    one = play(fake_config(tmp_path / "one", scorer=POINTS))
    other = play(fake_config(tmp_path / "other", scorer=POINTS))
    assert inspection.run_digest(one) == inspection.run_digest(other)
    with RunStore(one) as store:
        row = next(store.tables(0, "scores", SCORES)).to_pylist()[0]
    assert row["scores"] == [float(min(5, answer.count("a"))) for answer in row["completions"]]
    assert {verdict["other"] for verdict in row["verdicts"]} == {-1}
    assert "judge/position_bias" not in ends(one)[0]


def test_self_rewarding_scores_with_the_previous_policy_and_adds_answers_of_the_start_policy(tmp_path: Path) -> None:
    improved = {"name": "self_rewarding", "consistency": "per_prompt", "soft_labels": True, "rejected_from": "start"}
    folder = play(fake_config(tmp_path, scorer=POINTS, algorithm=improved))
    with RunStore(folder) as store:
        again = [row for table in store.tables(1, "previous_scores", PREVIOUS_SCORES) for row in table.to_pylist()]
    assert len(again) == 8
    for row in again:
        assert len(row["completions"]) == 6, "three of the policy and three of the start"
        assert row["previous_scores"] == row["scores"], "this judge counts letters and does not depend on its weights"
    assert all(figures["judge/missing_rate"] == 0 for figures in ends(folder))


@pytest.mark.parametrize("scorer", [SELF, {"kind": "rule", "function": "tests.rules:length"}], ids=["pairs", "rule"])
def test_previous_scores_need_a_policy_that_rates_answers(tmp_path: Path, scorer: dict[str, Any]) -> None:
    """Another scorer would give the same scores again, and the consistency would always be 1."""
    improved = {"name": "self_rewarding", "consistency": "per_prompt", "soft_labels": True}
    with pytest.raises(ValidationError, match=r"expected scorer\.kind = judge, scorer\.mode = pointwise"):
        fake_config(tmp_path, scorer=scorer, algorithm=improved)


def test_a_run_keeps_the_judge_that_it_began_with(tmp_path: Path) -> None:
    prompt = tmp_path / "mine.txt"
    shutil.copy(JUDGES / "pairwise.txt", prompt)
    config = fake_config(tmp_path, scorer={**SELF, "prompt": str(prompt)})
    folder = play(config)
    shutil.rmtree(folder / "tables" / "001" / "scores")
    prompt.write_text(prompt.read_text("utf-8") + "\nBe strict.", "utf-8")
    with pytest.raises(
        StoreError, match=r"started with another scorer \(judge:pairwise:policy:mine@\w{12}:.*now judge:"
    ):
        play(config)


class Stubborn(FakeJudge):
    """Prefers the answer that is shown first."""

    def reply(self, questions: list[Question]) -> list[Reply]:
        return [Reply(("A",), {"A": -0.1, "B": -2.4}) for _ in questions]


def test_a_judge_that_always_answers_the_same_is_a_note_and_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.fakes.FakeJudge", Stubborn)
    config = fake_config(tmp_path, scorer=SELF, algorithm={"name": "sppo", "ties": "keep"})
    folder = play(config)
    assert [figures["judge/commonest_verdict"] for figures in ends(folder)] == [1.0, 1.0]
    assert [figures["judge/consistency"] for figures in ends(folder)] == [0.0, 0.0]
    notes = [record["text"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "note"]
    assert sum("the judge always says the same (the answer shown first" in note for note in notes) == 2


# What a configuration may ask for


def refused(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        fake_config(Path("nowhere"), **changes)
    return str(caught.value)


def test_a_policy_that_judges_itself_has_no_scorer_pool() -> None:
    config = fake_config(Path("nowhere"), scorer=SELF)
    assert config.scoring_role == "generator"
    assert list(config.pools) == ["generator", "evaluator"]
    assert config.null_model == "Hello."
    own = fake_config(Path("nowhere"), scorer={**SELF, "server": {"kind": "vllm", "path": "judge"}, "null_model": None})
    assert own.scoring_role == "scorer"
    assert list(own.pools) == ["generator", "scorer", "evaluator"]
    assert own.null_model is None


def test_the_policy_cannot_be_the_evaluator() -> None:
    held_out = fake_config(Path("nowhere")).model_dump()["evaluation"]
    words = "evaluation.scorer may not be the policy itself"
    assert words in refused(evaluation={**held_out, "scorer": SELF})
    assert words in refused(scorer=SELF, evaluation={**held_out, "scorer": None})
    assert fake_config(Path("nowhere"), scorer=SELF, evaluation=None).evaluating_role == "generator"


def test_keys_of_the_other_mode_and_resources_without_a_pool_are_refused() -> None:
    assert "num_judgements: without effect in mode = pairwise" in refused(scorer={**SELF, "num_judgements": 5})
    assert "orders: without effect in mode = pointwise" in refused(scorer={**POINTS, "orders": "first"})
    assert "num_replicas: server.kind = policy has no pool" in refused(scorer={**SELF, "num_replicas": 2})
    assert "at temperature 0 would all be the same" in refused(scorer={**POINTS, "temperature": 0})
    assert "min_score = 5 is not below max_score = 5" in refused(scorer={**POINTS, "min_score": 5})
    split = {"kind": "vllm", "path": "judge", "tensor_parallel_size": 2}
    assert "needs exactly as many" in refused(scorer={**SELF, "server": split, "gpus": 1})


def test_a_judge_survives_being_written_and_read() -> None:
    config = fake_config(Path("nowhere"), scorer=POINTS)
    assert RunConfig.model_validate(config.model_dump()) == config


EVERY_STAGE = {"name": "self_rewarding", "rejected_from": "start", "consistency": "per_prompt", "soft_labels": True}


def test_a_run_with_every_stage_that_dies_anywhere_ends_with_the_same_digest(tmp_path: Path) -> None:
    """The generators serve three versions in one iteration: start completions, previous scores, and the null model."""
    algorithm = {**EVERY_STAGE, "reference": "start"}

    def config(folder: Path, placement: str) -> RunConfig:
        cluster = {"backend": "local", "placement": placement}
        return fake_config(folder, iterations=3, algorithm=algorithm, scorer=POINTS, cluster=cluster)

    disk = DyingDisk(10**9)
    calm = inspection.run_digest(play(config(tmp_path / "calm", "disaggregated"), disk))
    for k in range(100, 10**9 - disk.left, 599):
        with pytest.raises(Killed):
            play(config(tmp_path / str(k), "disaggregated"), DyingDisk(k))
        assert inspection.run_digest(play(config(tmp_path / str(k), "colocated"))) == calm, f"killed at operation {k}"
