"""Models of the Hugging Face hub, downloaded to this machine."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelError

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def local_folder(
    path: str, *, key: str, revision: str | None, trust_remote_code: bool, cache_dir: Path | None = None
) -> Path:
    """The folder `path`, or the hub's model of this id, downloaded. `key` is the config key, for messages."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = FILES + ["*.py"] * trust_remote_code
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=files, cache_dir=cache_dir))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{key} = {path}: neither a folder here nor to be had from the hub ({type(error).__name__}: {error})"
        ) from error
