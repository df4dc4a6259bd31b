"""A sweep file becomes runs; everything wrong with it, and with every run, is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.sweep.grid import Sweep, read_sweep
from engine.errors import ConfigError

BASE = Path(__file__).parents[3] / "recipes/configs/smoke_sppo.yaml"


@pytest.fixture
def sweep(tmp_path: Path):
    def read(text: str, *overrides: str) -> Sweep:
        file = tmp_path / "sweep.yaml"
        file.write_text(text)
        return read_sweep(file, BASE, [f"output={tmp_path}", *overrides])

    return read


def problems(sweep, text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        sweep(text)
    return [problem.rpartition("sweep.yaml: ")[2] for problem in error.value.problems]


def test_every_value_is_combined_with_every_other(sweep, tmp_path: Path) -> None:
    result = sweep("name: grid\nvary:\n  algorithm.eta: [1, 5]\n  learner.optimizer.lr: [1e-4, 3e-4, 1e-3]\n")
    assert [run.name for run in result.runs] == [
        "eta-1_lr-0.0001", "eta-1_lr-0.0003", "eta-1_lr-0.001", "eta-5_lr-0.0001", "eta-5_lr-0.0003", "eta-5_lr-0.001"
    ]  # fmt: skip
    assert [(run.config.algorithm.eta, run.config.learner.optimizer.lr) for run in result.runs[:2]] == [
        (1.0, 1e-4),
        (1.0, 3e-4),
    ]
    assert {run.config.output for run in result.runs} == {str(tmp_path / "grid")}
    assert result.keys == ("algorithm.eta", "learner.optimizer.lr")


def test_linked_values_stay_together(sweep) -> None:
    result = sweep("linked:\n  - seed: [0, 1]\n    sampling.num_samples: [2, 3]\nvary: {algorithm.eta: [1, 5]}\n")
    assert sorted({(run.config.seed, run.config.sampling.num_samples) for run in result.runs}) == [(0, 2), (1, 3)]
    assert len(result.runs) == 4


def test_what_is_linked_with_the_seed_is_known(sweep) -> None:
    assert sweep("linked:\n  - {seed: [0, 1], model.path: [a, b]}\n").with_seed == ("seed", "model.path")
    assert sweep("vary: {seed: [0, 1]}\n").with_seed == ()


def test_a_key_may_have_mappings_and_lists_as_values(sweep) -> None:
    result = sweep("vary:\n  learner.optimizer: [{name: adamw, lr: 1e-3}, {name: rmsprop, lr: 1e-4}]\n")
    assert [run.config.learner.optimizer.name for run in result.runs] == ["adamw", "rmsprop"]
    assert len({run.name for run in result.runs}) == 2


def test_excluded_combinations_are_left_out(sweep) -> None:
    vary = "vary:\n  algorithm.eta: [1, 5]\n  seed: [0, 1]\n"
    result = sweep(vary + "exclude:\n  - {algorithm.eta: 5, seed: 1}\n")
    assert [run.name for run in result.runs] == ["eta-1_seed-0", "eta-1_seed-1", "eta-5_seed-0"]
    found = problems(sweep, vary + "exclude: [{seed: 7}, {iterations: 2}, {}]\n")
    assert found == [
        "exclude.0: seed = 7: expected one of [0, 1]",
        "exclude.1: iterations = 2: the sweep does not vary this key",
        "exclude.2: excludes every combination",
    ]
    assert problems(sweep, "vary: {seed: [0]}\nexclude: [{seed: 0}]\n") == ["exclude.0: no combination is left"]


def test_names_that_would_be_equal_are_numbered(sweep) -> None:
    result = sweep("vary:\n  model.path: [a/policy, b/policy]\n")
    assert [run.name for run in result.runs] == ["1_path-policy", "2_path-policy"]


def test_mistakes_in_the_runs_are_told_at_once_with_key_and_value(sweep) -> None:
    found = problems(sweep, "vary:\n  algorithm.eta: [-1, 5]\n  learner.optimizer.lrr: [1]\n")
    assert any("algorithm.eta = -1" in problem for problem in found)
    assert sum("learner.optimizer.lrr" in problem for problem in found) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary: {}\n", "names no key"),
        ("linked:\n  - seed: [0, 1]\n    algorithm.eta: [1]\n", "seed has 2 values, algorithm.eta has 1 values"),
        ("vary: {seed: [0]}\nlinked:\n  - seed: [1]\n", "seed is varied twice"),
        ("vary: {output: [a]}\n", "output: the sweep decides it"),
        ("vary: {seed: []}\n", "vary.seed: List should have at least 1 item"),
        ("varyy: {seed: [0]}\n", "varyy: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_no_sweep_says_why(sweep, text: str, message: str) -> None:
    assert any(message in problem for problem in problems(sweep, text))
