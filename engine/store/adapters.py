"""Folders that hold a low-rank adapter in PEFT's format instead of a whole model, and the model it belongs to.

    adapter_config.json  adapter_model.safetensors  adapter_base.json {"digest": of the base model's folder}

Reads JSON and safetensors headers only: no torch, no PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, WeightsError
from engine.store.weights import tensor_shapes

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
PREFIX = "base_model.model."
"""What PEFT writes before the name of a module of the base model."""
A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder says of itself."""

    rank: int
    alpha: float
    base_digest: str


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return (Path(folder) / CONFIG).is_file()


def refuse_adapter(folder: str | Path, key: str) -> None:
    """Raise ModelError if `folder`, the value of config key `key`, is an adapter where a whole model is needed."""
    if is_adapter(folder):
        base = _read(Path(folder) / CONFIG).get("base_model_name_or_path")
        raise ModelError(
            f"{key} = {folder} is a PEFT adapter of {base}, expected a whole model; merge it first "
            f"(`kumite merge RUN OUTPUT` for a run's own, else PEFT's merge_and_unload() and save_pretrained()) and "
            f"name that folder"
        )


def read_adapter(folder: str | Path) -> Adapter:
    """Raise WeightsError where the folder does not name its rank, its alpha or its base model's digest."""
    folder = Path(folder)
    try:
        config, base = _read(folder / CONFIG), _read(folder / BASE)
        return Adapter(int(config["r"]), float(config["lora_alpha"]), str(base["digest"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder}: not an adapter that a learner of Kumite saved ({type(error).__name__}: {error}); expected r "
            f"and lora_alpha in {CONFIG} and the base model's digest in {BASE}"
        ) from error


def check_base(folder: str | Path, digest: str) -> None:
    """Raise WeightsError unless the adapter in `folder` belongs to the whole model with this `digest`."""
    wanted = read_adapter(folder).base_digest
    if wanted != digest:
        raise WeightsError(
            f"{folder}: this adapter belongs to the base model {wanted[:12]}, not to {digest[:12]}; an adapter is "
            f"worthless on other weights. Restore the model that the run began with"
        )


def check_fits(folder: str | Path, base: Mapping[str, tuple[int, ...]], *, complete: bool = False) -> None:
    """Raise WeightsError naming layers of the adapter whose sizes are not those of the base's tensors.

    base: {tensor name: shape}. Files may know a layer by another name than the loaded model does, so layers
    that `base` lacks are left to the loader, unless it is `complete`.
    """
    found = tensor_shapes(folder)
    problems = []
    for layer, shape in sorted(layer_shapes(found).items()):
        whole = base.get(f"{layer}.weight", () if complete else shape)
        if whole != shape:
            problems.append(f"{layer} changes a tensor of shape {list(shape)}, the base has {list(whole)}")
    if problems or not found:
        raise WeightsError(
            f"{folder}: not an adapter of this model: {'; '.join(problems[:8]) or 'it holds no tensors'}. Restore the "
            f"model that the run began with"
        )


def layer_shapes(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """{layer: (out, in)} of the weights that the adapter's tensors change."""
    layers = {name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)}
    return {layer: (tensors[PREFIX + layer + B][0], tensors[PREFIX + layer + A][1]) for layer in layers}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
