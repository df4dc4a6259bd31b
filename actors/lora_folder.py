"""Writing what adapters learned: as a folder in PEFT's format, or merged into a whole model.

An adapter's folder is the same bytes wherever it is made: its config names the base as the run's config
does, never as a path of this machine. Knows nothing of optimizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.lora import FROZEN, TRAINED, adapter_weights, peft_settings
from actors.policy import PolicyModule, load_model
from actors.policy_folder import whole, write_policy
from engine.config.lora import LoRAConfig
from engine.config.model import ModelConfig
from engine.store.adapters import BASE, CONFIG, PREFIX, WEIGHTS, A, B, check_fits, read_adapter


def gather_adapter(policy: PolicyModule, keep: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """All adapters as one, by PEFT's names, on the CPU; only where `keep` is true. Called by all ranks.

    Stacked ones become one exactly: B1 A1 + B2 A2 = [B1 B2] [A1; A2].
    """
    parts: dict[str, list[Tensor]] = {}
    for adapter in (FROZEN, TRAINED):
        for name, parameter in adapter_weights(policy.model, adapter).items():
            copy = whole(parameter, keep, dtype)
            if copy is not None:
                parts.setdefault(name, []).append(copy)
    return {name: torch.cat(tensors, dim=0 if name.endswith(A) else 1) for name, tensors in parts.items()}


def write_adapter(
    state: dict[str, Tensor], config: LoRAConfig, model: ModelConfig, base_digest: str, target: Path
) -> None:
    """Write what `gather_adapter` gathered; base_digest names the whole model that it belongs to."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    named = config.target_modules if isinstance(config.target_modules, list) else []
    layers = {name.removesuffix(A).rpartition(".")[2] for name in state if name.endswith(A)}
    rank = next(tensor.shape[0] for name, tensor in state.items() if name.endswith(A))
    settings = LoraConfig(
        **peft_settings(config, rank),
        target_modules=sorted(set(named) or layers),
        base_model_name_or_path=model.path,
        revision=model.revision,
        inference_mode=True,
    ).to_dict()
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(_json(settings), encoding="utf-8")
    (target / BASE).write_text(_json({"digest": base_digest}), encoding="utf-8")


def fold(state: dict[str, Tensor], scale: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of an adapted model (as `gather_weights` gathers them) with the trained adapter merged."""
    marks = (f".lora_A.{TRAINED}.weight", f".lora_B.{TRAINED}.weight")
    folded = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not name.endswith(marks)}
    for name, a in state.items():
        if name.endswith(marks[0]):
            layer = name.removesuffix(marks[0])
            target = f"{layer}.weight"
            folded[target] = merged(folded[target], a, state[layer + marks[1]], scale, dtype)
    return folded


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """weight [out, in] + scale x b [out, rank] a [rank, in], summed in float32 and rounded once."""
    return (weight.float() + scale * (b.float() @ a.float())).to(dtype)


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


def _json(value: dict[str, Any]) -> str:
    """Keys and sets sorted, so that the same adapter is the same bytes in every process."""
    return json.dumps(value, indent=2, sort_keys=True, default=sorted) + "\n"
