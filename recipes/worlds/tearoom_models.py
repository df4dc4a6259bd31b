"""The tearoom's policy: its tokenizer, and a small Llama that imitates the flawed waiter.

Trained by TRL's SFTTrainer, so that self-play starts where real runs start: at a supervised model.
Knows the grammar's texts, nothing of preferences.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.seeds import derive_seed
from recipes.worlds import tearoom

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<|pad|>", "unk_token": "<|unknown|>", "eos_token": "<|end|>"}
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}"
)


def word_tokenizer(texts: Iterable[str], special: list[str]) -> Tokenizer:
    """A tokenizer with one token per word (its leading space included), so that decoding is exact."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """The policy's tokenizer with its chat template; about 150 tokens."""
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL.values(), "<|user|>", "<|assistant|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(tearoom.texts(), special),
        additional_special_tokens=special[-2:],
        model_max_length=128,
        **SPECIAL,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of about half a million parameters; head_dim 32 is the least that vLLM serves."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_policy(orders: list[tearoom.Order], folder: Path, *, seed: int, epochs: float) -> float:
    """Write to `folder` a policy trained on one flawed answer per order; returns the last training loss in nats."""
    os.environ.setdefault("WANDB_DISABLED", "true")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    draw = random.Random(derive_seed(seed, "demonstrations"))
    rows = [
        {
            "prompt": [{"role": "user", "content": order.text}],
            "completion": [{"role": "assistant", "content": tearoom.flawed_answer(order, tearoom.DEMONSTRATOR, draw)}],
        }
        for order in orders
    ]
    tokenizer = policy_tokenizer()
    settings = SFTConfig(
        output_dir=str(folder / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=int(os.environ.get("BS", 64)),
        learning_rate=float(os.environ.get("LR", 3e-3)),
        lr_scheduler_type="cosine",
        warmup_steps=20,
        max_length=128,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=20,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=seed,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model=new_policy(tokenizer, seed),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
