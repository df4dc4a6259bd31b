"""Whole models out of a run's versions: the mean of several versions' weights, and an adapter merged into its base."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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

    File names, dtypes, config and companions are those of the last folder. Each tensor is summed in float32 (float64
    if it is stored so) in the order of `folders` and rounded once. One safetensors file of the result is in memory at
    a time. Raises WeightsError where the models do not have the same tensors.
    """
    last = folders[-1]
    shapes = tensor_shapes(last)
    for folder in folders[:-1]:
        check_same_tensors(folder, shapes)
    target.mkdir(parents=True)
    with ExitStack() as stack:
        versions = [_open(folder, stack) for folder in folders]
        for name in weight_files(last):
            with safe_open(last / name, framework="pt") as layout:
                keys, metadata = layout.keys(), layout.metadata()
            means = {key: mean([version[key].get_tensor(key) for version in versions], key) for key in keys}
            save_file(means, target / name, metadata=metadata)
    for name in ("config.json", INDEX):
        if (last / name).is_file():
            shutil.copyfile(last / name, target / name)
    copy_companions(last, target)


def mean(tensors: Sequence[Tensor], name: str) -> Tensor:
    """The mean in the last tensor's dtype. Tensors that are not floating-point must be equal: they count or index.

    name: of the tensor, for the WeightsError if they are not equal.
    """
    last = tensors[-1]
    if not last.is_floating_point():
        if any(not torch.equal(tensor, last) for tensor in tensors):
            raise WeightsError(f"{name}: {last.dtype} values differ between the versions; they have no mean")
        return last
    total = torch.zeros_like(last, dtype=torch.promote_types(last.dtype, torch.float32))
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(last.dtype)


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """{tensor name: open file that holds it}; no tensor is read."""
    files = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in weight_files(folder)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118, a file is no mapping


def merge_adapter(config: ModelConfig, base: Path, adapter: Path, target: Path) -> None:
    """Write the base with the adapter merged to the new model folder `target`, in config.dtype.

    Raises ModelError or WeightsError where one of them cannot be read, or the adapter does not fit the base.
    """
    model, dtype = load_model(config, base), getattr(torch, config.dtype)
    state = dict(model.state_dict())
    check_fits(adapter, {name: tuple(tensor.shape) for name, tensor in state.items()}, complete=True)
    tensors, description = load_file(adapter / WEIGHTS), read_adapter(adapter)
    for name, a in tensors.items():
        if name.endswith(A):
            layer = name.removesuffix(A)
            key = f"{layer.removeprefix(PREFIX)}.weight"
            state[key] = merged(state[key], a, tensors[layer + B], description.alpha / description.rank, dtype)
    write_policy(model, state, dtype, base, target)


def merge_peft(base: Path, adapter: Path, target: Path) -> None:
    """Write the base with any PEFT adapter merged to the new model folder `target`, in the base's own dtype.

    Raises ModelError where the base cannot be read. PEFT decides whether the adapter fits.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", use_safetensors=True)
    whole = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    part = target.with_name(target.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    whole.save_pretrained(part)
    copy_companions(base, part)
    part.rename(target)
