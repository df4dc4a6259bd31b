"""`kumite publish` against a stand-in of the hub on this machine: what is sent, to whom, and what never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard, constants
from safetensors.numpy import save_file

from actors.fakes import make_fake_policy
from cluster.commands.cli import main
from engine.store.weights import write_checksums
from tests.cluster.products.local_hub import TOKEN, LocalHub, invalid_metadata
from tests.engine.benchmarks.alpaca_world import RULE, section
from tests.runs import PROMPTS, fake_config, play

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    server = LocalHub()
    for name, value in {"ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def write_model(folder: Path, card: str = "---\nlicense: apache-2.0\n---\n\n# A model\n") -> Path:
    make_fake_policy(folder)
    write_checksums(folder)
    (folder / "README.md").write_text(card)
    return folder


def write_data(folder: Path, text: str = "An apple.") -> Path:
    (folder / "data").mkdir(parents=True)
    table = pa.table(
        {"prompt": [[{"role": "user", "content": "A fruit?"}]], "chosen": [[{"role": "assistant", "content": text}]]}
    )
    pq.write_table(table, folder / "data/train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# Data\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_becomes_a_private_repository_with_the_same_bytes(hub: LocalHub, tmp_path: Path, capsys) -> None:
    for folder, kind in ((write_model(tmp_path / "model"), "model"), (write_data(tmp_path / "data"), "dataset")):
        assert main(["publish", str(folder), f"me/{kind}"]) == 0
        repository = hub.repositories[f"me/{kind}"]
        assert (repository.kind, repository.private, repository.files) == (kind, True, contents(folder))
        assert repository.messages == ["Export of a run of Kumite"]
        output = capsys.readouterr().out
        assert f"create the private {kind} me/{kind} on {hub.endpoint}" in output and "published  http" in output


def test_only_public_makes_it_public(hub: LocalHub, tmp_path: Path) -> None:
    assert main(["publish", str(write_model(tmp_path / "model")), "me/open", "--public"]) == 0
    assert not hub.repositories["me/open"].private


def test_a_dry_run_lists_the_files_and_sends_nothing(hub: LocalHub, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("HF_TOKEN")
    folder = write_model(tmp_path / "model")
    assert main(["publish", str(folder), "me/model", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[1:-2]}
    assert listed == {name: len(data) for name, data in contents(folder).items()}
    assert lines[-1] == "dry run: nothing was sent" and hub.requests == []


def test_without_a_token_nothing_is_sent(hub: LocalHub, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["publish", str(write_model(tmp_path / "model")), "me/model"]) == 2
    assert "set HF_TOKEN, or log in with `hf auth login`; nothing was sent" in capsys.readouterr().err
    assert hub.requests == []


def test_a_token_that_the_hub_refuses_is_not_printed(hub: LocalHub, tmp_path: Path, monkeypatch, capsys) -> None:
    wrong = "hf_" + "w" * 34
    monkeypatch.setenv("HF_TOKEN", wrong)
    assert main(["publish", str(write_model(tmp_path / "model")), "me/model"]) == 2
    output = capsys.readouterr()
    assert "me/model was not published" in output.err and wrong not in output.err + output.out


def test_a_repository_that_exists_is_changed_only_with_update(hub: LocalHub, tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model")
    assert main(["publish", str(folder), "me/model", "--update"]) == 2
    assert "does not exist yet" in capsys.readouterr().err
    assert main(["publish", str(folder), "me/model"]) == 0
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Again\n")
    assert main(["publish", str(folder), "me/model"]) == 2
    assert "exists already; add a commit to it with --update" in capsys.readouterr().err
    assert b"apache-2.0" in hub.repositories["me/model"].files["README.md"]
    assert main(["publish", str(folder), "me/model", "--update"]) == 0
    assert hub.repositories["me/model"].files == contents(folder)
    assert len(hub.repositories["me/model"].messages) == 2


def test_an_update_replaces_data_and_weights_and_leaves_other_files(hub: LocalHub, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    assert main(["publish", str(folder), "me/data"]) == 0
    hub.repositories["me/data"].files["logo.svg"] = b"<svg/>"
    (folder / "data/train-00000-of-00001.parquet").rename(folder / "data/train-00000-of-00002.parquet")
    assert main(["publish", str(folder), "me/data", "--update"]) == 0
    assert hub.repositories["me/data"].files == contents(folder) | {"logo.svg": b"<svg/>"}


def test_a_private_folder_never_goes_to_a_public_repository_unasked(hub: LocalHub, tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model")
    assert main(["publish", str(folder), "me/model", "--public"]) == 0
    assert main(["publish", str(folder), "me/model", "--update"]) == 2
    assert "me/model is public, which an update does not change; say so with --public" in capsys.readouterr().err
    assert len(hub.repositories["me/model"].messages) == 1


def test_an_upload_that_breaks_off_is_an_error_that_says_how_to_go_on(hub: LocalHub, tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model")
    hub.loses_uploads = True
    assert main(["publish", str(folder), "me/model"]) == 2
    assert "run the same command again with --update" in capsys.readouterr().err
    hub.loses_uploads = False
    assert main(["publish", str(folder), "me/model", "--update"]) == 0
    assert hub.repositories["me/model"].files == contents(folder)


def test_a_card_that_the_hub_refuses_creates_no_repository(hub: LocalHub, tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model", "---\nlanguage: [English]\n---\n\n# A model\n")
    assert main(["publish", str(folder), "me/model"]) == 2
    assert "English is not an ISO 639 code" in capsys.readouterr().err
    assert hub.repositories == {}


SECRET = "hf_" + "Ab1" * 11 + "c"
REFUSED = {
    "a pickle": ("pytorch_model.bin", b"\x80\x02}q\x00.", "may hold a pickle"),
    "a pickle under another name": ("weights.dat", b"\x80\x04\x95.", "may hold a pickle"),
    "a checkpoint of torch": ("state.dat", b"PK\x03\x04....", "may hold a pickle"),
    "a pickle as safetensors": ("model.safetensors", b"\x80\x04\x95.....", "not a safetensors file"),
    "a token in a text": ("notes.txt", SECRET.encode(), "looks like a secret (hf_Ab1...)"),
    "a private key": ("notes.txt", b"-----BEGIN OPENSSH PRIVATE KEY-----", "looks like a secret"),
    "a file of secrets": ("credentials.json", b"{}", "files of this name hold secrets"),
    "a hidden file": (".cache/x", b"", "a hidden file"),
    "a path in the card": ("README.md", b"---\nlicense: mit\n---\nof /home/me/base\n", "'/home/me/base'"),
    "a home folder in the card": ("README.md", b"---\nlicense: mit\n---\nsee ~/runs/mine\n", "'~/runs/mine'"),
    "a path in the config": ("config.json", b'{"_name_or_path": "/data/llama/8b"}', "'/data/llama/8b'"),
    "a path in the tokenizer": ("tokenizer_config.json", b'{"name_or_path": "/data/llama"}', "in name_or_path"),
    "a card without metadata": ("README.md", b"# A model\n", "it has no metadata"),
    "a card with broken metadata": ("README.md", b"---\na: [\n---\n", "its metadata cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "words"), REFUSED.values(), ids=list(REFUSED))
def test_what_must_not_leave_this_machine_is_refused(hub, tmp_path, capsys, name, data, words) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    assert main(["publish", str(folder), "me/model"]) == 2
    error = capsys.readouterr().err
    assert f"{name}: " in error or f"{folder / name}: " in error
    assert words in error and SECRET not in error
    assert hub.requests == []


def test_all_problems_are_told_at_once(tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "README.md").unlink()
    assert main(["publish", str(folder), "model", "--dry-run"]) == 2
    error = capsys.readouterr().err
    for words in ("model is not a hub id", "optimizer.pt: may hold a pickle", "link: a link", "the card is missing"):
        assert words in error


def test_the_value_of_a_secret_variable_is_found_without_being_shown(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MY_JUDGE_API_KEY", "correct-horse-battery")
    folder = write_model(tmp_path / "model", "---\nlicense: mit\n---\nkey correct-horse-battery\n")
    assert main(["publish", str(folder), "me/model", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "holds the value of the environment variable MY_JUDGE_API_KEY" in error and "horse" not in error


def test_a_secret_in_a_text_of_the_data_is_found_and_can_be_accepted(tmp_path: Path, capsys) -> None:
    folder = write_data(tmp_path / "data", f"export HF_TOKEN={SECRET}")
    assert main(["publish", str(folder), "me/data", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "a text in chosen looks like a secret (hf_Ab1...)" in error and SECRET not in error
    assert main(["publish", str(folder), "me/data", "--dry-run", "--texts-checked"]) == 0


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()),
     pa.large_list(pa.string()), pa.map_(pa.string(), pa.string()), pa.struct([("a", pa.list_(pa.string()))])],
    ids=str,
)  # fmt: skip
def test_a_secret_is_found_in_texts_of_every_type(tmp_path: Path, monkeypatch, capsys, kind: pa.DataType) -> None:
    monkeypatch.setenv("MY_JUDGE_API_KEY", "correct-horse-battery")
    for text, words in ((SECRET, "looks like a secret (hf_Ab1"), ("my correct-horse-battery", "MY_JUDGE_API_KEY")):
        value: Any = text
        if pa.types.is_binary(kind):
            value = text.encode()
        elif pa.types.is_large_list(kind):
            value = [text]
        elif pa.types.is_map(kind):
            value = [("a", text)]
        elif pa.types.is_struct(kind):
            value = {"a": ["b", text]}
        folder = write_data(tmp_path / words[:5])
        table = pa.table({"found": pa.array([None, value], kind)})
        pq.write_table(table, folder / "data/train-00000-of-00001.parquet")
        assert main(["publish", str(folder), "me/data", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert "a text in found" in error and words in error


def test_ordinary_words_are_no_secrets_and_no_paths(tmp_path: Path) -> None:
    text = "hf_hub_download, risk-minimization-of-something-very-long, and/or, 1/2, https://huggingface.co/me/x, a/b/c"
    folder = write_model(tmp_path / "model", f"---\nlicense: mit\n---\n{text}\n[docs](docs/a/b.md)\n")
    assert main(["publish", str(folder), "me/model", "--dry-run"]) == 0


def test_weights_that_changed_since_the_export_are_refused(tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "model")
    save_file({"logits": np.ones(8)}, folder / "model.safetensors")
    assert main(["publish", str(folder), "me/model", "--dry-run"]) == 2
    assert "model.safetensors: not as SHA256SUMS says" in capsys.readouterr().err


def test_an_adapter_must_name_its_base_by_hub_id(tmp_path: Path, capsys) -> None:
    folder = write_model(tmp_path / "adapter")
    (folder / "config.json").unlink()
    for base, code in (("../base", 2), ("me/base", 0)):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 1}))
        write_checksums(folder)
        assert main(["publish", str(folder), "me/adapter", "--dry-run"]) == code
    assert "base_model_name_or_path is '../base'; export with --base" in capsys.readouterr().err


def test_what_a_run_exports_is_taken_by_the_hub_as_it_is(hub: LocalHub, tmp_path: Path) -> None:
    evaluation = {"prompts": PROMPTS, "scorer": RULE, "benchmarks": {"alpaca_eval": section(tmp_path / "files")}}
    run = play(fake_config(tmp_path / "run", iterations=1, evaluation=evaluation))
    options = ["--version", "last", "--base", "me/base", "--license", "mit", "--language", "en"]
    assert main(["export", str(run), str(tmp_path / "out"), *options]) == 0
    for name in ("model", "preferences"):
        assert main(["publish", str(tmp_path / "out" / name), f"me/{name}"]) == 0
        assert hub.repositories[f"me/{name}"].files == contents(tmp_path / "out" / name)
    card = ModelCard(hub.repositories["me/model"].files["README.md"].decode())
    card.validate()
    kinds = {(result.dataset_name, result.metric_type) for result in card.data.eval_results}
    assert ("AlpacaEval, from files or in part", "win_rate") in kinds


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("license: [mit]", '"license" must be a string'),
        ("base_model: ../base", '"base_model" ../base is not a hub id'),
        ("model-index: [{name: x, results: [{task: {type: t}}]}]", "\"model-index\" lacks 'dataset'"),
        ("", "no metadata"),
    ],
)
def test_the_stand_in_refuses_what_the_hub_refuses(metadata: str, error: str) -> None:
    assert invalid_metadata(f"---\n{metadata}\n---\n", "model") == [error]


@pytest.mark.real
def test_the_command_itself_publishes_with_the_token_of_its_environment(hub: LocalHub, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "cluster.commands.cli", "publish", str(folder), "me/data"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert hub.repositories["me/data"].files == contents(folder)
