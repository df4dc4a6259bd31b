"""Identity of a weights folder: one digest over every file that decides what the model computes.

Generators stamp this digest on each sample and the learner on each row, so that samples of two
policies are never mixed. The folder's name, its README and training leftovers do not count. Reads
bytes and safetensors headers only: no torch, no tensor is ever materialised here.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.errors import ModelError, WeightsError

SUMS = "SHA256SUMS"
"""File list that `seal_weights` leaves beside the weights, in the format of `sha256sum -c`."""

INDEX = "model.safetensors.index.json"

_SUFFIXES = {".safetensors", ".jinja", ".model", ".tiktoken", ".py"}
_NAMES = {
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_base.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_MAX_HEADER = 100_000_000
"""Bytes; safetensors' own bound for its header."""


def weights_digest(folder: str | Path) -> str:
    """Return the sha256 (64 hex digits) over the sorted (file name, sha256) of the files that matter.

    These are weights, model and generation config, tokenizer, chat template and the model's own code.
    Raises ModelError if the folder has no safetensors, or an index that names a missing shard.
    """
    return _digest(file_digests(folder))


def file_digests(folder: str | Path) -> dict[str, str]:
    """Return {file name: sha256} of the files that `weights_digest` covers, sorted by name."""
    folder = Path(folder)
    weight_files(folder)
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and (p.suffix in _SUFFIXES or p.name in _NAMES))
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def seal_weights(folder: str | Path) -> str:
    """Write SHA256SUMS beside the weights, so that a later mismatch can name the file; return the digest."""
    files = file_digests(folder)
    lines = "".join(f"{sha}  {name}\n" for name, sha in files.items())
    (Path(folder) / SUMS).write_text(lines, encoding="utf-8")
    return _digest(files)


def verify_weights(folder: str | Path, digest: str) -> None:
    """Raise WeightsError, naming what changed where SHA256SUMS tells, unless `folder` has this `digest`."""
    try:
        files = file_digests(folder)
    except ModelError as error:
        raise WeightsError(f"{folder}: expected weights {digest}, but {error}") from error
    if (found := _digest(files)) == digest:
        return
    raise WeightsError(
        f"{folder}: expected weights {digest}, found {found}; {_difference(Path(folder), files, digest)}. "
        f"Weights folders are written once and never changed: deliver them again to a new folder"
    )


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Return {tensor name: shape} from the headers of the safetensors files that a loader would read."""
    folder = Path(folder)
    shards = weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        header = _header(folder / shard)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def check_same_tensors(folder: str | Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise WeightsError naming tensors of `folder` that are missing, unexpected or of another shape.

    vLLM only logs a warning when a reload lacks a tensor and goes on with the old numbers. Tensors that
    loaders ignore are left out: rotary frequencies, and the output head where it is tied to the input.
    """
    ignored = ["rotary_emb.inv_freq"] + ["lm_head.weight"] * _tied(Path(folder))
    found, wanted = (
        {name: shape for name, shape in shapes.items() if not name.endswith(tuple(ignored))}
        for shapes in (tensor_shapes(folder), expected)
    )
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is unexpected" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {list(found[name])} instead of {list(wanted[name])}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name] != wanted[name]
    ]
    if problems:
        raise WeightsError(
            f"{folder}: not the tensors of the model that is served: {_listing(problems)}. "
            f"Save the whole model under its original names"
        )


def stop_token_ids(folder: str | Path) -> set[int]:
    """Return the token ids at which the model's own configuration ends an answer; may be empty."""
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        ids = _read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return set(ids) if isinstance(ids, list) else {ids}
    return set()


def _digest(files: dict[str, str]) -> str:
    # "\0" can not occur in a file name, so no two different listings give the same bytes.
    return hashlib.sha256("".join(f"{name}\0{sha}\n" for name, sha in files.items()).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that hold the model. Raises ModelError if they do not."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder of model weights")
    present = sorted(p.name for p in folder.iterdir() if p.is_file())
    shards = [name for name in present if name.endswith(".safetensors")]
    if INDEX in present:
        shards = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
        if missing := [name for name in shards if name not in present]:
            raise ModelError(f"{folder}: {INDEX} names {_listing(missing)}, which is not there; copy the folder again")
    if shards:
        return shards
    pickles = [name for name in present if Path(name).suffix in _PICKLES]
    hint = f"{_listing(pickles)} may hold pickled code, which is never loaded; convert" if pickles else "save"
    raise ModelError(f"{folder}: no safetensors weights; {hint} the model with save_pretrained()")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file: 8 bytes length (little-endian), then UTF-8 JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= _MAX_HEADER else b""
    try:
        if len(raw) != length:
            raise ValueError(f"header of {length} bytes does not fit")
        header = json.loads(raw)
        if any(not isinstance(e.get("shape"), list) for name, e in header.items() if name != "__metadata__"):
            raise ValueError("a tensor without a shape")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); copy the file again") from error
    return header


def _tied(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and bool(_read_json(path).get("tie_word_embeddings"))


def _difference(folder: Path, files: dict[str, str], digest: str) -> str:
    """Say which files differ from SHA256SUMS, if that file describes the expected weights."""
    sums: dict[str, str] = {}
    if (folder / SUMS).is_file():
        for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
            sha, _, name = line.partition("  ")
            sums[name] = sha
    if _digest(sums) != digest:
        return f"covered files: {_listing(sorted(files))}"
    parts = {
        "changed": [name for name in files if name in sums and files[name] != sums[name]],
        "missing": [name for name in sums if name not in files],
        "added": [name for name in files if name not in sums],
    }
    return "; ".join(f"{what}: {_listing(names)}" for what, names in parts.items() if names)


def _listing(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
