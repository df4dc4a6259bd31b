"""Make a small policy and a small PairRM from your own answers and preferences, on two CPU cores in minutes.

    python -m recipes.prepare.small_models OUTPUT --answers answers.parquet --preferences pairs.parquet

Two Parquet files go in, with these columns; others are not read:

    answers       prompt, answer                          text; one or many answers per prompt
    preferences   prompt, answer_a, answer_b, p_a_wins    text; a number in [0, 1]: the probability that
                                                          answer_a is better, 1 or 0 for a plain label

Written to OUTPUT:

    policy/         a Llama of about 2.5 million parameters with its tokenizer, trained on the answers by TRL
    pairrm/         a PairRM of about a million parameters, trained on the preferences
    prompts.jsonl   the prompts that training read
    heldout.jsonl   the prompts that neither model has seen, a share of all prompts by hash
    models.json     settings, digests of both files, figures; written last, so it marks complete models

The models are for trying the whole loop on real text. At this size they learn the style of the answers, not their
content. The same files and settings make the same models; complete ones are kept.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.tiny_policy import CHAT_TEMPLATE_WITHOUT_BOS, EXACT, byte_level_tokenizer, learn_bpe, new_llama
from engine.errors import DataError
from engine.seeds import derive_seed
from recipes.prepare.command_line import complete, new_parser, run, settings_from, write_json, write_jsonl
from recipes.prepare.training import conversation, sft_trainer

if TYPE_CHECKING:
    from tokenizers.models import BPE

    from actors.scorers.pairrm.training import Pair

Figures = dict[str, float]
POLICY_TOKENS = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
POLICY_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PAIRRM_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TEXT, NUMBER = "text", "a number in [0, 1]"
ANSWERS = {"prompt": TEXT, "answer": TEXT}
PREFERENCES = {"prompt": TEXT, "answer_a": TEXT, "answer_b": TEXT, "p_a_wins": NUMBER}
MAX_SHOWN = 10
"""Bad rows that an error message lists; the others are counted."""


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    seed: int = 0
    """Another seed: another split and other models."""
    heldout_share: float = 0.1
    """Share of the prompts that neither model sees."""
    vocabulary: int = 4096
    """Tokens that the tokenizer learns from the texts, at most."""
    hidden_size: int = 192
    """Width of the policy, a multiple of 32."""
    num_layers: int = 4
    """Depth of the policy."""
    max_positions: int = 2048
    """Tokens of prompt and answer that the policy can hold in a run."""
    max_example_tokens: int = 256
    """Longer examples are left out of the policy's training, and counted."""
    epochs: float = 1.6
    """Passes over the answers."""
    batch_size: int = 8
    """Examples per step of the policy's training."""
    lr: float = 1.5e-3
    """The policy's largest learning rate."""
    pairrm_hidden_size: int = 128
    """Width of PairRM."""
    pairrm_num_layers: int = 2
    """Depth of PairRM."""
    pairrm_source_tokens: int = 128
    """PairRM's room for the prompt."""
    pairrm_answer_tokens: int = 112
    """PairRM's room for each answer, to which unused prompt room is added."""
    pairrm_steps: int = 350
    """Steps of PairRM's training."""
    pairrm_batch_size: int = 16
    """Pairs per step."""
    pairrm_lr: float = 1e-3
    """PairRM's largest learning rate."""


@dataclass(frozen=True)
class Texts:
    """The texts of one side of the split."""

    prompts: list[str]
    answers: list[tuple[str, str]]
    """(prompt, answer)"""
    pairs: list[tuple[str, str, str, float]]
    """(prompt, answer_a, answer_b, p_a_wins)"""

    def __iter__(self) -> Any:
        """Every text, for the tokenizer."""
        yield from self.prompts
        yield from (answer for _, answer in self.answers)
        yield from (answer for _, *both, _ in self.pairs for answer in both)


