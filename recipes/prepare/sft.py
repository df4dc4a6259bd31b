"""Supervised fine-tuning by TRL: the start model of self-rewarding, from instructions and judgements.

    python -m recipes.prepare.sft OUTPUT --model MODEL --data ift.jsonl --data eft.jsonl

Each file holds demonstrations in any format that a run reads (docs/prompts.md): prompt and completion, `messages`,
Alpaca, ShareGPT, as text or chat. All are rendered by the model's chat template, and the loss is on the answers only.
In arXiv 2401.10020, IFT (instruction fine-tuning) teaches to follow instructions and EFT (evaluation fine-tuning) to
judge; recipes/prepare/judgements.py writes EFT files. The defaults are the paper's (lr 5.5e-6, a cosine to a fifth of
it, batch 16), which are for a much larger policy.

OUTPUT becomes a model folder with tokenizer, safetensors and training.json (settings and figures, written last). A
complete model of the same settings is kept; nothing is overwritten.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config.prompts import PromptsConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import read_prompts
from engine.data.values import RefusedRow, list_refused
from engine.errors import ConfigError, DataError, ModelError
from recipes.prepare.command_line import complete, new_parser, run, settings_from, write_json

MARKER = "training.json"


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    model: str
    """Folder or hub id of the model to start from."""
    data: tuple[str, ...]
    """A file of examples."""
    epochs: float = 2.0
    """Passes over the examples."""
    lr: float = 5.5e-6
    """Largest learning rate."""
    last_lr: float = 0.2
    """Share of the largest learning rate at which the cosine ends."""
    batch_size: int = 16
    """Examples per optimizer step, a multiple of the micro-batch size."""
    micro_batch_size: int = 4
    """Examples per forward pass."""
    max_tokens: int = 2048
    """Tokens of prompt and answer; longer examples keep their start."""
    seed: int = 0
    """Another seed: another order of the examples."""


def train(output: Path, settings: Settings) -> dict[str, Any]:
    """Train, write the model to `output` and return the figures; a complete model of the same settings is kept.

    Raises DataError for data that cannot be used and for an `output` with other contents, ConfigError for a batch
    size that is no multiple of the micro-batch size, ModelError for a model without chat template or weights.
    """
    if settings.batch_size % settings.micro_batch_size:
        raise ConfigError([f"--batch-size {settings.batch_size} is not a multiple of --micro-batch-size "
                           f"{settings.micro_batch_size}"])  # fmt: skip
    if written := complete(output / MARKER, {"settings": asdict(settings)}):
        return written["figures"]
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and has no {MARKER}; choose another folder or delete this one")
    started = time.monotonic()
    examples, num_disliked = read_examples(settings.data)
    trainer = _trainer(settings, examples)
    trainer.train()
    trainer.model.save_pretrained(output)  # not save_model, which adds a pickle of its arguments
    trainer.processing_class.save_pretrained(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "examples": len(examples),
        "labelled_bad": num_disliked,
        "without_room": len(examples) - len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / MARKER, {"settings": asdict(settings), "figures": figures})
    return figures


def read_examples(files: tuple[str, ...]) -> tuple[list[dict[str, Any]], int]:
    """All demonstrations as TRL's conversational prompt and completion, and the number of rows labelled as bad answers.

    Raises DataError naming every row of every file that cannot be used.
    """
    examples, refused, num_disliked = [], [], 0
    required = RequiredAnswers(1, required_by="recipes/prepare/sft.py")
    for file in files:
        for row in read_prompts(PromptsConfig(source=file), file, required):
            if isinstance(row, RefusedRow):
                refused.append(row)
            elif row.win_rates == (0.0,):
                num_disliked += 1
            else:
                answer = {"role": "assistant", "content": row.answers[0]}
                examples.append({"prompt": row.messages, "completion": [answer]})
    if refused:
        raise DataError(f"{len(refused)} rows cannot be used:\n{list_refused(refused)}")
    if not examples:
        raise DataError(f"{', '.join(files)}: nothing to learn from; {num_disliked} rows are labelled as bad answers")
    return examples, num_disliked


def _trainer(settings: Settings, examples: list[dict[str, Any]]) -> Any:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        model = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=torch.bfloat16 if gpu else torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"--model {settings.model}: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"--model {settings.model}: its tokenizer has no chat template, which a policy needs")
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.last_lr},
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        max_length=settings.max_tokens,
        seed=settings.seed,
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=gpu,
        completion_only_loss=True,
        save_strategy="no",
        report_to="none",
        logging_first_step=True,
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
    rows = datasets.Dataset.from_list(examples)
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the figures and returns the exit code."""
    parser = new_parser("recipes.prepare.sft", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder that the model is written to")
    settings, options = settings_from(parser, Settings, arguments)
    return run(train, options.output, settings)


if __name__ == "__main__":
    sys.exit(main())
