"""Examples that teach a model to judge, from rated answers: EFT (evaluation fine-tuning) in arXiv 2401.10020.

    python -m recipes.prepare.judgements OUTPUT.jsonl --prompt recipes/judges/additive_rubric.txt --rated rated.jsonl

Each row of --rated (JSONL, JSON, Parquet or Arrow) holds `prompt` (a text, or a chat of role and content), `answer`,
`score`, and may hold `judgement` (what to write, ending in the line "Score: n"; without it that line alone) and `rank`
(of people, 1 before 2). A row becomes the question that a pointwise judge asks at run time, filled into the same
prompt file with a fresh mark, and the judgement as its reply, in TRL's conversational prompt-completion format for
recipes/prepare/sft.py.

Left out, and counted:
  1. Prompts whose answers have ranks, where the scores do not order the answers as the ranks do. The paper keeps
     judgements whose order agrees with people's. We read it so that equal scores of different ranks disagree;
     --allow-ties changes this.
  2. Examples of a score that has more than --cap-share of the training examples, chosen by hash (the paper has fewer
     of score 4). Held-out examples are not thinned.

OUTPUT-heldout.jsonl gets the prompts whose hash is below --heldout-share, and OUTPUT.json the settings and the counts.
Nothing is overwritten.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.scorers.base import plain_text
from actors.scorers.judge.judge import parse_score
from actors.scorers.judge.prompt_file import JudgePrompt, draw_mark, read_judge_prompt
from engine.config.judge import JudgeConfig, PolicyServer
from engine.data.rows import read_rows, select_by_name
from engine.data.values import RefusedRow, list_refused
from engine.errors import DataError
from engine.seeds import derive_seed
from recipes.prepare.command_line import new_parser, refuse_existing, run, settings_from, write_json, write_jsonl

LARGEST = 1e15
"""Of scores and ranks, which also keeps NaN and infinities out."""


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    prompt: str
    """The judge's prompt file, as in recipes/judges/."""
    rated: str
    """JSON lines of rated answers."""
    min_score: float = 0.0
    """Lowest score of the judge."""
    max_score: float = 5.0
    """Highest score of the judge."""
    cap_share: float = 1.0
    """Largest share of the training examples that one score may have, in (0, 1]."""
    heldout_share: float = 0.25
    """Share of the prompts that is held out, in [0, 1); the paper's is about this, 541 of 2,171 examples."""
    allow_ties: bool = False
    """Equal scores agree with different ranks."""
    seed: int = 0
    """Another seed: other examples are held out and left out."""


@dataclass(frozen=True)
class Rated:
    """One row of the file."""

    number: int
    """Counted from 1: the line in JSONL, the row elsewhere."""
    instruction: str
    """The prompt as a judge reads it."""
    answer: str
    score: float
    judgement: str
    rank: float | None


def read_rated(source: str, settings: Settings) -> list[Rated]:
    """Return all rows of a file. Raises DataError that names every problem of every row."""
    rows: list[Rated] = []
    refused: list[RefusedRow] = []
    for row in read_rows(source, select_by_name(("prompt", "answer"), ("score",), ("judgement", "rank"))):
        if isinstance(row, RefusedRow):
            refused.append(row)
        elif problems := [RefusedRow(row.where, text) for text in _problems(row.value, settings)]:
            refused += problems
        else:
            rows.append(_rated(row.number, row.value))
    refused += [RefusedRow(f"{source}:{number}", text) for number, text in _half_ranked(rows)]
    if refused:
        raise DataError(f"--rated {source} cannot be used:\n{list_refused(refused)}")
    if not rows:
        raise DataError(f"--rated {source} holds no rows")
    return rows


def _problems(row: Any, settings: Settings) -> Iterator[str]:
    """What is wrong with one row, in words."""
    if not isinstance(row, dict):
        yield "expected a JSON object with prompt, answer and score"
        return
    if not _is_prompt(row.get("prompt")):
        yield f"prompt = {row.get('prompt')!r}; expected a text, or a list of messages with role and content"
    if not isinstance(row.get("answer"), str):
        yield f"answer = {row.get('answer')!r}; expected a text"
    if row.get("rank") is not None and not _is_number(row["rank"]):
        yield f"rank = {row['rank']!r}; expected a number, 1 before 2, or no rank"
    low, high, score = settings.min_score, settings.max_score, row.get("score")
    if not _is_number(score) or parse_score(_score_line(score), low, high) != score:
        yield f"score = {score!r}; expected a number from {low:g} to {high:g} (--min-score, --max-score)"
        return
    text = row.get("judgement")
    if text is not None and not (isinstance(text, str) and parse_score(text, low, high) == score):
        yield f'judgement = {text!r}; expected a text that ends in the row\'s score, as "{_score_line(score)}"'


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        parts = [message.get(key) for message in value if isinstance(message, dict) for key in ("role", "content")]
        return bool(value) and len(parts) == 2 * len(value) and all(isinstance(part, str) for part in parts)
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _score_line(score: float) -> str:
    return f"Score: {score:g}"


def _rated(number: int, row: dict[str, Any]) -> Rated:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    judgement = _score_line(row["score"]) if row.get("judgement") is None else row["judgement"]
    return Rated(number, plain_text(messages), row["answer"], row["score"], judgement, row.get("rank"))


def by_prompt(rows: Sequence[Rated]) -> dict[str, list[Rated]]:
    """Lines by their prompt, in the order of the file."""
    groups: dict[str, list[Rated]] = defaultdict(list)
    for row in rows:
        groups[row.instruction].append(row)
    return groups


