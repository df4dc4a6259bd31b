"""What a recipe's process does from the command line to its exit code."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.fakes import FakeEngines, FakeGenerator, FakeLearner
from cluster.commands import train
from engine.config.keys import describe
from engine.config.load import dump
from engine.errors import RoleError
from engine.store import inspection
from engine.store.disk import owner_of
from tests.runs import fake_config, play

BASE = {"algorithm": {"name": "sppo"}}
SMALL: dict[str, Any] = {"iterations": 1, "evaluation": None}


def main(base: dict[str, Any], description: str, argv: list[str]) -> int:
    """A recipe's command over the fakes."""
    return train.main(base, description, argv, FakeEngines())


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    file = tmp_path / "run.yaml"
    file.write_text(dump(fake_config(tmp_path / "runs", **SMALL)))
    return ["--config", str(file)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


def test_help_shows_the_most_used_keys_and_how_to_see_all(capsys):
    with pytest.raises(SystemExit) as end:
        main(BASE, "A recipe.", ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith("usage:") and "A recipe." in text
    assert re.search(r"^learner\.optimizer\.lr +5e-07 +Peak learning rate\.$", text, re.M)
    assert re.search(r"^algorithm\.KEY +sppo has .*eta = 1000\.0", text, re.M | re.S)
    assert "--help-all lists every key" in text
    assert len(text.splitlines()) < 60


def test_help_all_names_every_key(capsys):
    assert main(BASE, "A recipe.", ["--help-all"]) == 0
    text = capsys.readouterr().out
    assert text == describe()
    for key in ("model.path:", "sampling.num_samples:", "learner.optimizer.lr:", "cluster.stated.gpu_gib:"):
        assert f"\n{key}" in text
    assert re.search(r"^learner.checkpoint_every: .*; default 50; no effect on results$", text, re.M)
    assert re.search(r"^cluster.max_retries: .*; no effect on results$", text, re.M)
    assert re.search(r"^learner.num_ranks: .*; default 1$", text, re.M)


def test_a_dry_run_shows_the_plan_and_leaves_no_trace(command, folder, capsys):
    assert main(BASE, "", [*command, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("cluster", "placement", "generator (vllm)", "work", "optimizer steps", "memory", "disk"):
        assert word in text
    assert "dry run: nothing was started" in text
    assert not folder.parent.exists()


def test_every_mistake_in_the_config_is_named_at_once(command, folder, capsys):
    assert main(BASE, "", [*command, "learner.lr=1", "prompts.use=no", "sampling.num_samples=0"]) == 2
    text = capsys.readouterr().out
    assert "3 problems" in text
    assert all(key in text for key in ("learner.lr", "prompts.use", "sampling.num_samples"))
    assert not folder.parent.exists()


@pytest.mark.parametrize("name", ["../outside", "a/b", "/tmp/x", "..", ".hidden", "", "a" * 65, "a\nb"])
def test_a_run_cannot_be_named_out_of_its_folder(command, name, capsys):
    assert main(BASE, "", [*command, f"name={name!r}"]) == 2
    assert "name" in capsys.readouterr().out


def test_a_config_file_that_is_not_there_ends_with_2(capsys):
    assert main(BASE, "", ["--config", "/nowhere/run.yaml"]) == 2
    assert "/nowhere/run.yaml" in capsys.readouterr().out


def test_text_quoted_in_an_error_cannot_control_the_terminal(command, capsys, monkeypatch):
    def fails(*_, **__):
        raise RoleError("it says: \x1b]0;mine\x07")

    monkeypatch.setattr(train, "run", fails)
    assert main(BASE, "", command) == RoleError.exit_code
    assert r"it says: \x1b]0;mine\x07" in capsys.readouterr().out


def test_a_plan_that_does_not_fit_names_the_shortage_before_anything_is_made(command, folder, capsys):
    arguments = [*command, "cluster.backend=ray", "generator.num_replicas=9", "generator.cpus=1000"]
    assert main(BASE, "", arguments) == 2
    assert "CPUs needed (generator 9000" in capsys.readouterr().out
    assert not folder.parent.exists()


def test_a_run_ends_with_0_its_table_and_its_report(command, folder, capsys):
    assert main(BASE, "", command) == 0
    text = capsys.readouterr().out
    assert "report" in text and str(folder / "report" / "index.html") in text
    assert str(folder / "weights" / "001") in text
    page = (folder / "report" / "index.html").read_text()
    assert "finished" in page
    assert inspection.state(folder)["finished"]


def test_a_finished_run_is_left_alone_and_ends_with_0_again(command, folder, capfd):
    play(fake_config(folder.parent, **SMALL))
    before = inspection.run_digest(folder), (folder / "manifest.jsonl").read_bytes()
    assert main(BASE, "", command) == 0
    output = capfd.readouterr()
    assert "finished already" in output.out + output.err
    assert (inspection.run_digest(folder), (folder / "manifest.jsonl").read_bytes()) == before


def test_a_run_that_stops_with_an_error_reports_how_far_it_came_and_ends_with_1(command, folder, monkeypatch, capsys):
    monkeypatch.setattr(FakeLearner, "ref_logps", lambda self, rows: [[float("nan")] * 2] * rows.num_rows)
    assert main(BASE, "", command) == 1
    assert "the loss is nan; no update was made" in capsys.readouterr().out
    page = (folder / "report" / "index.html").read_text()
    assert "stopped: " in page and "the loss is nan" in page
    assert owner_of(folder) is None


@pytest.fixture
def interruptible():
    """As in a terminal: a script's background jobs start with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_its_number_and_the_same_command_continues(
    command, folder, tmp_path, monkeypatch, capsys, interruptible, number, code
):
    answered = 0
    original = FakeGenerator.generate

    def interrupted(self: FakeGenerator, *args: Any, **options: Any) -> Any:
        nonlocal answered
        answered += 1
        if answered == 3:
            signal.raise_signal(number)
        return original(self, *args, **options)

    monkeypatch.setattr(FakeGenerator, "generate", interrupted)
    assert main(BASE, "", command) == code
    assert "the same command continues" in capsys.readouterr().out
    assert "stopped: interrupted" in (folder / "report" / "index.html").read_text()
    assert not inspection.state(folder)["finished"]

    monkeypatch.setattr(FakeGenerator, "generate", original)
    assert main(BASE, "", command) == 0
    assert inspection.run_digest(folder) == inspection.run_digest(play(fake_config(tmp_path / "undisturbed", **SMALL)))


def test_a_rule_beside_the_config_is_found_from_where_the_command_is_given(command, tmp_path, monkeypatch):
    (tmp_path / "my_rules_of_this_test.py").write_text(
        "def longest(messages, answers): return [len(a) for a in answers]"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.sys, "path", [p for p in train.sys.path if p])
    assert main(BASE, "", [*command, "scorer.function=my_rules_of_this_test:longest"]) == 0
