"""Where a model comes from: a folder on this machine, or the hub; and what is said when it comes from neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.hub import local_folder
from engine.errors import ModelError


def test_a_folder_on_this_machine_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_folder(tmp_path, key="model.path") == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert local_folder(f"~/{tmp_path.name}", key="model.path") == tmp_path


def test_a_hub_id_is_downloaded_with_the_files_of_a_model_and_no_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    cache = tmp_path / "hub"
    assert local_folder("org/name", key="model.path", revision="abc", cache_dir=cache) == tmp_path
    assert local_folder("org/name", key="model.path", trust_remote_code=True, files=["*.json"]) == tmp_path
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    assert calls == [
        ("org/name", {"revision": "abc", "allow_patterns": patterns, "cache_dir": cache}),
        ("org/name", {"revision": None, "allow_patterns": ["*.json", "*.py"], "cache_dir": None}),
    ]


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "~/nowhere"])
def test_a_path_to_no_folder_never_asks_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(ModelError, match=rf"^scorer\.path = {path}: no such folder \(in .*\); expected a folder"):
        local_folder(path, key="scorer.path")


def test_a_failed_download_names_the_key_the_cause_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ModelError) as caught:
        local_folder("org/name", key="model.path")
    message = str(caught.value)
    assert message.startswith("model.path = org/name: expected a folder on this machine, or the id of a model")
    assert "ConnectionError: no route to the hub" in message
    assert "hf download org/name --local-dir FOLDER" in message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set, so nothing is downloaded: unset it"):
        local_folder("org/name", key="model.path")
