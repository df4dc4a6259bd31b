#!/usr/bin/env python
"""Supervised fine-tuning by TRL: the start that self-rewarding needs, from instructions and judgements.

    python -m recipes.prepare.sft OUTPUT --model MODEL --data ift.jsonl --data eft.jsonl

Each file holds demonstrations in any format that a run reads (docs/prompts.md): prompt and completion, `messages`,
Alpaca, ShareGPT, as text or chat. All go through the model's chat template, and the loss is on the answers alone. In
the words of arXiv 2401.10020, IFT teaches to follow instructions and EFT to judge: recipes/prepare/judgements.py writes
EFT files. The defaults are the paper's (lr 5.5e-6 falling by a cosine to a fifth, batch 16), for a much larger policy.

OUTPUT becomes a model folder with tokenizer, safetensors and training.json (settings and figures, written
last). An existing one is kept if its settings are the same, and never overwritten.
"""

from __future__ import annotations

import argparse
import json
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
from engine.errors import ConfigError, DataError, KumiteError, ModelError

MARKER = "training.json"


@dataclass(frozen=True)
class Settings:
    """What the training is made with."""

    model: str
    data: tuple[str, ...]
    epochs: float = 2.0
    lr: float = 5.5e-6
    last_lr: float = 0.2
    """Share of `lr` at which the cosine ends."""
    batch_size: int = 16
    """A multiple of `micro_batch_size`."""
    micro_batch_size: int = 4
    max_tokens: int = 2048
    """Longer examples keep their start."""
    seed: int = 0


def train(output: Path, settings: Settings) -> dict[str, Any]:
    """Train, write the model to `output` and return the figures; keep a complete model of the same settings.

    Raises DataError for data that cannot be used and where `output` holds something else, ConfigError for a batch
    that does not divide, ModelError for a model without chat template or weights.
    """
    if settings.batch_size % settings.micro_batch_size:
        raise ConfigError([f"--batch-size {settings.batch_size} is not a multiple of --micro-batch-size "
                           f"{settings.micro_batch_size}"])  # fmt: skip
    if (output / MARKER).exists():
        return _existing(output / MARKER, settings)
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and holds no {MARKER}; choose another folder or remove it")
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
    part = output / f"{MARKER}.partial"
    part.write_text(json.dumps({"settings": asdict(settings), "figures": figures}, indent=2) + "\n", encoding="utf-8")
    part.replace(output / MARKER)
    return figures


def _existing(marker: Path, settings: Settings) -> dict[str, Any]:
    known = json.loads(marker.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(asdict(settings)))
    changed = [f"{key}: {known['settings'].get(key)!r}, now {value!r}" for key, value in wanted.items()
               if known["settings"].get(key) != value]  # fmt: skip
    if changed:
        raise DataError(
            f"{marker.parent} was trained with other settings ({'; '.join(changed)}); choose another folder"
        )
    return known["figures"]


def read_examples(files: tuple[str, ...]) -> tuple[list[dict[str, Any]], int]:
    """All demonstrations as TRL's conversational prompt and completion, and how many more are labelled as bad answers.

    Raises DataError naming every row that cannot be used, of all files.
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
    default = Settings("", ())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--model", required=True, help="folder or hub id of the model to start from")
    parser.add_argument("--data", action="append", required=True, help="a file of examples; may be given again")
    for name in ("epochs", "lr", "last_lr", "batch_size", "micro_batch_size", "max_tokens", "seed"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    given = vars(parser.parse_args(arguments))
    output = given.pop("output")
    try:
        figures = train(output, Settings(**{**given, "data": tuple(given["data"])}))
    except KumiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
