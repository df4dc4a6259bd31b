"""The uniform mean of several versions' weights, as one model folder.

Tensor by tensor: of each version one tensor is in memory, and their sum. Knows nothing of runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from actors.learner.lora import merged
from actors.learner.policy import copy_companions, load_model, write_policy
from engine.config.run import ModelConfig
from engine.errors import WeightsError
from engine.store.weights import (
    INDEX,
    PREFIX,
    WEIGHTS,
    A,
    B,
    check_fits,
    check_same_tensors,
    read_adapter,
    tensor_shapes,
    weight_files,
)


def write_average(folders: Sequence[Path], target: Path) -> None:
    """Write the mean of the whole models in `folders` to the new folder `target`.

    Files, names, number formats, config and companions are those of the last folder; each tensor is summed in
    float32 (float64 where it is stored so) in the order of `folders` and rounded once. Raises WeightsError where
    the models do not have the same tensors.
    """
    last = folders[-1]
    shapes = tensor_shapes(last)
    for folder in folders[:-1]:
        check_same_tensors(folder, shapes)
    target.mkdir(parents=True)
    with ExitStack() as stack:
        versions = [_open(folder, stack) for folder in folders]
        for name in weight_files(last):
            _write_file(last / name, versions, target / name)
    for name in ("config.json", INDEX):
        if (last / name).is_file():
            shutil.copyfile(last / name, target / name)
    copy_companions(last, target)


def mean(tensors: Sequence[Tensor], name: str) -> Tensor:
    """In the last tensor's number format. Numbers that are not floating-point must agree: they count or index."""
    last = tensors[-1]
    if not last.is_floating_point():
        if any(not torch.equal(tensor, last) for tensor in tensors):
            raise WeightsError(f"{name}: holds {last.dtype} that differ between the versions; they have no mean")
        return last
    total = torch.zeros_like(last, dtype=torch.promote_types(last.dtype, torch.float32))
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(last.dtype)


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """{tensor name: the open file that holds it}; nothing is read yet."""
    files = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in weight_files(folder)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118, a file is no mapping


def _write_file(layout: Path, versions: Sequence[dict[str, Any]], target: Path) -> None:
    """A safetensors file with the header of `layout`, and the means in its order.

    The format: 8 bytes length (little-endian), a JSON header, then the tensors' bytes without gaps.
    """
    with layout.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    with target.open("xb") as file:
        file.write(length + header)
        for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
            averaged = mean([version[name].get_tensor(name) for version in versions], name)
            file.write(averaged.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def merge_adapter(config: ModelConfig, base: Path, adapter: Path, target: Path) -> None:
    """Write the base with the adapter merged as a complete model folder, in config.dtype.

    Raises ModelError or WeightsError where one of them cannot be read or they do not fit.
    """
    from safetensors.torch import load_file

    model, dtype = load_model(config, base), getattr(torch, config.dtype)
    state = dict(model.state_dict())
    check_fits(adapter, {name: tuple(tensor.shape) for name, tensor in state.items()}, complete=True)
    tensors, known = load_file(adapter / WEIGHTS), read_adapter(adapter)
    for name, a in tensors.items():
        if name.endswith(A):
            layer = name.removesuffix(A)
            key = f"{layer.removeprefix(PREFIX)}.weight"
            state[key] = merged(state[key], a, tensors[layer + B], known.alpha / known.rank, dtype)
    write_policy(model, state, dtype, base, target)
