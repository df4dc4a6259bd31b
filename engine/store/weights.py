"""Identity of a weights folder: one digest over every file that decides what the model computes.

Generators put this digest into each table of samples, so that samples of two policies are never mixed. The folder's
name, its README and leftovers of training do not count. A folder holds a whole model, or a low-rank adapter in PEFT's
format with the digest of its base model:

    adapter_config.json  adapter_model.safetensors  adapter_base.json {"digest": of the base model's folder}

Reads bytes and the headers of safetensors files, no tensors; needs neither torch nor PEFT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.errors import ModelError, WeightsError
from engine.store.disk import sha256_of

SUMS = "SHA256SUMS"
"""File list that `write_checksums` writes beside the weights, in the format of `sha256sum -c`."""

INDEX = "model.safetensors.index.json"

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
PREFIX = "base_model.model."
"""What PEFT writes before the name of a module of the base model."""
A, B = ".lora_A.weight", ".lora_B.weight"

_SUFFIXES = {".safetensors", ".jinja", ".model", ".tiktoken", ".py"}
_NAMES = {
    "config.json",
    "generation_config.json",
    CONFIG,
    BASE,
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


def weights_digest(folder: str | Path) -> str:
    """The sha256 (64 hex digits) over the sorted (file name, sha256) of the files that decide what the model computes.

    These are weights, model and generation config, tokenizer, chat template and the model's own code.
    Raises ModelError if the folder has no safetensors, or an index that names a missing file.
    """
    return _digest(file_digests(folder))


def file_digests(folder: str | Path) -> dict[str, str]:
    """{file name: sha256} of the files that `weights_digest` covers, sorted by name."""
    folder = Path(folder)
    weight_files(folder)
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and (p.suffix in _SUFFIXES or p.name in _NAMES))
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))


def write_checksums(folder: str | Path) -> str:
    """Write SHA256SUMS beside the weights, so that a later mismatch can name the file; return the digest."""
    files = file_digests(folder)
    lines = "".join(f"{sha}  {name}\n" for name, sha in files.items())
    (Path(folder) / SUMS).write_text(lines, encoding="utf-8")
    return _digest(files)


def verify_weights(folder: str | Path, digest: str) -> None:
    """Raise WeightsError unless `folder` has this `digest`; names the changed files if SHA256SUMS is there."""
    try:
        files = file_digests(folder)
    except ModelError as error:
        raise WeightsError(f"{folder}: expected weights {digest}, but {error}") from error
    if (actual := _digest(files)) == digest:
        return
    raise WeightsError(
        f"{folder}: expected weights {digest}, found {actual}; {_difference(Path(folder), files, digest)}. "
        f"A weights folder is written once and never changed: write these weights to a new folder"
    )


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} from the headers of the safetensors files that a loader would read.

    Raises ModelError where the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weight_files(folder):
        try:
            with safe_open(folder / name, framework="np") as file:
                shapes |= {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"{folder / name}: not a safetensors file ({error}); copy the file again") from error
    return shapes


def check_same_tensors(folder: str | Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise WeightsError naming tensors of `folder` that are missing, unexpected or of another shape.

    vLLM only logs a warning when a reload lacks a tensor, and keeps the old numbers. Tensors that loaders ignore are
    not compared: rotary frequencies, and the output head where it is tied to the input embedding.
    """
    ignored = ["rotary_emb.inv_freq"] + ["lm_head.weight"] * _tied(Path(folder))
    actual, expected = (
        {name: shape for name, shape in shapes.items() if not name.endswith(tuple(ignored))}
        for shapes in (tensor_shapes(folder), expected)
    )
    problems = [f"{name} is missing" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"{name} is unexpected" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(actual[name])} instead of {list(expected[name])}"
        for name in sorted(actual.keys() & expected.keys())
        if actual[name] != expected[name]
    ]
    if problems:
        raise WeightsError(
            f"{folder}: not the tensors of the model that is served: {_listing(problems)}. "
            f"Save the whole model with its original tensor names"
        )


def stop_token_ids(folder: str | Path) -> set[int]:
    """The token ids that end an answer by the model's own configuration; may be empty."""
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        ids = _read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return set(ids) if isinstance(ids, list) else {ids}
    return set()


