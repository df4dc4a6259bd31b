"""Writing a policy as a complete model folder that transformers and vLLM load.

Weights are gathered from all ranks; everything else comes from the folder that the policy was opened
from, byte for byte, so that prompts are read and answers end as before. Knows nothing of optimizers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actors.policy import PolicyModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
    "*.py",
)
"""Files beside weights and config that belong to a model (globs)."""


def gather_weights(policy: PolicyModule, keep: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by transformers' names, on the CPU; only where `keep` is true. Called by all ranks.

    One tensor at a time is whole in a rank's memory under ZeRO-3. Tied weights share one copy, by which
    transformers recognises them and writes them once.
    """
    state, copies = {}, {}
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        copy = whole(tensor, keep and id(tensor) not in copies, dtype)
        if keep:
            state[name] = copies.setdefault(id(tensor), copy)
    return state


def whole(tensor: Tensor, keep: bool, dtype: torch.dtype) -> Tensor | None:
    """A copy on the CPU, gathered from all ranks under ZeRO-3; None where `keep` is false. Called by all ranks."""
    import deepspeed

    partitioned = [tensor] if hasattr(tensor, "ds_id") else []
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", kind, copy=True) if keep else None


def write_policy(
    model: PreTrainedModel, state: dict[str, Tensor], dtype: torch.dtype, source: Path, target: Path
) -> None:
    """Write `state` and the companions of the `source` folder to the `target` folder."""
    from transformers import GenerationConfig

    target.mkdir(parents=True, exist_ok=True)
    # Published generation configs often fail transformers' own validation on saving; the source's is copied.
    model.generation_config = GenerationConfig()
    model.save_pretrained(target, state_dict=state)
    (target / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(source, target)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside weights and config in a model's folder and belongs to it."""
    for path in {match for pattern in COMPANIONS for match in source.glob(pattern)}:
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)
