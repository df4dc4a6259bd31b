"""The supervised start: every format that a run reads, through the chat template; all mistakes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.tiny_policy import make_tiny_policy
from engine.errors import ConfigError, DataError
from recipes.prepare.sft import MARKER, Settings, main, read_examples, train

EXAMPLE = {
    "prompt": [{"role": "user", "content": "Tea?"}],
    "completion": [{"role": "assistant", "content": "Gladly."}],
}
SELECTED: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Tea?", "completion": "Gladly."},
    "chat": EXAMPLE,
    "messages": {"messages": [*EXAMPLE["prompt"], *EXAMPLE["completion"]]},
    "alpaca": {"instruction": "Tea?", "output": "Gladly."},
    "sharegpt": {"conversations": [{"from": "human", "value": "Tea?"}, {"from": "gpt", "value": "Gladly."}]},
    "labelled": {"prompt": "Tea?", "completion": "Gladly.", "label": True},
}


def write(file: Path, *rows: Any) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("row", SELECTED.values(), ids=SELECTED)
def test_every_format_becomes_the_same_chat(row: dict[str, Any], tmp_path: Path) -> None:
    assert read_examples((write(tmp_path / "a.jsonl", row),)) == ([EXAMPLE], 0)


def test_files_of_different_formats_train_together(tmp_path: Path) -> None:
    files = tuple(write(tmp_path / f"{name}.jsonl", row) for name, row in SELECTED.items())
    assert read_examples(files)[0] == [EXAMPLE] * len(SELECTED)


def test_an_answer_that_is_labelled_bad_is_not_imitated_but_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", SELECTED["labelled"], SELECTED["labelled"] | {"label": False})
    assert read_examples((file,)) == ([EXAMPLE], 1)


def test_the_bad_rows_of_all_files_are_named_at_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", SELECTED["text"], {"prompt": "", "completion": "x"})
    second = write(tmp_path / "b.jsonl", SELECTED["text"], {"prompt": "Tea?", "completion": None})
    with pytest.raises(DataError, match="2 rows cannot be used") as caught:
        read_examples((first, second))
    assert f"{first}:2" in str(caught.value) and f"{second}:2" in str(caught.value)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-size 6 is not a multiple of --micro-batch-size 4"):
        train(tmp_path / "out", Settings("model", ("data",), batch_size=6))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([str(tmp_path), "--model", "m", "--data", "d.jsonl"]) != 0
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.real
def test_a_model_learns_to_answer_through_its_template_and_is_kept(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, output = make_tiny_policy(tmp_path / "model"), tmp_path / "out"
    settings = Settings(str(model), (write(tmp_path / "a.jsonl", *[SELECTED["messages"]] * 64),), epochs=6.0, lr=3e-3)
    figures = train(output, settings)
    assert (figures["examples"], figures["without_room"], figures["labelled_bad"]) == (64, 0, 0)
    assert figures["last_loss"] < 0.5 < figures["first_loss"]
    assert not [path.name for path in output.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    tokenizer = AutoTokenizer.from_pretrained(output)
    asked = tokenizer.apply_chat_template(EXAMPLE["prompt"], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        said = AutoModelForCausalLM.from_pretrained(output).generate(ids, max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True) == "Gladly."
    written = (output / MARKER).stat().st_mtime_ns
    assert train(output, settings) == figures and (output / MARKER).stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"lr: 0.003, now 0.1"):
        train(output, Settings(settings.model, settings.data, epochs=6.0, lr=0.1))
