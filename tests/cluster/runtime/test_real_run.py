"""SPPO from prompts to report with real vLLM, PairRM and DeepSpeed on a private Ray, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.metrics.timeline import read_timeline
from engine.metrics.trackers import read_metrics
from engine.schema import AGREEMENT, COMPLETIONS, HELDOUT_WIN_RATES, REF_LOGPS, SCORES
from engine.store import inspection
from engine.store.run import RunStore
from tests.cluster.runtime.conftest import CalmRun
from tests.cluster.runtime.drivers import ROOT
from tests.cluster.runtime.worlds import ITERATIONS, MAX_NEW_TOKENS, NUM_PROMPTS, NUM_SHARDS, NUM_STEPS, STOPS, K

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(calm: CalmRun) -> Iterator[RunStore]:
    with RunStore(calm.folder) as opened:
        yield opened


def rows(store: RunStore, t: int, stage: str, schema: Any) -> list[dict[str, Any]]:
    return [row for table in store.tables(t, stage, schema) for row in table.to_pylist()]


def test_the_command_succeeds_and_says_where_report_and_weights_are(calm: CalmRun) -> None:
    assert calm.exit_code == 0, calm.output
    assert f"weights  {calm.folder / 'weights/002'}" in calm.output
    page = (calm.folder / "report/index.html").read_text(encoding="utf-8")
    assert "finished · 2 of 2 iterations" in page and "Who worked when" in page


def test_all_work_is_on_the_time_line_with_its_role(calm: CalmRun) -> None:
    line = read_timeline(calm.folder)
    stages = {(work.role, work.stage) for work in line.work}
    assert stages >= {
        ("generator", "completions"), ("scorer", "scores"), ("evaluator", "agreement"), ("learner", "ref_logps"),
        ("learner", "learn"), ("driver", "selected"), ("driver", "prepare"),
    }  # fmt: skip
    assert sum(work.stage == "learn" for work in line.work) == sum(r["kind"] == "step" for r in records(calm))
    assert [number for number, _, _ in line.iterations] == list(range(1, ITERATIONS + 1))
    assert all(line.processes[0] <= work.start <= work.end for work in line.work)


def records(calm: CalmRun) -> list[dict[str, Any]]:
    return read_metrics(calm.folder / "metrics.jsonl")


def test_every_answer_is_stamped_with_the_weights_of_its_iteration(store: RunStore) -> None:
    for t in range(ITERATIONS):
        answered = rows(store, t, "completions", COMPLETIONS)
        assert {row["weights"] for row in answered} == {store.recorded_digest(t)}
        assert [len(row["completions"]) for row in answered] == [K] * NUM_PROMPTS
        assert len({row["prompt_id"] for row in answered}) == NUM_PROMPTS
    assert len({store.recorded_digest(version) for version in range(ITERATIONS + 1)}) == ITERATIONS + 1


def test_an_answer_that_stopped_ends_with_its_only_stop_token_and_a_cut_one_has_none(store: RunStore) -> None:
    reasons = set()
    for t in range(ITERATIONS):
        for row in rows(store, t, "completions", COMPLETIONS):
            for ids, reason in zip(row["completion_token_ids"], row["finish_reasons"], strict=True):
                stops = [position for position, token in enumerate(ids) if token in STOPS]
                assert stops == ([len(ids) - 1] if reason == "stop" else [])
                assert reason == "stop" or len(ids) == MAX_NEW_TOKENS
                reasons.add(reason)
    assert reasons == {"stop", "length"}


def test_pairrm_compared_all_and_the_rule_measured_its_agreement(store: RunStore) -> None:
    for t in range(ITERATIONS):
        score_rows = rows(store, t, "scores", SCORES)
        assert {row["scorer"].split(":")[0] for row in score_rows} == {"pairrm"}
        logits = [x for row in score_rows for line in row["pair_logits"] for x in line]
        assert len(logits) == NUM_PROMPTS * K * K and len(set(logits)) > NUM_PROMPTS * K
        assert sum(row["comparable"] for row in rows(store, t, "agreement", AGREEMENT)) > 0
    win_rates = rows(store, ITERATIONS, "heldout_win_rates", HELDOUT_WIN_RATES)
    assert win_rates and all(0.0 <= rate <= 1.0 for row in win_rates for rate in row["win_rates"])


def test_the_reference_is_the_policy_before_its_first_update_to_the_last_bit(calm: CalmRun, store: RunStore) -> None:
    steps = [r for r in read_metrics(calm.folder / "metrics.jsonl") if r["kind"] == "step"]
    assert [(r["iteration"], r["step"]) for r in steps] == [(t + 1, s + 1) for t in range(2) for s in range(NUM_STEPS)]
    for record in steps:
        if record["step"] == 1:
            assert record["log_ratio/max_abs"] == 0.0, record
        if record["step"] == NUM_STEPS:
            assert record["log_ratio/max_abs"] > 0.0, record
    for row in rows(store, 1, "ref_logps", REF_LOGPS):
        completions = next(r for r in rows(store, 1, "completions", COMPLETIONS) if r["prompt_id"] == row["prompt_id"])
        vllm = [completions["completion_logps"][index] for index in row["completion_index"]]
        assert row["ref_logps"] == pytest.approx(vllm, abs=1e-3), "generator and learner disagree"


def test_the_time_ledger_of_each_stage_adds_up(calm: CalmRun) -> None:
    ends = [r for r in read_metrics(calm.folder / "metrics.jsonl") if r["kind"] == "iteration"]
    assert [r["iteration"] for r in ends] == [1, 2]
    for record in ends:
        for stage in (
            "completions",
            "scores",
            "ref_logps",
            "agreement",
            "learn",
            "heldout_completions",
            "heldout_win_rates",
        ):
            assert record[f"time/{stage}/busy"] > 0.0, stage
            assert record[f"time/{stage}/busy"] + record[f"time/{stage}/waiting"] == record["time/wall"]


def kumite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.commands.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_kumite_digest_verify_and_status_read_the_run(calm: CalmRun) -> None:
    assert kumite("digest", str(calm.folder)).stdout.strip() == inspection.run_digest(calm.folder)
    verified = kumite("verify", str(calm.folder))
    assert verified.returncode == 0 and json.loads(verified.stdout)["damages"] == []
    status = kumite("status", str(calm.folder)).stdout
    assert f"{calm.folder}: finished" in status
    assert f"completions {NUM_SHARDS} shards" in status
    assert kumite("status", str(calm.folder.parent)).returncode == 2