def _digest(files: dict[str, str]) -> str:
    # "\0" cannot occur in a file name, so no two different lists give the same bytes.
    return hashlib.sha256("".join(f"{name}\0{sha}\n" for name, sha in files.items()).encode()).hexdigest()


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that hold the model. Raises ModelError if there are none or one is missing."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder of model weights")
    present = sorted(p.name for p in folder.iterdir() if p.is_file())
    shards = [name for name in present if name.endswith(".safetensors")]
    if INDEX in present:
        shards = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
        if missing := [name for name in shards if name not in present]:
            raise ModelError(f"{folder}: {INDEX} names {_listing(missing)}, which is missing; copy the folder again")
    if shards:
        return shards
    pickles = [name for name in present if Path(name).suffix in _PICKLES]
    advice = f"{_listing(pickles)} may hold pickled code and is never loaded; convert" if pickles else "save"
    raise ModelError(f"{folder}: no safetensors weights; {advice} the model with save_pretrained()")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _tied(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and bool(_read_json(path).get("tie_word_embeddings"))


def _difference(folder: Path, files: dict[str, str], digest: str) -> str:
    """The files that differ from SHA256SUMS, in words, if that file describes the expected weights."""
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


@dataclass(frozen=True)
class Adapter:
    """What the files of an adapter's folder state about it."""

    rank: int
    alpha: float
    base_digest: str


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return (Path(folder) / CONFIG).is_file()


def refuse_adapter(folder: str | Path, key: str) -> None:
    """Raise ModelError if `folder`, the value of config key `key`, is an adapter where a whole model is needed."""
    if is_adapter(folder):
        base = _read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
        raise ModelError(
            f"{key} = {folder} is a PEFT adapter of {base}, expected a whole model; merge it first "
            f"(`kumite merge RUN OUTPUT` for a run's own, else PEFT's merge_and_unload() and save_pretrained()) and "
            f"name that folder"
        )


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter's description. Raises WeightsError if rank, alpha or the base model's digest is missing."""
    folder = Path(folder)
    try:
        config, base = _read_json(folder / CONFIG), _read_json(folder / BASE)
        return Adapter(int(config["r"]), float(config["lora_alpha"]), str(base["digest"]))
    except (OSError, KeyError, TypeError, ValueError, ModelError) as error:
        raise WeightsError(
            f"{folder}: not an adapter that a learner of Kumite saved ({type(error).__name__}: {error}); expected r "
            f"and lora_alpha in {CONFIG} and the base model's digest in {BASE}"
        ) from error


def check_base(folder: str | Path, digest: str) -> None:
    """Raise WeightsError unless the adapter in `folder` belongs to the whole model with this `digest`."""
    base_digest = read_adapter(folder).base_digest
    if base_digest != digest:
        raise WeightsError(
            f"{folder}: this adapter belongs to the base model {base_digest[:12]}, not to {digest[:12]}; it cannot be "
            f"used with other weights. Restore the model that the run began with"
        )


def check_fits(folder: str | Path, base: Mapping[str, tuple[int, ...]], *, complete: bool = False) -> None:
    """Raise WeightsError naming layers of the adapter whose shapes differ from those of the base model's tensors.

    base: {tensor name: shape}. A layer may have another name in files than in the loaded model, so layers that `base`
    lacks are left to the loader, unless it is `complete`.
    """
    shapes = tensor_shapes(folder)
    problems = []
    for layer, shape in sorted(layer_shapes(shapes).items()):
        base_shape = base.get(f"{layer}.weight", () if complete else shape)
        if base_shape != shape:
            problems.append(f"{layer} changes a tensor of shape {list(shape)}, the base has {list(base_shape)}")
    if problems or not shapes:
        raise WeightsError(
            f"{folder}: not an adapter of this model: {'; '.join(problems[:8]) or 'it holds no tensors'}. Restore the "
            f"model that the run began with"
        )


def layer_shapes(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """{layer: [out, in]} of the base model's weights that the adapter's tensors change."""
    layers = {name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)}
    return {layer: (tensors[PREFIX + layer + B][0], tensors[PREFIX + layer + A][1]) for layer in layers}
