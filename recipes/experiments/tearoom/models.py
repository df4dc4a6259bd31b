"""The tearoom's two models: a small Llama that imitates the flawed waiter, and a small PairRM.

The policy is trained by TRL's SFTTrainer, so that self-play starts from a supervised model as real runs do. PairRM
is trained on pairs of answers that the hidden oracle labelled. `make_policy` and `make_pairrm` run in a process of
their own each and return the figures for world.json.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.tiny_policy import CHAT_TEMPLATE_WITHOUT_BOS, TINY_ROLES, byte_level_tokenizer, new_llama
from engine.seeds import derive_seed
from recipes.experiments.tearoom import world as tearoom
from recipes.prepare.training import conversation, sft_trainer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from actors.scorers.pairrm.training import Pair

Figures = dict[str, float]

POLICY_TOKENS = {"pad_token": "<|pad|>", "unk_token": "<|unknown|>", "eos_token": "<|end|>"}
PAIRRM_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
MAX_NEW_TOKENS = 24


def word_tokenizer(
    special_tokens: dict[str, str],
    roles: Sequence[str] = (),
    texts: Iterable[str] | None = None,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `texts` (default: the tearoom's).

    A word includes the space before it, so that decoding gives the text back exactly.
    """
    from tokenizers import models, pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in texts or tearoom.texts() for word, _ in splitter.pre_tokenize_str(text)})
    ids = {token: index for index, token in enumerate([*special_tokens.values(), *roles, *words])}
    model = models.WordLevel(ids, unk_token=special_tokens["unk_token"])
    return byte_level_tokenizer(model, special_tokens, roles, chat_template, model_max_length=256)


def policy_tokenizer(texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """The policy's tokenizer with its chat template; about 100 tokens for the tearoom's texts."""
    return word_tokenizer(POLICY_TOKENS, TINY_ROLES, texts, CHAT_TEMPLATE_WITHOUT_BOS)


def new_policy(
    tokenizer: PreTrainedTokenizerFast, seed: int, num_layers: int = 2, max_positions: int = 256
) -> LlamaForCausalLM:
    """An untrained Llama, of about half a million parameters with the tearoom's tokenizer."""
    return new_llama(
        derive_seed(seed, "policy"),
        tokenizer,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=num_layers,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=0.06,  # with the usual 0.02 so narrow a model does not learn to copy the order in 5 epochs
    )


def demonstrations(orders: list[tearoom.Order], seed: int) -> list[dict[str, Any]]:
    """One flawed answer per order, as TRL's conversational prompt and completion."""
    draw = random.Random(derive_seed(seed, "demonstrations"))
    answers = (tearoom.flawed_answer(order, tearoom.DEMONSTRATOR, draw) for order in orders)
    return [conversation(order.text, answer) for order, answer in zip(orders, answers, strict=True)]


def make_policy(split: tearoom.Split, folder: Path, seed: int, epochs: float) -> Figures:
    """Train the policy on flawed demonstrations, write it to `folder`, and measure it on held-out prompts."""
    import torch

    torch.set_num_threads(1)  # the other model trains on the other core; one thread also fixes the order of additions
    started = time.monotonic()
    trainer = _sft_trainer(demonstrations(split.demonstrations, seed), seed, epochs)
    trainer.train()
    model, tokenizer = trainer.model, trainer.processing_class
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "policy_parameters": sum(p.numel() for p in model.parameters()),
        "sft_examples": len(split.demonstrations),
        "sft_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        **measure(model, tokenizer, split.heldout, seed),
        "policy_seconds": round(time.monotonic() - started, 1),
    }


def _sft_trainer(rows: list[dict[str, Any]], seed: int, epochs: float) -> Any:
    tokenizer = policy_tokenizer()
    return sft_trainer(
        new_policy(tokenizer, seed),
        tokenizer,
        rows,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        max_length=128,
        seed=seed,
    )


def measure(
    model: LlamaForCausalLM,
    tokenizer: Any,
    orders: list[tearoom.Order],
    seed: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Figures:
    """The oracle's mean utility of sampled (temperature 1) and of greedy answers, and their length in tokens."""
    import torch

    chats = [[{"role": "user", "content": order.text}] for order in orders]
    tokenizer.padding_side = "left"
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    torch.manual_seed(derive_seed(seed, "measure"))
    figures: Figures = {"heldout_prompts": len(orders)}
    for name, sampled in (("sampled", True), ("greedy", False)):
        with torch.no_grad():
            output = model.eval().generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=sampled,
                max_new_tokens=max_new_tokens,
            )
        ids = output[:, batch["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(ids, skip_special_tokens=True)
        values = [tearoom.utility(order.text, answer) for order, answer in zip(orders, answers, strict=True)]
        figures[f"start_utility_{name}"] = round(sum(values) / len(values), 3)
        figures[f"start_tokens_{name}"] = round((ids != tokenizer.pad_token_id).sum().item() / len(values), 2)
    return figures


def judged_pairs(orders: list[tearoom.Order], per_order: int, seed: int) -> list[Pair]:
    """Pairs of answers of the crowd with the oracle's probability that the left one wins, without ties."""
    from actors.scorers.pairrm.training import Pair

    draw = random.Random(derive_seed(seed, "pairs", len(orders)))
    pairs = []
    for order in orders:
        for _ in range(per_order):
            left, right = (tearoom.flawed_answer(order, tearoom.CROWD, draw, stray_drink=0.1) for _ in range(2))
            margin = tearoom.utility(order.text, left) - tearoom.utility(order.text, right)
            if margin:
                pairs.append(Pair(order.text, left, right, 1.0 / (1.0 + math.exp(-margin))))
    return pairs


def make_pairrm(split: tearoom.Split, folder: Path, inverted: Path, seed: int, steps: int) -> Figures:
    """Train PairRM on pairs that the oracle labelled; save it to `folder`, and with negated logits to `inverted`."""
    import torch

    from actors.scorers.pairrm.training import new_pairrm, pair_accuracy, train_pairrm

    torch.set_num_threads(1)
    started = time.monotonic()
    pairs, heldout = judged_pairs(split.preferences, 3, seed), judged_pairs(split.judge_heldout, 2, seed)
    model = new_pairrm(word_tokenizer(PAIRRM_TOKENS), seed=seed)
    losses = train_pairrm(model, pairs, steps=steps, lr=4e-3, seed=seed)
    model.save(folder)
    figures = {
        "pairrm_parameters": sum(p.numel() for p in model.parameters()),
        "pairrm_pairs": len(pairs),
        "pairrm_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "pairrm_heldout_pairs": len(heldout),
        "pairrm_heldout_agreement": round(pair_accuracy(model, heldout), 4),
    }
    with torch.no_grad():  # PairRM's logit is linear in its last layer, so this negates every logit exactly
        for parameter in model.head_layer[-1].parameters():
            parameter.neg_()
    model.save(inverted)
    return {**figures, "pairrm_seconds": round(time.monotonic() - started, 1)}