def _half_ranked(rows: Sequence[Rated]) -> list[tuple[int, str]]:
    """Rows without a rank where other answers to the same prompt have one: their order cannot be checked."""
    return [
        (row.number, "no rank, but other answers to its prompt have one; give all or none")
        for group in by_prompt(rows).values()
        for row in group
        if row.rank is None and any(other.rank is not None for other in group)
    ]


def agrees(rows: Sequence[Rated], allow_ties: bool) -> bool:
    """Whether the scores of one prompt's answers fall from each rank to the next (or are equal, with `allow_ties`)."""
    ranked = [(row.rank, row.score) for row in rows if row.rank is not None]
    return all(
        better > worse or (better == worse and allow_ties)
        for (first, better), (second, worse) in itertools.permutations(ranked, 2)
        if first < second
    )


def most_of_one_score(counts: Sequence[int], share: float) -> int:
    """The largest n for which no score has more than `share` of the examples, if each score keeps at most n.

    counts: examples per score. Raises DataError where no n is small enough: with s scores one has 1/s at least.
    """
    for most in range(max(counts), 0, -1):
        if most <= share * sum(min(count, most) for count in counts) + 1e-9:
            return most
    raise DataError(f"--cap-share {share:g}: {len(counts)} different scores cannot all have less than "
                    f"1/{len(counts)} of the examples; raise it")  # fmt: skip


def capped(rows: Sequence[Rated], settings: Settings) -> list[Rated]:
    """`rows` in their order, without those of a score beyond the cap; a hash decides which of them are kept."""
    if not rows:
        return []
    counts = Counter(row.score for row in rows)
    most = most_of_one_score(list(counts.values()), settings.cap_share)
    kept: set[int] = set()
    for score in counts:
        same = (row for row in rows if row.score == score)
        drawn = sorted(same, key=lambda row: derive_seed(settings.seed, "cap", row.number))
        kept |= {row.number for row in drawn[:most]}
    return [row for row in rows if row.number in kept]


def is_heldout(instruction: str, settings: Settings) -> bool:
    """By hash of the prompt: no prompt is in both parts, and other files divide the same prompts in the same way."""
    return derive_seed(settings.seed, "heldout", instruction) < settings.heldout_share * 2**31


def example(row: Rated, prompt: JudgePrompt, seed: int) -> dict[str, Any]:
    """The question as actors/scorers/judge/judge.py asks it, with the judgement as the reply."""
    mark = draw_mark(seed, f"example {row.number}", [row.instruction, row.answer])
    messages = prompt.fill(mark, {"instruction": row.instruction, "answer": row.answer})
    return {"prompt": list(messages), "completion": [{"role": "assistant", "content": row.judgement}]}


def build(rows: Sequence[Rated], settings: Settings) -> tuple[list[Rated], list[Rated], dict[str, Any]]:
    """Return the lines to train on, the held-out lines, and the counts."""
    groups = by_prompt(rows)
    consistent = [row for group in groups.values() if agrees(group, settings.allow_ties) for row in group]
    heldout = [row for row in consistent if is_heldout(row.instruction, settings)]
    offered = [row for row in consistent if not is_heldout(row.instruction, settings)]
    training = capped(offered, settings)
    counts = {
        "rows": len(rows),
        "ranked_prompts": sum(group[0].rank is not None for group in groups.values()),
        "inconsistent_prompts": sum(not agrees(group, settings.allow_ties) for group in groups.values()),
        "inconsistent": len(rows) - len(consistent),
        "capped": len(offered) - len(training),
        "training": len(training),
        "heldout": len(heldout),
        "training_scores": _tally(training),
        "heldout_scores": _tally(heldout),
    }
    return training, heldout, counts


def _tally(rows: Sequence[Rated]) -> dict[str, int]:
    return {f"{score:g}": n for score, n in sorted(Counter(row.score for row in rows).items())}


def check(settings: Settings) -> JudgePrompt:
    """Read the judge's prompt. Raises DataError or ConfigError for invalid settings."""
    problems = []
    if not settings.min_score < settings.max_score:
        problems.append(f"--min-score {settings.min_score:g} is not below --max-score {settings.max_score:g}")
    if not 0 < settings.cap_share <= 1:
        problems.append(f"--cap-share {settings.cap_share:g}: expected a share above 0, up to 1")
    if not 0 <= settings.heldout_share < 1:
        problems.append(f"--heldout-share {settings.heldout_share:g}: expected a share from 0, below 1")
    if problems:
        raise DataError("; ".join(problems))
    config = JudgeConfig(mode="pointwise", prompt=settings.prompt, server=PolicyServer())
    return read_judge_prompt(config, "--prompt")


def write(output: Path, settings: Settings) -> dict[str, Any]:
    """Write settings and counts, the held-out part and, last, OUTPUT; return the counts."""
    heldout_path, facts = output.with_stem(output.stem + "-heldout"), output.with_suffix(".json")
    if output.suffix != ".jsonl":
        raise DataError(f"{output}: expected a name that ends in .jsonl")
    refuse_existing(output, heldout_path, facts)
    prompt = check(settings)
    training, heldout, counts = build(read_rated(settings.rated, settings), settings)
    if not training:
        raise DataError(f"--rated {settings.rated}: no example is left to train on: {counts}")
    write_json(facts, {"settings": asdict(settings), "judge_prompt": prompt.version, "counts": counts})
    if settings.heldout_share:
        write_jsonl(heldout_path, (example(row, prompt, settings.seed) for row in heldout))
    write_jsonl(output, (example(row, prompt, settings.seed) for row in training))
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the counts and returns the exit code."""
    parser = new_parser("recipes.prepare.judgements", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT.jsonl", help="file that the examples are written to")
    settings, options = settings_from(parser, Settings, arguments)
    return run(write, options.output, settings)


if __name__ == "__main__":
    sys.exit(main())
