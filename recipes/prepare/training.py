"""What the recipes that train small models share: examples, and TRL's SFTTrainer on the CPU."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def conversation(prompt: str, answer: str) -> dict[str, Any]:
    """One example as TRL's conversational prompt and completion; only the completion is trained on."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def sft_trainer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    heldout: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Any:
    """TRL's SFTTrainer on the CPU, without output and without checkpoints; `settings` are SFTConfig's."""
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
        logging_first_step=True,  # so that a training of fewer steps reports a loss too
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings,
    )
    train_dataset, eval_dataset = (datasets.Dataset.from_list(each) if each else None for each in (rows, heldout))
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
