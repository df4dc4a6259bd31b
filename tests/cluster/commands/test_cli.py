"""The `kumite` command on intact, damaged, running and missing runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.commands.cli import main
from engine.store.inspection import run_digest
from engine.store.run import RunStore
from tests.runs import fake_config, play


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield play(fake_config(tmp_path_factory.mktemp("cli")))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_status_of_a_finished_run(run, capsys):
    assert main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: finished"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["weights 0", "weights 1", "weights 2"]
    assert any(line.startswith("  iteration 1: ") and "completions 4 shards" in line for line in lines)
    assert lines[-1] == "  not in use"


def test_the_status_of_a_run_that_stopped_early(run, capsys):
    lines = (run / "manifest.jsonl").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if '"kind":"checkpoint"' in line)
    (run / "manifest.jsonl").write_text("".join(lines[: end + 1]))
    assert main(["status", str(run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{run}: not finished\n")
    assert "iteration 1: the learner last saved at step 1" in text
    assert "weights 1" not in text


def test_the_status_says_who_uses_a_run(run, capsys):
    with RunStore(run):
        assert main(["status", str(run)]) == 0
    assert f"in use by process {os.getpid()} on " in capsys.readouterr().out


def test_looking_at_a_run_changes_nothing_in_it(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in ("status", "verify", "digest"):
        assert main([command, str(run)]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_verify_finds_no_damage_in_an_intact_run(run, capsys):
    assert main(["verify", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(run), "damages": []}


def test_verify_names_everything_that_is_damaged(run, capsys):
    altered, missing = sorted((run / "tables/001/scores").iterdir())[:2]
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    missing.unlink()
    weights = run / "weights/001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["verify", str(run)]) == 1
    damages = json.loads(capsys.readouterr().out)["damages"]
    assert len(damages) == 3
    text = "\n".join(damages)
    assert f"{altered.relative_to(run)} is not what was committed" in text
    assert f"{missing.relative_to(run)} is missing" in text
    assert "weights version 1: " in text


def test_the_digest_is_the_same_wherever_the_run_lies(finished, run, capsys):
    assert main(["digest", str(run)]) == 0
    assert capsys.readouterr().out.strip() == run_digest(finished)


@pytest.mark.parametrize("command", ["status", "verify", "digest"])
def test_a_folder_that_is_not_a_run_ends_with_2_and_a_message(command, tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "absent"):
        assert main([command, str(folder)]) == 2
        output = capsys.readouterr()
        assert "is not a run folder" in output.err
        assert output.out == ""


@pytest.mark.parametrize("command", ["status", "verify", "digest"])
def test_an_altered_manifest_ends_with_2_and_its_line(command, run, capsys):
    path = run / "manifest.jsonl"
    path.write_text(path.read_text().replace('"version":1', '"version":7', 1))
    assert main([command, str(run)]) == 2
    assert f"{path}:" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(run, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.commands.inspect.Digest.run", stopped)
    assert main(["digest", str(run)]) == 130
    assert capsys.readouterr().err == "stopped; run the same command again to continue\n"


def test_a_command_that_does_not_exist_ends_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["destroy", "x"])
    assert end.value.code == 2


def test_the_best_version_is_named_with_the_gates_reasons(finished, capsys):
    assert main(["best", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("version ")
    assert sum(line.startswith("  version ") for line in lines) == 2


def test_keys_may_follow_an_option_of_kumite_eval_and_nothing_else_may(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\n")
    assert main(["eval", "nowhere.json", "--config", str(file), f"output={tmp_path}", "nobody.jsonl"]) == 2
    words = capsys.readouterr().err
    assert "nowhere.json: no such file" in words and "nobody.jsonl: no such file" in words
    with pytest.raises(SystemExit):
        main(["eval", "nowhere.json", "--confg", "x"])
    with pytest.raises(SystemExit):
        main(["status", "one", "two"])
    assert "unrecognized arguments: two" in capsys.readouterr().err


def test_kumite_eval_without_a_policy_is_for_benchmarks_of_the_annotator(capsys, tmp_path):
    rule = ["evaluation.annotator.kind=rule", "evaluation.annotator.function=actors.fakes:utility"]
    assert main(["eval", f"output={tmp_path}", *rule]) == 2
    assert "evaluation.benchmarks is missing" in capsys.readouterr().err
