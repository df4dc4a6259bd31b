"""The keys of validation and of training control: which combinations mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.plan.estimates import max_steps
from engine.config.learner import LearnerConfig, ScheduleConfig
from engine.config.load import dump, load
from engine.config.preferences import PreferencesConfig
from engine.config.run import RunConfig
from tests.runs import fake_config

PAIRS = {"preferences": {"source": "pairs.jsonl"}}
OFFLINE = {"scorer": None, "algorithm": {"name": "dpo", "data": "dataset"}}


def run(folder: Path, learner: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return fake_config(folder, learner={"zero_stage": 0} | (learner or {}), **changes)


def test_a_number_of_warm_up_steps_takes_the_place_of_the_ratio() -> None:
    assert ScheduleConfig().warmup(200) == 20.0
    assert ScheduleConfig(warmup_steps=7).warmup(200) == 7
    assert ScheduleConfig(warmup_steps=0).warmup(200) == 0
    with pytest.raises(ValidationError, match=r"warmup_steps = 7 and warmup_ratio = 0\.1 both say"):
        ScheduleConfig(warmup_steps=7, warmup_ratio=0.1)


def test_the_keys_survive_the_file_that_a_run_stores(tmp_path: Path) -> None:
    """The stored file names every key, the ones with their defaults too."""
    learner = {"schedule": {"warmup_steps": 3, "max_steps": 40}, "evaluate_every": 5, "keep_best_step": "loss"}
    config = run(tmp_path, learner, evaluation=PAIRS, **OFFLINE)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config


def test_max_steps_takes_the_place_of_epochs_in_the_plan_too() -> None:
    learner = LearnerConfig(batch_size=8, schedule=ScheduleConfig(max_steps=30))
    assert max_steps(learner, rows=80) == 30
    assert max_steps(LearnerConfig(batch_size=8), rows=80) == 10
    with pytest.raises(ValidationError, match="max_steps = 30 takes the place of scheduler_total_epochs = 18"):
        ScheduleConfig(max_steps=30, scheduler_total_epochs=18)


@pytest.mark.parametrize("choice", [{"early_stopping": {}}, {"keep_best_step": "loss"}])
def test_choosing_a_step_needs_several_validations(choice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="without evaluate_every: an iteration is validated once"):
        LearnerConfig(**choice)


def test_validation_needs_something_to_validate_on(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"learner\.evaluate_every = 5 without evaluation\.preferences"):
        run(tmp_path, {"evaluate_every": 5})
    assert run(tmp_path, {"evaluate_every": 5}, evaluation=PAIRS, **OFFLINE).preferences


@pytest.mark.parametrize(
    "changes",
    [{"algorithm": {"name": "sppo"}}, {"algorithm": {"name": "spin"}}, {"algorithm": {"name": "dpo"}}],
)
def test_a_share_can_only_be_held_out_of_a_data_set_with_preferences(tmp_path: Path, changes: dict[str, Any]) -> None:
    evaluation = {"preferences": {"share": 0.1}}
    with pytest.raises(ValidationError, match="holds no preferences that could be held out; name a second set"):
        run(tmp_path, evaluation=evaluation, **changes)
    for algorithm in ({"name": "spac"}, {"name": "kto"}, {"name": "kto", "data": "labels"}, OFFLINE["algorithm"]):
        assert run(tmp_path, {"micro_batch_size": 2}, evaluation=evaluation, algorithm=algorithm, scorer=None)


def test_labelled_answers_have_no_accuracy_to_choose_a_step_by(tmp_path: Path) -> None:
    learner = {"micro_batch_size": 2, "evaluate_every": 5, "keep_best_step": "accuracy"}
    labels = {"name": "kto", "data": "labels"}
    with pytest.raises(ValidationError, match=r"learner\.keep_best_step = accuracy: single answers with a label"):
        run(tmp_path, learner, evaluation={"preferences": {"share": 0.1}}, algorithm=labels, scorer=None)


def test_held_out_preferences_are_a_share_or_a_second_set() -> None:
    for wrong in ({}, {"share": 0.1, "source": "pairs.jsonl"}):
        with pytest.raises(ValidationError, match="expected either share"):
            PreferencesConfig(**wrong)
    with pytest.raises(ValidationError, match="limit: with share the rows are read as the section prompts says"):
        PreferencesConfig(share=0.1, limit=5)
    assert PreferencesConfig(source="pairs.jsonl", limit=5, on_malformed="drop").prompts().on_malformed == "drop"
