"""Models by folder or by hub id: the one place that downloads from the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ModelError

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a language model: weights as safetensors (never pickles), configuration, tokenizer and chat template."""


def local_folder(
    path: str | Path,
    *,
    key: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
    files: Sequence[str] = MODEL_FILES,
) -> Path:
    """Return `path` if it is a folder on this machine, else the downloaded snapshot of the hub id `path`.

    key: the config key that `path` comes from, for messages. files: patterns of the files to download;
    `trust_remote_code` adds Python files. cache_dir: where snapshots are kept; None: the hub's own cache. Raises
    ModelError where `path` is neither a folder nor a hub id that can be downloaded.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name, expected = str(path), "expected a folder on this machine, or the id of a model on the Hugging Face hub"
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{key} = {name}: no such folder (in {Path.cwd()}); {expected}")
    from huggingface_hub import snapshot_download

    patterns = [*files, *["*.py"] * trust_remote_code]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, cache_dir=cache_dir))
    except Exception as error:  # the hub's client, its HTTP library and the disk each raise errors of their own
        raise ModelError(
            f"{key} = {name}: {expected}. There is no such folder in {Path.cwd()}, and the download failed "
            f"({type(error).__name__}: {error}). {_advice(name)}"
        ) from error


def _advice(name: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE"):
        start = "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or"
    else:
        start = "Without access to the hub,"
    return (
        f"{start} download the model on a machine with access (hf download {name} --local-dir FOLDER) and name that "
        f"folder. A private or gated model needs HF_TOKEN"
    )
