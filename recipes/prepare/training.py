"""What the recipes that make small models share: tokenizers, an untrained Llama, and TRL's SFTTrainer on the CPU.

Knows nothing of where texts come from or of what they are about.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}"
)
POLICY_TOKENS = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
POLICY_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PAIRRM_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def conversation(prompt: str, answer: str) -> dict[str, Any]:
    """One example as TRL's conversational prompt and completion; only the completion is trained on."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def byte_level_bpe(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """Merges learnt from `texts`, as the two arguments of tokenizers.models.BPE.

    All 256 bytes are in the vocabulary, so every text can be written and is decoded exactly; there is no
    unknown token. Few texts may give fewer than `vocabulary` tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=splitter.alphabet(), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    return {"vocab": learnt["vocab"], "merges": [tuple(merge) for merge in learnt["merges"]]}


def bpe_tokenizer(
    learnt: dict[str, Any], named: dict[str, str], further: Sequence[str] = (), template: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of `learnt` merges with special tokens of its own behind them, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(**learnt))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(further), clean_up_tokenization_spaces=False, **named
    )
    fast.chat_template = template
    return fast


def new_llama(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    max_positions: int,
    initializer_range: float = 0.02,
) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings and heads of 32, the least that vLLM serves; deterministic by `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(derive_seed(seed, "policy"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        initializer_range=initializer_range,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def sft_trainer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    heldout: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Any:
    """TRL's SFTTrainer on the CPU, silent, which saves nothing by itself; `settings` are SFTConfig's."""
    import datasets
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    config = SFTConfig(
        output_dir=tempfile.gettempdir(),
        lr_scheduler_type="cosine",
        warmup_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=20,
        logging_first_step=True,  # a training of fewer steps has a loss to report too
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings,
    )
    training, unseen = (datasets.Dataset.from_list(each) if each else None for each in (rows, heldout))
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=training, eval_dataset=unseen, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
