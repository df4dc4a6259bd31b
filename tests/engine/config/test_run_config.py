"""The models of a configuration: what they accept and how sections depend on each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from engine.config.evaluation import EvaluationConfig
from engine.config.learner import ScheduleConfig
from engine.config.prompts import PromptsConfig
from engine.config.run import LearnerConfig, RunConfig, SamplingConfig
from tests.runs import fake_config

MINIMAL = {
    "model": {"path": "m"},
    "prompts": {"source": "p.jsonl"},
    "scorer": {"kind": "rule", "function": "package.module:function"},
}


def test_three_sections_make_a_configuration():
    config = RunConfig.model_validate(MINIMAL)
    assert (config.algorithm.name, config.sampling.num_samples, config.learner.batch_size) == ("sppo", 5, 64)


def test_a_configuration_cannot_change_after_it_was_checked():
    config = RunConfig.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_every_key_says_what_it_means_or_has_a_name_that_does():
    undocumented = {
        f"{model.__name__}.{name}"
        for model in (SamplingConfig, LearnerConfig, ScheduleConfig, PromptsConfig, EvaluationConfig)
        for name, field in model.model_fields.items()
        if not field.description
    }
    assert undocumented <= {
        "LearnerConfig.kind",
        "LearnerConfig.num_ranks",
        "LearnerConfig.zero_stage",
        "LearnerConfig.gradient_checkpointing",
        "LearnerConfig.optimizer",
        "LearnerConfig.schedule",
        "ScheduleConfig.kind",
        "EvaluationConfig.prompts",
    }


def test_a_batch_that_does_not_divide_says_by_what():
    with pytest.raises(ValidationError, match=r"batch_size = 10 is not a multiple of .* 4 x 2 = 8"):
        LearnerConfig(batch_size=10, micro_batch_size=4, num_ranks=2)


def test_training_beyond_the_schedule_is_refused_because_the_learning_rate_would_be_0():
    with pytest.raises(ValidationError, match="learning rate would be 0"):
        ScheduleConfig(scheduler_total_epochs=1, stop_after_epochs=2)


def test_one_source_per_iteration_or_one_for_all():
    three = {**MINIMAL, "prompts": {"source": ["a", "b", "c"]}}
    assert RunConfig.model_validate(three).iterations == 3
    with pytest.raises(ValidationError, match="lists 3 sources for iterations = 2"):
        RunConfig.model_validate({**three, "iterations": 2})


def test_the_local_backend_holds_one_rank():
    local = {**MINIMAL, "cluster": {"backend": "local"}}
    RunConfig.model_validate(local)
    with pytest.raises(ValidationError, match=r"needs cluster\.backend = ray"):
        RunConfig.model_validate({**local, "learner": {"num_ranks": 2}})


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65, "with space"])
def test_a_run_name_is_a_plain_folder_name(name):
    with pytest.raises(ValidationError):
        RunConfig.model_validate({**MINIMAL, "name": name})


@pytest.mark.parametrize("function", ["os.system", "a:b:c", ":f", "a:", "a b:c", "a:b.c"])
def test_a_rule_is_named_by_module_and_function(function):
    with pytest.raises(ValidationError):
        RunConfig.model_validate({**MINIMAL, "scorer": {"kind": "rule", "function": function}})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ValidationError):
        SamplingConfig(temperature=value)


def test_what_an_algorithm_would_make_for_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(ValidationError, match="trains on 1 answer per prompt; the others would be unused"):
        RunConfig.model_validate({**fake_config(tmp_path).model_dump(), "algorithm": {"name": "spin"}, "scorer": None})
    with pytest.raises(ValidationError, match=r"micro_batch_size = 1, but algorithm.name = kto compares rows"):
        RunConfig.model_validate({**fake_config(tmp_path).model_dump(), "algorithm": {"name": "kto"}})
    with pytest.raises(ValidationError, match="leave nothing to learn from"):
        fake_config(tmp_path, algorithm={"name": "spac", "pref_weight": 0, "critic_weight": 0})


def test_a_scorer_that_no_stage_uses_has_no_pool(tmp_path) -> None:
    config = fake_config(tmp_path, algorithm={"name": "dpo", "data": "dataset"})
    assert config.scorer is not None and "scorer" not in config.pools
