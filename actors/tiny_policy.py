"""Small policies made in process, without a download: byte-level tokenizers, chat templates, untrained Llamas.

`model.path: tiny` in a config is the policy of `make_tiny_policy`, for trying the real engines without a model.
The recipes that train small models build theirs with the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import models
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY_TOKENS = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
TINY_ROLES = ("<|user|>", "<|assistant|>")
SPECIAL_TOKENS = [*TINY_TOKENS.values(), *TINY_ROLES]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""BOS, then each message between the token of its role and EOS."""
CHAT_TEMPLATE_WITHOUT_BOS = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}"
)
"""For tokenizers without BOS whose EOS is <|end|>."""
EXACT = {"clean_up_tokenization_spaces": False}
"""Option of a tokenizer: decoding leaves spaces before punctuation as they are."""
MIN_HEAD_SIZE = 32
"""vLLM serves no smaller attention head on a CPU."""


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
    """Write an untrained Llama with tokenizer and chat template to `folder` and return the folder.

    The same arguments give the same bytes. `corpus` trains byte-pair merges up to `vocab_size` ids
    (261: 256 bytes and 5 special tokens). `spread` is the standard deviation of the random weights:
    0.02 gives almost uniform answers, 0.1 clear preferences. `eos_token_ids` goes to
    generation_config.json (default: the tokenizer's EOS). `tied`: input and output embeddings are one
    tensor. Raises ValueError where hidden_size / num_heads is below MIN_HEAD_SIZE.

    Most random answers are not valid UTF-8, which also happens with trained models.
    """
    if hidden_size // num_heads < MIN_HEAD_SIZE:
        raise ValueError(f"heads of {hidden_size // num_heads} numbers; vLLM on CPU needs at least {MIN_HEAD_SIZE}")
    folder = Path(folder)
    merges = learn_bpe(corpus, vocab_size, SPECIAL_TOKENS)
    tokenizer = byte_level_tokenizer(merges, TINY_TOKENS, TINY_ROLES, CHAT_TEMPLATE, **EXACT)
    tokenizer.save_pretrained(folder)
    model = new_llama(
        seed,
        tokenizer,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_positions,
        initializer_range=spread,
        tie_word_embeddings=tied,
    )
    model.save_pretrained(folder)
    generation = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos_token_ids or tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def learn_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> models.BPE:
    """Byte-pair merges learned from `texts`, for `byte_level_tokenizer`.

    The ids are `special_tokens`, the 256 bytes, then merges: any text can be encoded and decodes to itself, and
    there is no unknown token. Few texts may give fewer than `vocab_size` ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return learner.model


def byte_level_tokenizer(
    model: models.Model,
    special_tokens: dict[str, str],
    roles: Sequence[str] = (),
    chat_template: str | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A transformers tokenizer around `model`, a BPE or WordLevel whose units are byte-level.

    special_tokens: {"eos_token": "<|end|>", ...}; roles: further special tokens. Those that `model` does not have
    get the ids behind its own. `options` go to PreTrainedTokenizerFast.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(roles), **special_tokens, **options
    )
    tokenizer.chat_template = chat_template  # as an argument, None would be written to tokenizer_config.json
    return tokenizer


def new_llama(seed: int, tokenizer: PreTrainedTokenizerFast | None = None, **config: Any) -> LlamaForCausalLM:
    """An untrained Llama in float32; the same arguments give the same weights, and torch's generator is left as it was.

    `config` is LlamaConfig's. Vocabulary and special ids default to the tokenizer's, or to none; heads to
    MIN_HEAD_SIZE numbers each, without groups.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ids: dict[str, int | None] = {f"{name}_token_id": None for name in ("pad", "bos", "eos")}
    if tokenizer is not None:
        ids = {name: getattr(tokenizer, name) for name in ids} | {"vocab_size": len(tokenizer)}
    heads = config.get("num_attention_heads", config["hidden_size"] // MIN_HEAD_SIZE)
    defaults = {"num_attention_heads": heads, "num_key_value_heads": heads, "dtype": "float32", **ids}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**defaults, **config}))
