"""Reward models: a language model or encoder with one output, which rates each answer by itself.

Any AutoModelForSequenceClassification of transformers with one label: what TRL's RewardTrainer writes, Skywork's
models, and with `trust_remote_code` models that return a `score` (ArmoRM). The pair logit of two answers is the
difference of their rewards, as in the Bradley-Terry model that they are trained with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.chat import Chat
from actors.hub import local_folder
from actors.scorers.base import PairScores, Scorer, plain_text
from engine.config.run import ModelConfig
from engine.config.scorer import RewardModelConfig
from engine.errors import ModelError, RoleError
from engine.store.weights import weights_digest

LONGEST = 4096
"""Most tokens of a conversation where neither the config nor the model gives fewer."""


@dataclass(frozen=True)
class Encoded:
    """A conversation that ends with an answer."""

    ids: list[int]
    types: list[int]
    """Token type ids of encoders: 0 for the prompt, 1 for the answer; else empty."""
    is_cut: bool


class RewardModelScorer(Scorer):
    """Rates answers by a reward model, on a GPU where there is one."""

    def __init__(self, config: RewardModelConfig):
        self._config = config

    def start(self) -> None:
        from transformers import AutoTokenizer

        config = self._config
        folder = local_folder(config.path, key="scorer.path", trust_remote_code=config.trust_remote_code)
        self._model = load_reward_model(folder, config).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        self._is_chat = bool(config.chat_template or self._tokenizer.chat_template)
        template = config.chat_template if self._is_chat else "none"
        self._chat = Chat(ModelConfig(path=str(folder), chat_template=template), "scorer")
        self._limit = self._longest()
        settings = {"dtype": config.dtype, "limit": self._limit, "chat": self._chat.digest, "pairs": not self._is_chat}
        digest = hashlib.sha256(json.dumps([weights_digest(folder), settings], sort_keys=True).encode()).hexdigest()
        self.id = f"reward_model:{digest[:12]}"

    def sleep(self) -> None:
        from actors.scorers.builtin import free_gpu

        del self._model
        free_gpu()

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        texts = [(row, answer) for row in rows for answer in row["completions"]]
        encoded = [self._encode(row["messages"], answer) for row, answer in texts]
        rewards = iter(self._rewards(encoded, [row["prompt_id"] for row, _ in texts]))
        cuts = iter(item.is_cut for item in encoded)
        results = []
        for row in rows:
            own = np.array([next(rewards) for _ in row["completions"]])
            cut = np.array([next(cuts) for _ in row["completions"]])
            with_cut = cut[:, None] | cut[None, :]  # comparisons in which a text was cut
            np.fill_diagonal(with_cut, False)
            results.append(PairScores(own[:, None] - own[None, :], int(with_cut.sum()), own.tolist()))
        return results

    def _longest(self) -> int:
        """Most tokens of a conversation: the config's limit or LONGEST, and never more than the model can read."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        wanted = self._config.max_tokens or LONGEST
        return min(wanted, self._tokenizer.model_max_length, positions or wanted)

    def _encode(self, messages: list[dict[str, str]], answer: str) -> Encoded:
        """The conversation as the model reads it; one that is too long loses its beginning, after the first token."""
        if self._is_chat:
            ids = self._chat.conversation_ids([*messages, {"role": "assistant", "content": answer}])
            kept = ids if len(ids) <= self._limit else [ids[0], *ids[1 - self._limit :]]
            return Encoded(kept, [], len(ids) > self._limit)
        prompt, text = (
            self._chat.defuse({"role": "user", "content": content})["content"]
            for content in (plain_text(messages), answer)
        )
        whole = self._tokenizer(prompt, text)
        is_cut = len(whole["input_ids"]) > self._limit
        if is_cut:
            whole = self._tokenizer(prompt, text, truncation="longest_first", max_length=self._limit)
        return Encoded(whole["input_ids"], whole.get("token_type_ids", []), is_cut)

    def _rewards(self, encoded: list[Encoded], prompt_ids: list[str]) -> list[float]:
        """One reward per conversation. Equal ones are computed once; the longest come first, so that memory runs out
        early or never."""
        places: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(encoded):
            places.setdefault(tuple(item.ids), []).append(i)
        rewards = [0.0] * len(encoded)
        waiting = sorted(places.values(), key=lambda same: len(encoded[same[0]].ids))
        can_pad = self._model.config.pad_token_id is not None
        while waiting:
            longest = len(encoded[waiting[-1][0]].ids)
            size = max(1, min(len(waiting), self._config.batch_tokens // longest)) if can_pad else 1
            batch, waiting = waiting[-size:], waiting[:-size]
            for same, reward in zip(batch, self._forward([encoded[same[0]] for same in batch]), strict=True):
                if not np.isfinite(reward):
                    raise RoleError(f"the reward of an answer to {prompt_ids[same[0]]} is {reward}; try dtype float32")
                for i in same:
                    rewards[i] = reward
        return rewards

    @torch.inference_mode()
    def _forward(self, batch: list[Encoded]) -> list[float]:
        length = max(len(item.ids) for item in batch)
        pad = self._model.config.pad_token_id or 0
        inputs = {
            "input_ids": [item.ids + [pad] * (length - len(item.ids)) for item in batch],
            "attention_mask": [[1] * len(item.ids) + [0] * (length - len(item.ids)) for item in batch],
        }
        if batch[0].types:
            inputs["token_type_ids"] = [item.types + [0] * (length - len(item.types)) for item in batch]
        tensors = {name: torch.tensor(rows, device=self._model.device) for name, rows in inputs.items()}
        output = self._model(**tensors)
        values = getattr(output, "score", None)
        return (output.logits if values is None else values).double().flatten().tolist()


def load_reward_model(folder: Path, config: RewardModelConfig) -> Any:
    """The model in evaluation mode. Raises ModelError for weights that are no safetensors or lack a trained head, and
    for a model with more than one output."""
    from transformers import AutoModelForSequenceClassification

    where = f"scorer.path = {config.path}"
    try:
        model, facts = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for one cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{where}: cannot be loaded as a sequence classifier with safetensors weights: {reason}"
        ) from error
    if missing := sorted(facts["missing_keys"]):
        raise ModelError(f"{where}: its files lack {', '.join(missing)}; expected a reward model, not its base model")
    if model.config.num_labels != 1:
        raise ModelError(
            f"{where}: it has {model.config.num_labels} outputs; expected one, the reward (num_labels = 1)"
        )
    return model
