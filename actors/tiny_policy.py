"""An untrained policy for trying the real engines without a model: byte-level tokenizer, chat template, random Llama.

`model.path: tiny` in a config means this one. Everything is made in process and needs no network.
Byte-level means that every text can be tokenised and comes back unchanged; most random answers are not
valid UTF-8, as with real models' odd ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, USER, ASSISTANT]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_policy(
    folder: str | Path,
    seed: int = 0,
    *,
    corpus: Iterable[str] = (),
    vocab_size: int = 261,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    max_positions: int = 4096,
    spread: float = 0.1,
    eos_token_ids: list[int] | None = None,
    tied: bool = False,
) -> Path:
    """Write a random LlamaForCausalLM with tokenizer and chat template to `folder` and return the folder.

    The same arguments give the same bytes. `corpus` trains byte-pair merges up to `vocab_size` ids
    (261: 256 bytes and 5 special tokens). `spread` is the standard deviation of the random weights:
    0.02 gives almost uniform answers, 0.1 clear preferences. `eos_token_ids` goes to
    generation_config.json (default: the tokenizer's EOS). `tied`: input and output embeddings are one
    tensor. hidden_size / num_heads must be at least 32, vLLM's smallest head on CPU.
    """
    if hidden_size // num_heads < 32:
        raise ValueError(f"heads of {hidden_size // num_heads} numbers; vLLM on CPU needs at least 32")
    folder = Path(folder)
    tokenizer = make_tiny_tokenizer(corpus, vocab_size)
    tokenizer.save_pretrained(folder)
    _save_llama(folder, tokenizer, seed, hidden_size, num_layers, num_heads, max_positions, spread, tied)
    generation = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos_token_ids or tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def make_tiny_tokenizer(corpus: Iterable[str] = (), vocab_size: int = 261) -> PreTrainedTokenizerFast:
    """Return a PreTrainedTokenizerFast whose ids are SPECIAL_TOKENS (0 to 4), the 256 bytes, then merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _save_llama(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_positions: int,
    spread: float,
    tied: bool,
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_positions,
        initializer_range=spread,
        tie_word_embeddings=tied,
        dtype="float32",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
