"""A dataclass becomes options with help texts; errors, exit codes and kept outputs are the same for every command."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from engine.errors import ConfigError, DataError, StoreError
from recipes.prepare.command_line import (
    complete,
    new_parser,
    refuse_existing,
    run,
    settings_from,
    write_json,
    write_jsonl,
)

COMMANDS = (
    *(f"recipes.prepare.{name}" for name in ("sft", "self_instruct", "judgements", "small_models")),
    *(f"recipes.experiments.tearoom.{name}" for name in ("build", "judge_build")),
)


@dataclass(frozen=True)
class Settings:
    model: str
    """Folder of the model."""
    data: tuple[str, ...]
    """A file."""
    steps: int = 3
    """Steps, 100% of them."""
    lr: float = 0.5
    template: str | None = None
    """A template."""
    careful: bool = False
    """Take care."""
    version: int = field(default=1, init=False)


def parse(*arguments: str) -> Settings:
    parser = new_parser("a.command", "What it does.")
    parser.add_argument("output", type=Path)
    settings, options = settings_from(parser, Settings, list(arguments))
    assert options.output == Path("out")
    return settings


def test_each_field_is_an_option_of_its_type_with_its_default():
    assert parse("out", "--model", "m", "--data", "a") == Settings("m", ("a",))
    options = ("--steps", "4", "--lr", "1e-3", "--template", "t", "--careful", "--data", "b")
    assert parse("out", "--model", "m", "--data", "a", *options) == Settings("m", ("a", "b"), 4, 1e-3, "t", True)


def test_help_shows_the_docstring_below_each_field_and_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: python -m a.command ") and "What it does." in shown
    assert "--model MODEL Folder of the model --data DATA A file; may be given several times" in shown
    assert "Steps, 100% of them (default: 3)" in shown and "--lr LR (default: 0.5)" in shown
    assert "--template TEMPLATE A template --careful Take care" in shown and "--version" not in shown


@pytest.mark.parametrize("missing", ["--model", "--data"])
def test_a_field_without_a_default_is_required(missing: str, capsys: pytest.CaptureFixture[str]):
    given = {"--model": "m", "--data": "a"}
    with pytest.raises(SystemExit):
        parse("out", *(word for name, value in given.items() if name != missing for word in (name, value)))
    assert f"required: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [DataError("row 3"), ConfigError(["a", "b"]), StoreError("disk")])
def test_an_error_for_people_is_printed_without_a_traceback(error, capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise error

    assert run(command) == error.exit_code
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_figures_are_printed_as_json_and_a_text_as_it_is(capsys: pytest.CaptureFixture[str]):
    assert run(lambda steps: {"steps": steps}, 3) == run(lambda: "done") == 0
    assert capsys.readouterr().out == '{\n  "steps": 3\n}\ndone\n'


def test_a_complete_output_is_kept_and_one_of_other_settings_names_every_difference(tmp_path: Path):
    marker = tmp_path / "made.json"
    origin = {"settings": asdict(Settings("m", ("a",))), "answers": "1f"}
    assert complete(marker, origin) is None
    write_json(marker, {**origin, "figures": {"steps": 9}})
    assert complete(marker, origin) == json.loads(marker.read_text())
    other = {"settings": asdict(Settings("m", ("a",), lr=0.1)), "answers": "2e"}
    with pytest.raises(DataError, match="other settings; choose another folder or delete this one") as caught:
        complete(marker, other)
    assert str(caught.value).split("\n")[1:] == ["  - lr: 0.5, now 0.1", "  - answers: '1f', now '2e'"]


def test_existing_files_are_named_and_not_overwritten(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p"}])
    refuse_existing(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl exists; nothing is overwritten"):
        refuse_existing(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_an_output_that_cannot_be_written_is_an_error_for_people(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_json(tmp_path / "file" / "made.json", {})


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_of_a_command_says_what_it_is_for(module: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m {module} ")
    lines = shown.partition("\noptions:\n")[2].splitlines()
    bare = [line for line, after in zip(lines, [*lines[1:], ""], strict=True)
            if line.startswith("  --") and len(line.split()) <= 2 and not after.startswith("      ")]  # fmt: skip
    assert bare == []