def read_columns(file: Path, columns: dict[str, str]) -> list[tuple]:
    """Rows of a Parquet file as tuples in the order of `columns`. Raises DataError naming every bad row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            if missing := [name for name in columns if name not in names]:
                raise DataError(f"{file}: lacks {', '.join(missing)}; expected the columns {columns}, found {names}")
            values = parquet.read(columns=list(columns)).select(list(columns)).to_pydict().values()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as a Parquet file: {error}") from error
    rows = list(zip(*values, strict=True))
    problems = [
        f"row {number}: {name} is {value!r:.60}; expected {expected}"
        for number, row in enumerate(rows, start=1)
        for (name, expected), value in zip(columns.items(), row, strict=True)
        if not _is(value, expected, may_be_empty=name != "prompt")
    ]
    if problems or not rows:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise DataError(f"{file}: " + ("; ".join(problems[:MAX_SHOWN]) + more or "no rows"))
    return rows


def _is(value: object, expected: str, may_be_empty: bool) -> bool:
    if expected == TEXT:
        return isinstance(value, str) and (may_be_empty or bool(value.strip()))
    return isinstance(value, int | float) and 0.0 <= value <= 1.0  # NaN is in no range


def split(answers: list[tuple], preferences: list[tuple], settings: Settings) -> tuple[Texts, Texts]:
    """(training, held-out): all rows of one prompt are on one side.

    Which prompts are held out depends on the seed and on the set of prompts, not on the order of rows.
    Raises DataError where a side has no answers or no pairs.
    """
    prompts = list(dict.fromkeys(row[0] for row in [*answers, *preferences]))
    drawn = sorted(prompts, key=lambda prompt: (derive_seed(settings.seed, "heldout", prompt), prompt))
    heldout = set(drawn[: max(1, round(settings.heldout_share * len(prompts)))])
    sides = []
    for inside in (False, True):
        side = Texts(
            [prompt for prompt in prompts if (prompt in heldout) is inside],
            [row for row in answers if (row[0] in heldout) is inside],
            [row for row in preferences if (row[0] in heldout) is inside],
        )
        if not side.answers or not side.pairs:
            raise DataError(
                f"{'held-out' if inside else 'training'} prompts have {len(side.answers)} answers and "
                f"{len(side.pairs)} preferences; both are needed: give more prompts or another --heldout-share"
            )
        sides.append(side)
    return sides[0], sides[1]


def make_policy(training: Texts, heldout: Texts, merges: BPE, folder: Path, settings: Settings) -> Figures:
    """Train the policy on the answers and write it to `folder`; losses are in nats per token of an answer."""
    import torch

    torch.set_num_threads(1)  # PairRM trains on the other core; one thread also fixes the order of additions
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    tokenizer = byte_level_tokenizer(merges, POLICY_TOKENS, POLICY_ROLES, CHAT_TEMPLATE_WITHOUT_BOS, **EXACT)
    policy = new_llama(
        derive_seed(settings.seed, "policy"),
        tokenizer,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 8 // 3,
        num_hidden_layers=settings.num_layers,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
    )
    rows, heldout_rows = (
        _fitting(side.answers, tokenizer, settings.max_example_tokens) for side in (training, heldout)
    )
    trainer = sft_trainer(
        policy,
        tokenizer,
        rows,
        heldout_rows,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        max_length=settings.max_example_tokens,
        train_sampling_strategy="group_by_length",
        seed=settings.seed,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "policy_parameters": sum(p.numel() for p in policy.parameters()),
        "policy_vocabulary": len(tokenizer),
        "sft_examples": len(rows),
        "sft_overlong": len(training.answers) - len(rows),
        "sft_steps": trainer.state.global_step,
        "sft_first_loss": round(float(losses[0]), 4),
        "sft_last_loss": round(float(losses[-1]), 4),
        "sft_heldout_loss": round(float(trainer.evaluate()["eval_loss"]), 4),
        "sft_heldout_examples": len(heldout_rows),
        "policy_seconds": round(time.monotonic() - started, 1),
    }
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return figures


def _fitting(answers: list[tuple[str, str]], tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """Examples of at most `max_tokens` tokens: a truncated example would teach answers without an end."""
    examples = [conversation(*row) for row in answers]
    texts = [tokenizer.apply_chat_template(e["prompt"] + e["completion"], tokenize=False) for e in examples]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    kept = [example for example, length in zip(examples, lengths, strict=True) if length <= max_tokens]
    if not kept:
        raise DataError(f"all {len(answers)} examples have more than max_example_tokens = {max_tokens} tokens")
    return kept


def make_pairrm(training: Texts, heldout: Texts, merges: BPE, folder: Path, settings: Settings) -> Figures:
    """Train PairRM on the preferences and write it to `folder`; held-out accuracies are on prompts it has not seen."""
    import torch

    from actors.scorers.pairrm.inputs import Room
    from actors.scorers.pairrm.training import Pair, new_pairrm, pair_accuracy, train_pairrm

    torch.set_num_threads(1)
    started = time.monotonic()
    pairs, heldout_pairs = ([Pair(*row) for row in side.pairs] for side in (training, heldout))
    model = new_pairrm(
        byte_level_tokenizer(merges, PAIRRM_TOKENS, **EXACT),
        hidden_size=settings.pairrm_hidden_size,
        num_layers=settings.pairrm_num_layers,
        room=Room(settings.pairrm_source_tokens, settings.pairrm_answer_tokens),
        seed=settings.seed,
    )
    losses = train_pairrm(
        model,
        pairs,
        steps=settings.pairrm_steps,
        batch_size=settings.pairrm_batch_size,
        lr=settings.pairrm_lr,
        seed=settings.seed,
    )
    model.save(folder)
    last = losses[-50:]
    return {
        "pairrm_parameters": sum(p.numel() for p in model.parameters()),
        "pairrm_pairs": len(pairs),
        "pairrm_loss": round(sum(last) / len(last), 4),
        "pairrm_training_accuracy": round(pair_accuracy(model, pairs[: len(heldout_pairs)]), 4),
        "pairrm_heldout_pairs": sum(pair.left_wins != 0.5 for pair in heldout_pairs),
        "pairrm_heldout_accuracy": round(pair_accuracy(model, heldout_pairs), 4),
        "longer_wins_heldout_accuracy": round(longer_wins(heldout_pairs), 4),
        "pairrm_seconds": round(time.monotonic() - started, 1),
    }


def longer_wins(pairs: list[Pair]) -> float:
    """Accuracy of the rule "the answer with more characters is better"; equal lengths count half.

    A baseline: a judge that is no more accurate may have learned nothing but length.
    """
    judged = [pair for pair in pairs if pair.left_wins != 0.5]
    right = 0.0
    for pair in judged:
        longer = len(pair.left) - len(pair.right)
        right += 0.5 if not longer else float((longer > 0) == (pair.left_wins > 0.5))
    return right / len(judged) if judged else float("nan")


def build(folder: Path, answers: Path, preferences: Path, settings: Settings) -> Figures:
    """Make both models in `folder`, or keep the complete ones there, and return the figures of models.json.

    Raises DataError for files that cannot be used, and where `folder` holds models of other files or settings.
    """
    origin = {"settings": asdict(settings), "answers": _digest(answers), "preferences": _digest(preferences)}
    marker = folder / "models.json"
    if written := complete(marker, origin):
        return written["figures"]
    training, heldout = split(read_columns(answers, ANSWERS), read_columns(preferences, PREFERENCES), settings)
    for name, side in (("prompts", training), ("heldout", heldout)):
        write_jsonl(folder / f"{name}.jsonl", ({"prompt": prompt} for prompt in side.prompts))
    merges = learn_bpe(training, settings.vocabulary)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        pairrm = processes.submit(make_pairrm, training, heldout, merges, folder / "pairrm", settings)
        policy = processes.submit(make_policy, training, heldout, merges, folder / "policy", settings)
        figures = {**policy.result(), **pairrm.result()}
    counts = {"prompts": len(training.prompts), "heldout_prompts": len(heldout.prompts)}
    write_json(marker, {**origin, "figures": counts | figures})
    return counts | figures


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the figures and returns the exit code."""
    parser = new_parser("recipes.prepare.small_models", __doc__)
    parser.add_argument("folder", type=Path, metavar="OUTPUT", help="folder that the models are written to")
    parser.add_argument("--answers", type=Path, required=True, help="Parquet file: prompt, answer")
    parser.add_argument("--preferences", type=Path, required=True, help="Parquet file: prompt, answer_a, answer_b, ...")
    settings, options = settings_from(parser, Settings, arguments)
    return run(build, options.folder, options.answers, options.preferences, settings)


if __name__ == "__main__":
    sys.exit(main())
