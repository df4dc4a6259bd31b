"""A run's folder and surroundings: where the model comes from, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from actors.factories import Engines
from actors.fakes import FakeChat, FakeEngines, FakeGenerator
from cluster.run.job import Job
from engine.config.run import RunConfig
from engine.errors import DataError, ModelError, RoleError, StoreError
from engine.metrics.trackers import read_metrics
from engine.store import inspection, manifest
from tests.runs import fake_config, play

SECRET = "hf_secret123"


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def with_model(folder: Path, path: str) -> RunConfig:
    """A run of a real model."""
    return fake_config(folder, model={"path": path, "dtype": "float32"})


def test_no_secret_of_the_environment_reaches_the_run_folder(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    with Job(fake_config(tmp_path), Console(quiet=True), engines=FakeEngines()) as job:
        job.play()
        job.show()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"run.json", "config.yaml", "manifest.jsonl", "metrics.jsonl", "index.html"} <= {p.name for p in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_run_records_what_is_needed_to_repeat_it(tmp_path):
    run = play(fake_config(tmp_path, iterations=1, evaluation=None))
    record = json.loads((run / "run.json").read_text())
    assert {"kumite", "commit", "python", "versions", "host", "cpus", "started"} <= set(record)
    assert {"ray", "torch", "pyarrow"} <= set(record["versions"])


def test_another_tokenizer_or_chat_template_is_refused(tmp_path, monkeypatch):
    def fail(self: FakeGenerator, *args: object, **options: object) -> None:
        raise RoleError("the generator did not start")

    with monkeypatch.context() as broken, pytest.raises(RoleError, match="did not start"):
        broken.setattr(FakeGenerator, "deliver", fail)
        play(fake_config(tmp_path))
    monkeypatch.setattr(FakeChat, "digest", "another")
    with pytest.raises(StoreError, match="started with another tokenizer and chat template"):
        play(fake_config(tmp_path))


def test_a_model_that_neither_this_machine_nor_the_hub_has_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path = nobody/nothing: expected a folder.*the download failed"):
        play(with_model(tmp_path, "nobody/nothing"), engines=Engines())


@pytest.mark.parametrize("path", ["not a hub id", "a/b/c"])
def test_a_model_path_that_cannot_be_a_hub_id_is_named_too(tmp_path, path):
    with pytest.raises(ModelError, match=r"model\.path = .*: expected a folder on this machine, or the id of a model"):
        play(with_model(tmp_path, path), engines=Engines())


def test_a_model_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"tokenizer"):
        play(with_model(tmp_path, str(folder)), engines=Engines())


def test_a_run_that_was_refused_gives_its_folder_back(tmp_path):
    for _ in range(2):
        with pytest.raises(ModelError):
            play(with_model(tmp_path, "nobody/nothing"), engines=Engines())


def test_a_refused_config_gives_the_folder_back_as_well(tmp_path):
    play(fake_config(tmp_path, iterations=1, evaluation=None))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"seed: 0 -> 1"):
            play(fake_config(tmp_path, iterations=1, evaluation=None, seed=1))
    play(fake_config(tmp_path, iterations=1, evaluation=None))


def test_a_start_that_failed_does_not_bind_its_configuration(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "good"}\n{"prompt": 3}\n{"prompt": "also good"}\n')
    source = {"source": str(prompts), "use": "all"}
    with pytest.raises(DataError, match=r"prompts\.on_malformed: drop"):
        play(fake_config(tmp_path, prompts=source))
    run = play(fake_config(tmp_path, prompts={**source, "on_malformed": "drop"}))
    notes = [r["text"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "note"]
    assert "an earlier start failed before anything was computed; its configuration is replaced:" in notes
    assert any("prompts.on_malformed: " in note for note in notes)
    alone = play(fake_config(tmp_path / "alone", prompts={**source, "on_malformed": "drop"}))
    assert inspection.run_digest(run) == inspection.run_digest(alone)
    with pytest.raises(StoreError, match="was started with another configuration"):
        play(fake_config(tmp_path, prompts=source))


def test_engines_that_did_not_start_do_not_bind_the_configuration_either(tmp_path, monkeypatch):
    def fail(self: FakeGenerator, *args: object, **options: object) -> None:
        raise RoleError("no room for so many tokens")

    with monkeypatch.context() as patch:
        patch.setattr(FakeGenerator, "__init__", fail)
        with pytest.raises(RoleError, match="no room"):
            play(fake_config(tmp_path, seed=1))
    kinds = {record["kind"] for record in manifest.read(tmp_path / "run/manifest.jsonl")[0]}
    assert kinds == {"shard", "weights", "fact"}
    run = play(fake_config(tmp_path, seed=2))
    assert inspection.run_digest(run) == inspection.run_digest(play(fake_config(tmp_path / "alone", seed=2)))
    assert inspection.damages(run) == []
