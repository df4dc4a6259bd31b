#!/usr/bin/env python
"""Supervised fine-tuning by TRL: the start that self-rewarding needs, from instructions and judgements.

    python -m recipes.sft OUTPUT --model MODEL --data ift.jsonl --data eft.jsonl

Each file (JSONL or Parquet) holds rows of TRL's prompt-completion or conversational format: `prompt` and
`completion`, or `messages`. Loss on the completions alone. In the words of arXiv 2401.10020, IFT teaches to
follow instructions and EFT to judge: an EFT row's prompt is the judge's, filled in, and its completion a judgement
(recipes/worlds/tearoom_judge_build.py makes such rows). The defaults are the paper's (lr 5.5e-6 falling by a cosine to
a fifth, batch 16), but its 70-billion policy is not.

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

from engine.errors import DataError, KumiteError, ModelError

MARKER = "training.json"
FORMATS = ({"prompt", "completion"}, {"messages"})


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
    micro_batch_size: int = 4
    max_tokens: int = 2048
    """Longer examples keep their start."""
    seed: int = 0


def train(output: Path, settings: Settings) -> dict[str, Any]:
    """Train, write the model to `output` and return the figures; keep a complete model of the same settings.

    Raises DataError for data that cannot be used and where `output` holds something else, ModelError for a
    model without chat template or weights.
    """
    if (output / MARKER).exists():
        return _existing(output / MARKER, settings)
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and holds no {MARKER}; choose another folder or remove it")
    started = time.monotonic()
    trainer = _trainer(settings, _rows(settings.data))
    trainer.train()
    trainer.model.save_pretrained(output)  # not save_model, which adds a pickle of its arguments
    trainer.processing_class.save_pretrained(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "examples": len(trainer.train_dataset),
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


def _rows(files: tuple[str, ...]) -> Any:
    """All examples of all files as one data set of the columns that its format has."""
    import datasets

    parts, problems = [], []
    for name in files:
        path = Path(name)
        kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(path.suffix)
        if kind is None or not path.is_file():
            problems.append(f"{name}: expected an existing .jsonl or .parquet file")
            continue
        part = datasets.load_dataset(kind, data_files=name, split="train", cache_dir=tempfile.mkdtemp())
        found = next((columns for columns in FORMATS if columns <= set(part.column_names)), None)
        if found is None or not len(part):
            problems.append(f"{name}: {len(part)} rows with columns {part.column_names}; expected prompt and "
                            "completion, or messages")  # fmt: skip
            continue
        parts.append(part.select_columns(sorted(found)))
    if len({tuple(part.column_names) for part in parts}) > 1:
        problems.append("the files have different formats; give all as prompt and completion, or all as messages")
    if problems:
        raise DataError("the training data cannot be used:\n" + "\n".join(f"  - {text}" for text in problems))
    return datasets.concatenate_datasets(parts)


def _trainer(settings: Settings, rows: Any) -> Any:
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
        gradient_accumulation_steps=max(1, settings.batch_size // settings.micro_batch_size),
        max_length=settings.max_tokens,
        seed=settings.seed,
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=gpu,
        completion_only_loss=True if "completion" in rows.column_names else None,
        assistant_only_loss="messages" in rows.column_names,
        save_strategy="no",
        report_to="none",
        logging_first_step=True,
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
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
