"""What a person reads after writing a key of another library, an old key, or a value of the wrong kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.evaluate import EvaluateConfig
from engine.config.load import load, load_as
from engine.errors import ConfigError

BASE = {
    "model": {"path": "m"},
    "prompts": {"source": "p.jsonl"},
    "scorer": {"kind": "pairrm", "path": "x"},
}
JUDGE = {"scorer": {"kind": "judge", "prompt": "p.txt", "server": {"kind": "policy"}}}


def message(*overrides: str, path: Path | None = None, **sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, BASE | sections)
    (problem,) = caught.value.problems
    return problem


def test_a_key_of_runs_in_the_configuration_of_an_evaluation_is_called_that() -> None:
    with pytest.raises(ConfigError) as caught:
        load_as(EvaluateConfig, None, ["iterations=3"], {"name": "e", "model": {"path": "m"}, "evaluation": {}})
    assert "iterations: unknown key; it is a key of runs, which has no meaning here" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("learner.learning_rat=1e-6", "did you mean learner.optimizer.lr?"),
        ("learner.lr=1e-6", "did you mean learner.optimizer.lr?"),
        ("algorithm.beta=0.001", "here it is algorithm.eta = 1 / beta in sppo"),
        ("num_epochs=3", "here it is learner.schedule.scheduler_total_epochs and learner.schedule.stop_after_epochs"),
        ("train_batch_size=64", "here it is learner.batch_size"),
        ("lora_r=16", "here it is learner.lora.rank"),
        ("lora_alpha=32", "here it is learner.lora.alpha"),
        ("n_samples=5", "here it is sampling.num_samples"),
        ("temperature=0.7", "did you mean sampling.temperature or "),
        ("generator.tp=2", "here it is generator.tensor_parallel_size"),
        ("zero_stage=3", "did you mean learner.zero_stage?"),
        ("eval_steps=10", "here it is learner.evaluate_every, with evaluation.preferences"),
        ("load_best_model_at_end=true", "here it is learner.keep_best_step"),
        ("early_stopping_patience=3", "here it is learner.early_stopping.patience"),
        ("learner.max_steps=3", "here it is learner.schedule.max_steps"),
        ("test_size=0.1", "here it is evaluation.preferences.share"),
        ("report_to=tensorboard", "here it is tracking.report_to"),
        ("tracking.tensorboard=true", "here it is tracking.report_to=[tensorboard]"),
        ("push_to_hub=true", "nothing is pushed to the hub; upload a version with `hf upload"),
    ],
)
def test_a_key_of_another_library_or_a_slip_leads_to_the_right_key(override: str, advice: str) -> None:
    key = override.partition("=")[0]
    text = message(override)
    assert text.startswith(f"{key}: unknown key; ")
    assert advice in text
    assert text.endswith("(command line)")


def test_beta_under_sppo_names_the_algorithms_that_have_it_too() -> None:
    assert "it belongs to another kind of algorithm: dpo" in message("algorithm.beta=0.001")


@pytest.mark.parametrize(("old", "new"), [("side_by_side", "disaggregated"), ("turns", "colocated")])
def test_a_renamed_value_leads_to_the_new_one(old: str, new: str) -> None:
    text = f"cluster.placement = {old!r}: expected one of disaggregated, colocated; here it is {new} (command line)"
    assert message(f"cluster.placement={old}") == text


def test_a_renamed_key_leads_to_the_new_one() -> None:
    assert "scorer.canary: unknown key; here it is scorer.null_model" in message("scorer.canary=hello", **JUDGE)


@pytest.mark.parametrize("text", ["'1e-6'", '"5e-7"', "'1'"])
def test_a_number_in_quotes_is_text_and_the_quotes_are_named(text: str) -> None:
    number = text.strip("\"'")
    assert message(f"learner.optimizer.lr={text}") == (
        f"learner.optimizer.lr = '{number}': expected a number at least 0; this is text, write {number} without "
        f"quotes (command line)"
    )


def test_a_value_of_the_wrong_type_says_which_type_is_right() -> None:
    assert message("iterations=three") == "iterations = 'three': expected a whole number from 1 to 10000 (command line)"
    assert message("algorithm=dpo").startswith("algorithm = 'dpo': expected a section whose name is one of sppo, dpo")
    assert message("sampling=5").startswith("sampling = 5: expected a section with the keys num_samples, temperature")


@pytest.mark.parametrize("text", ["learner:\n\tbatch_size: 4\n", "learner:\n  batch_size: 4\n\tzero_stage: 1\n"])
def test_a_tab_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    line = 1 + text[: text.index("\t")].count("\n")
    said = message(path=file)
    assert said == f"{file}:{line}: not YAML: a tab where only spaces may stand; indent with spaces"


def test_a_key_that_is_there_twice_names_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\niterations: 2\nseed: 3\n")
    assert message(path=file) == f"{file}:3: the key 'seed' is here twice; first at {file}:1"


def test_keys_that_do_not_go_together_have_the_place_of_the_first_one_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampling:\n  num_samples: 1\n")
    assert message(path=file).endswith(f"needs at least 2 answers per prompt ({file}:2)")


@pytest.mark.parametrize("betas", ["[0.1]", "[]", "[0.1,0.2,0.3]"])
def test_a_list_of_another_length_is_named_with_its_length(betas: str) -> None:
    text = message(f"learner.optimizer.betas={betas}")
    assert text.startswith("learner.optimizer.betas = [") and "expected a list of 2" in text


def test_every_wrong_element_of_a_list_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, ['learner.optimizer.betas=["0.1", true]'], BASE)
    first, second = caught.value.problems
    assert "betas.0 = '0.1': expected a number" in first and "betas.1 = true: expected a number" in second
