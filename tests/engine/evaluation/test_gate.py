"""The gate: the rule, each alarm, and what each policy does in a run that a wrong scorer trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.evaluation import GateConfig
from engine.evaluation.gate import alarms, best_version, decide, decisions
from engine.evaluation.ladder import run_ladder
from engine.schema import COMPLETIONS
from engine.store import inspection
from engine.store.reader import RunReader
from tests.runs import PROMPTS, DyingDisk, Killed, fake_config, finished, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

WINS = {
    "evaluate/win_rate_vs_current": 0.6,
    "evaluate/win_rate_vs_current_low": 0.55,
    "evaluate/win_rate_vs_current_high": 0.65,
}
FIGURES = {
    "evaluate/length_ratio": (1.6, "answers are 1.60 times as long"),
    "evaluate/kl": (60.0, "60.0 nats per answer"),
    "evaluate/truncation_rise": (0.5, "truncated answers rose by 0.50"),
    "evaluate/entropy_ratio": (0.05, "entropy per token is 0.05 times"),
    "score/agreement": (0.4, "agree on 0.40 of the pairs"),
    "select/tie_rate": (0.95, "on 0.95 of the prompts"),
    "judge/null_model_win_rate": (0.7, "says nothing on 0.70"),
}


def inverted(messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """A scorer that prefers what the evaluator dislikes."""
    return [-float(answer.count("a")) for answer in answers]


def config(folder: Path, policy: str, **changes: Any):
    rule = {"kind": "rule", "function": "actors.fakes:utility"}
    evaluation = {"prompts": PROMPTS | {"limit": None}, "scorer": rule, "num_samples": 8, "gate": {"policy": policy}}
    wrong = {"kind": "rule", "function": "tests.engine.evaluation.test_gate:inverted"}
    return fake_config(folder, **{"evaluation": evaluation, "scorer": wrong, "iterations": 3} | changes)


def test_an_interval_above_the_threshold_promotes() -> None:
    decision = decide(GateConfig(), 2, 1, WINS)
    assert (decision.promoted, decision.against, decision.reasons) == (True, 1, ())


@pytest.mark.parametrize("low", [0.5, 0.45])
def test_an_interval_that_reaches_the_threshold_does_not(low: float) -> None:
    decision = decide(GateConfig(), 2, 0, WINS | {"evaluate/win_rate_vs_current_low": low})
    assert not decision.promoted
    assert "against version 0, and the interval is not above 50 %" in decision.in_words()


def test_without_a_verdict_nothing_is_promoted() -> None:
    assert decide(GateConfig(), 1, 0, {}).reasons == ("there is no verdict on it against version 0",)


@pytest.mark.parametrize("figure", FIGURES)
def test_each_alarm_stops_a_version_that_wins_and_says_why(figure: str) -> None:
    value, text = FIGURES[figure]
    gate = GateConfig(max_kl=50.0)
    decision = decide(gate, 1, 0, WINS | {figure: value})
    assert len(decision.reasons) == 1
    assert text in decision.reasons[0]
    off = gate.model_copy(update={name: None for name in GateConfig.model_fields if name.startswith(("max_", "min_"))})
    assert decide(off, 1, 0, WINS | {figure: value}).promoted


def test_every_alarm_is_tried_above() -> None:
    assert {alarm.figure for alarm in alarms(GateConfig())} == set(FIGURES)


def test_an_inverted_scorer_is_rejected_at_every_iteration_and_each_starts_again_from_the_start(tmp_path: Path) -> None:
    run = RunReader(finished(config(tmp_path, "reject")))
    assert [decision.promoted for decision in decisions(run)] == [False, False, False]
    assert "scorer and evaluator agree on" in " ".join(decisions(run)[0].reasons)
    for t in range(3):
        stamps = {w for table in run.tables(t, "completions", COMPLETIONS) for w in table["weights"].to_pylist()}
        assert stamps == {run.recorded_digest(0)}
    assert best_version(run)[0] == 0


def test_a_good_scorer_is_never_rejected(tmp_path: Path) -> None:
    good = {"kind": "rule", "function": "actors.fakes:utility"}
    run = RunReader(play(config(tmp_path, "reject", scorer=good)))
    assert [decision.promoted for decision in decisions(run)] == [True, True, True]
    assert best_version(run)[0] == 3


def test_stop_ends_the_run_at_the_first_version_that_is_not_promoted_and_starting_it_again_does_nothing(
    tmp_path: Path,
) -> None:
    folder = play(config(tmp_path, "stop"))
    assert RunReader(folder).versions == [0, 1]
    before = (folder / "manifest.jsonl").read_bytes()
    play(config(tmp_path, "stop"))
    assert (folder / "manifest.jsonl").read_bytes() == before


def test_warn_trains_on_from_the_version_that_was_not_promoted(tmp_path: Path) -> None:
    run = RunReader(play(config(tmp_path, "warn")))
    stamps = {w for table in run.tables(2, "completions", COMPLETIONS) for w in table["weights"].to_pylist()}
    assert stamps == {run.recorded_digest(2)}


@pytest.mark.parametrize("k", (60, 320))
def test_a_run_that_was_killed_decides_the_same(tmp_path: Path, k: int) -> None:
    whole = finished(config(tmp_path / "whole", "reject"))
    with pytest.raises(Killed):
        play(config(tmp_path / "killed", "reject"), DyingDisk(k))
    resumed = play(config(tmp_path / "killed", "reject"))
    assert decisions(RunReader(resumed)) == decisions(RunReader(whole))
    assert inspection.run_digest(resumed) == inspection.run_digest(whole)


def test_the_ladder_of_a_run_compares_every_version_with_every_earlier_one(tmp_path: Path) -> None:
    good = {"kind": "rule", "function": "actors.fakes:utility"}
    result = run_ladder(RunReader(play(config(tmp_path, "warn", scorer=good))))
    assert result is not None
    assert result.versions == (0, 1, 2, 3)
    assert list(result.elo) == sorted(result.elo)
