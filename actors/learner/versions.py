"""How the learner reads and writes versions of the policy: whole models or adapters.

learner.lora                   version 0      later versions
null                           whole model    whole models
merge                          whole model    whole models; each iteration trains a fresh adapter
continue, stack                whole model    adapters of it
"""

from __future__ import annotations

from pathlib import Path

import torch

from actors.learner.lora import adapt, fold, gather_adapter, write_adapter
from actors.learner.policy import PolicyModule, gather_weights, load_policy, write_policy
from engine.config.learner import LearnerConfig
from engine.config.run import ModelConfig
from engine.errors import ModelError
from engine.store.weights import check_base, refuse_adapter, weights_digest


class Versions:
    """Reads and writes versions on one rank; all ranks call the same methods."""

    def __init__(self, config: LearnerConfig, model: ModelConfig):
        self.config, self.model = config, model
        self._whole = Path()
        self._digests: dict[Path, str] = {}

    def load(self, folder: Path, base: Path | None, seed: int) -> PolicyModule:
        """The version in `folder`, a whole model or an adapter of `base`; learner.lora adds trainable adapters.

        seed: for a fresh adapter's random values. Raises ModelError or WeightsError if the folder cannot be used.
        """
        config, lora = self.config, self.config.lora
        if base is None:
            refuse_adapter(folder, "the policy")
        elif lora is None:
            raise ModelError(f"{folder} is an adapter of {base}, but learner.lora is not set; set it as in training")
        else:
            check_base(folder, self._digest(base))
        self._whole = base or folder
        quantize = lora.quantize if lora else None
        policy = load_policy(self.model, self._whole, config.logits_chunk, config.gradient_checkpointing, quantize)
        if lora is not None:
            adapt(policy.model, lora, folder if base else None, seed)
        return policy

    def save(self, policy: PolicyModule, folder: Path, keep: bool) -> None:
        """Write the present weights as a version; only the rank with `keep` writes. Called by all ranks."""
        lora, dtype = self.config.lora, getattr(torch, self.model.dtype)
        if lora is not None and lora.saves_adapters:
            adapter = gather_adapter(policy, keep, dtype)
            if keep:
                write_adapter(adapter, lora, self.model, self._digest(self._whole), folder)
            return
        state = gather_weights(policy, keep, dtype)
        if keep:
            state = fold(state, lora.alpha / lora.rank, dtype) if lora else state
            write_policy(policy.model, state, dtype, self._whole, folder)

    def _digest(self, folder: Path) -> str:
        """Digest of a whole model's folder, computed once per process: these folders do not change."""
        if folder not in self._digests:
            self._digests[folder] = weights_digest(folder)
        return self._digests[folder]
