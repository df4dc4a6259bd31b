"""Low-rank adapters of the policy: injected by PEFT, read from a version's folder or created from a seed, and saved.

Changes the transformers model that PolicyModule wraps in place, so the rest of the learner is the same with and without
adapters. The bytes of an adapter's folder do not depend on the machine: its config names the base as the run's config
does, not by a local path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actors.learner.policy import PolicyModule, whole
from engine.config.learner import LoRAConfig
from engine.config.run import ModelConfig
from engine.errors import ModelError, WeightsError
from engine.store.weights import BASE, CONFIG, PREFIX, WEIGHTS, A, B, read_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TRAINED, FROZEN = "trained", "frozen"
"""PEFT's names for the trainable adapter, and for the earlier ones on which it is stacked."""


def adapt(model: PreTrainedModel, config: LoRAConfig, adapter: Path | None, seed: int) -> None:
    """Freeze `model` and add adapters to its layers, of which one is trainable.

    adapter: folder of the version that is opened; None: the version is the whole model itself. The adapted model first
    computes exactly what that version computes: B of a fresh adapter is 0. seed: for A of a fresh adapter.
    Raises ModelError if config names layers that cannot be adapted, WeightsError if the folder does not fit the model
    or the config.
    """
    frozen_rank = _frozen_rank(config, adapter)
    # PEFT draws A from torch's global generator, whose state must not depend on adapters.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config, frozen_rank)
    _check_layers(model, config)
    if adapter is not None:
        _fill(model, FROZEN if frozen_rank else TRAINED, adapter)


