"""kumite eval: which policies an argument names, and what an evaluation writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from actors.fakes import FakeEngines, make_fake_policy
from cluster.evaluation.candidates import read_sources
from cluster.evaluation.evaluation import Evaluation
from cluster.evaluation.results import write_results
from engine.config.evaluate import EvaluateConfig
from engine.errors import ConfigError, StoreError
from tests.engine.benchmarks.letters import Letters
from tests.runs import fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(fake_config(tmp_path_factory.mktemp("run")))


@pytest.fixture
def evaluated(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    monkeypatch.setattr("cluster.evaluation.evaluation.benchmarks", lambda config: [Letters()])
    (source,) = read_sources([str(run)], tmp_path)
    evaluation = Evaluation(source, config(source, tmp_path), Console(quiet=True), FakeEngines())
    with evaluation:
        assert evaluation.run() == []
    return evaluation


def config(source, folder: Path, **changes) -> EvaluateConfig:
    values = {"name": "evaluation"} | source.config | {"output": str(folder)} | changes
    return EvaluateConfig.model_validate(values | {"evaluation": {"benchmarks": {}}})


def test_a_run_gives_all_its_versions_or_those_that_are_named(run: Path, tmp_path: Path) -> None:
    whole, one, best = read_sources([str(run), f"{run}@1", f"{run}@best"], tmp_path)
    assert [c.name for c in whole.candidates] == ["run-0", "run-1", "run-2"]
    assert [c.policy.version for c in one.candidates] == [1]
    assert len(best.candidates) == 1
    assert [whole.name, one.name, best.name] == ["run", "run-1", "run-best"]


def test_policies_of_one_name_are_numbered(run: Path, tmp_path: Path) -> None:
    other = play(fake_config(tmp_path / "other"))
    model = make_fake_policy(tmp_path / "run-1")
    sources = read_sources([f"{run}@1", f"{other}@1", str(model), f"{run}@best", str(run)], tmp_path)
    columns = [c.name for source in sources for c in source.candidates]
    assert columns[:3] == ["run-1", "run-1-2", "run-1-3"]
    assert len(set(columns)) == len(columns) == 7
    assert len({source.name for source in sources}) == 5


def test_everything_that_names_no_policy_is_told_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_sources([f"{run}@7", str(tmp_path / "answers.json")], tmp_path)
    assert len(error.value.problems) == 2
    assert "has no version 7, only 0, 1, 2" in error.value.problems[0]


def test_a_model_folder_is_one_policy(tmp_path: Path) -> None:
    (source,) = read_sources([str(make_fake_policy(tmp_path / "my model"))], tmp_path)
    assert source.name == "my-model"
    assert source.config["model"]["path"] == str(tmp_path / "my model")


def test_an_evaluation_writes_its_numbers_and_the_benchmarks_files(evaluated: Evaluation, tmp_path: Path) -> None:
    write_results(tmp_path / "out", [evaluated], Console(quiet=True))
    lines = (tmp_path / "out/results.csv").read_text().splitlines()
    assert lines[0].startswith("policy,benchmark,metric,value")
    assert [line.split(",")[0] for line in lines[1:]] == ["run-0", "run-1", "run-2"]
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert len(document["policies"]["run-2"]) == 64
    assert document["results"][0]["stderr"] is None
    assert "| metric | run-0 | run-1 | run-2 |" in (tmp_path / "out/results.md").read_text()
    assert (tmp_path / "out/files/letters/run-1/answers.txt").read_text() == "run-1"


def test_the_same_folder_with_other_weights_is_refused(evaluated: Evaluation, tmp_path: Path) -> None:
    (other,) = read_sources([str(make_fake_policy(tmp_path / "run", [1.0] * 8))], tmp_path)
    with pytest.raises(StoreError, match="another"):
        Evaluation(other, config(evaluated.source, tmp_path), Console(quiet=True), FakeEngines())