def adapter_weights(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{name in PEFT's files: parameter} of the adapter `name`; {} if the model has no such adapter."""
    ends = {f".lora_A.{name}.weight": A, f".lora_B.{name}.weight": B}
    return {
        PREFIX + path.removesuffix(end) + official: parameter
        for path, parameter in model.named_parameters()
        for end, official in ends.items()
        if path.endswith(end)
    }


def peft_settings(config: LoRAConfig, rank: int) -> dict[str, Any]:
    """Arguments of PEFT's LoraConfig for an adapter of `rank` with the scale alpha / rank of `config`."""
    return {
        "r": rank,
        "lora_alpha": _alpha(config, rank),
        "lora_dropout": config.dropout,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }


def _alpha(config: LoRAConfig, rank: int) -> float:
    """The alpha that gives `rank` the scale alpha / rank of the config; an int if it is a whole number."""
    alpha = config.alpha * rank / config.rank
    return int(alpha) if alpha == int(alpha) else alpha


def _frozen_rank(config: LoRAConfig, folder: Path | None) -> int:
    """Rank of the frozen adapter below the trainable one, 0 if there is none. Checks the folder against the config."""
    if folder is None:
        return 0
    adapter = read_adapter(folder)
    stacks = config.between_iterations == "stack"
    fits = adapter.rank % config.rank == 0 if stacks else adapter.rank == config.rank
    if not fits or not config.saves_adapters or adapter.alpha != _alpha(config, adapter.rank):
        raise WeightsError(
            f"{folder}: an adapter of rank {adapter.rank} and alpha {adapter.alpha:g} does not fit learner.lora.rank = "
            f"{config.rank}, alpha = {config.alpha:g}, between_iterations = {config.between_iterations}; open it with "
            f"the config with which it was trained"
        )
    return adapter.rank if stacks else 0


def _inject(model: PreTrainedModel, config: LoRAConfig, frozen_rank: int) -> None:
    from peft import LoraConfig, get_peft_model

    targets = config.target_modules
    trained = LoraConfig(**peft_settings(config, config.rank), target_modules=targets)
    # In float32 beside a bfloat16 base, adapters would give other numbers than the saved ones give in vLLM.
    options: dict[str, Any] = {"autocast_adapter_dtype": False}
    try:
        if not frozen_rank:
            get_peft_model(model, trained, TRAINED, **options)
            return
        frozen = LoraConfig(**peft_settings(config, frozen_rank), target_modules=targets)
        wrapped = get_peft_model(model, frozen, FROZEN, **options)
        wrapped.add_adapter(TRAINED, trained, **options)
        wrapped.base_model.set_adapter([FROZEN, TRAINED])
    except ValueError as error:
        raise ModelError(f"learner.lora.target_modules = {targets}: {error}") from error
    for parameter in adapter_weights(model, FROZEN).values():
        parameter.requires_grad_(False)


def _check_layers(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Raise ModelError unless every named layer exists and all are linear layers inside the blocks.

    The head cannot be adapted: PolicyModule computes it.
    """
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    outer = [model.get_output_embeddings(), model.get_input_embeddings()]
    wrong = [
        n for n, m in adapted.items() if any(m is o for o in outer) or isinstance(m.get_base_layer(), nn.Embedding)
    ]
    if wrong:
        raise ModelError(
            f"learner.lora.target_modules = {config.target_modules} includes {', '.join(wrong)}; expected linear "
            f"layers inside the blocks only; name them, e.g. [q_proj, v_proj]"
        )
    named = config.target_modules if isinstance(config.target_modules, list) else []
    missing = [t for t in named if not any(n == t or n.endswith(f".{t}") for n in adapted)]
    if missing:
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not outer[0]]
        inside = {n.rpartition(".")[2] for n in [*linear, *adapted]} - {"base_layer", TRAINED, FROZEN}
        raise ModelError(
            f"learner.lora.target_modules: {type(model).__name__} has no layer {', '.join(missing)}; its linear layers "
            f"are {', '.join(sorted(inside))}"
        )


@torch.no_grad()
def _fill(model: PreTrainedModel, name: str, folder: Path) -> None:
    from safetensors.torch import load_file

    tensors, parameters = load_file(folder / WEIGHTS), adapter_weights(model, name)
    problems = [f"{key} is missing" for key in sorted(parameters.keys() - tensors.keys())]
    problems += [f"{key} is unexpected" for key in sorted(tensors.keys() - parameters.keys())]
    problems += [
        f"{key} has shape {list(tensors[key].shape)} instead of {list(parameters[key].shape)}"
        for key in sorted(tensors.keys() & parameters.keys())
        if tensors[key].shape != parameters[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise WeightsError(
            f"{folder}: not an adapter of this model with these target_modules: {'; '.join(problems[:8])}{more}. Open "
            f"it with the model and the config with which it was trained"
        )
    for key, parameter in parameters.items():
        parameter.copy_(tensors[key])


def gather_adapter(policy: PolicyModule, keep: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """{PEFT's name: tensor} of all adapters as one, on the CPU; {} where `keep` is false. Called by all ranks.

    Stacked adapters are one adapter exactly: B1 A1 + B2 A2 = [B1 B2] [A1; A2].
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
    """Write the tensors of `gather_adapter` in PEFT's format; base_digest is that of the adapter's base model."""
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
    """The weights of an adapted model, as `gather_weights` returns them, with the trained adapter merged."""
    ends = (f".lora_A.{TRAINED}.weight", f".lora_B.{TRAINED}.weight")
    folded = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not name.endswith(ends)}
    for name, a in state.items():
        if name.endswith(ends[0]):
            layer = name.removesuffix(ends[0])
            target = f"{layer}.weight"
            folded[target] = merged(folded[target], a, state[layer + ends[1]], scale, dtype)
    return folded


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """weight [out, in] + scale x b [out, rank] a [rank, in], summed in float32 and rounded once."""
    return (weight.float() + scale * (b.float() @ a.float())).to(dtype)


def _json(value: dict[str, Any]) -> str:
    """JSON with sorted keys and sets, so that the same adapter has the same bytes in every process."""
    return json.dumps(value, indent=2, sort_keys=True, default=sorted) + "\n"
