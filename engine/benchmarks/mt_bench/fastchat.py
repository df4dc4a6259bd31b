"""FastChat's files and rules for MT-Bench: questions, answers, judge prompts, and how a judgment is read.

The rules are those of fastchat/llm_judge/common.py and gen_judgment.py (FastChat 0.2.36). Reading a file raises one
DataError that names every row that cannot be used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from engine.benchmarks.files import read_objects
from engine.data.values import RowError, number_of, text_of, type_name

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
"""Of categories that are not MT-Bench's (gen_model_answer.py)."""
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Their answers are judged beside a reference answer."""
ERROR = "$ERROR$"
"""Stands in FastChat's files for a judgment that the judge's server did not give."""
NO_RATING = -1
"""Stands in FastChat's files for a rating that cannot be read; show_result.py leaves it out of the means."""
SHIPPED_PROMPTS = Path(__file__).parent / "data" / "judge_prompts.jsonl"

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_ELSE = re.compile(r"\[(\d+\.?\d*)\]")

Winner = Literal["A", "B", "tie", "error"]


@dataclass(frozen=True)
class BenchQuestion:
    """One question of one or two turns."""

    id: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class BenchPrompt:
    """One of the prompts with which a judge is asked."""

    name: str
    system: str
    template: str

    def fill(self, texts: Mapping[str, str]) -> str:
        """The user part about `texts`, by placeholder. All are filled in one pass, so a text may hold braces."""
        return self.template.format(**texts)


def read_questions(source: str) -> list[BenchQuestion]:
    """The questions of a file in the form of question.jsonl, in its order."""
    return read_objects(source, _question, "question_id", lambda question: question.id)


def read_answers(source: str) -> dict[int, tuple[str, ...]]:
    """{question id: turns of the first choice} of a file in the form of model_answer/<model>.jsonl."""
    return dict(read_objects(source, _answer, "question_id", lambda answer: answer[0]))


def read_judge_prompts(source: str | None) -> dict[str, BenchPrompt]:
    """{name: prompt} of a file in the form of judge_prompts.jsonl; None: FastChat's own."""
    prompts = read_objects(source or str(SHIPPED_PROMPTS), _prompt, "name", lambda prompt: prompt.name)
    return {prompt.name: prompt for prompt in prompts}


def read_ratings(source: str, categories: Mapping[int, str]) -> dict[str, list[dict[str, Any]]]:
    """{model: ratings} of a file in the form of model_judgment/<judge>_single.jsonl, for mt_bench_results.

    categories: {question id: category}; ratings of other questions are left out. NaN for a rating of NO_RATING.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    # Of several judgments of one turn FastChat counts each, so nothing has to be different.
    for model, row in read_objects(source, _rating, "row", id):
        if row["question_id"] in categories:
            found.setdefault(model, []).append(row | {"category": categories[row["question_id"]]})
    return found


def prompt_name(category: str, turn: int, *, pairwise: bool) -> str:
    """Name of the prompt that judges turn 1 or 2 of a question of this category."""
    kind = "pair" if pairwise else "single"
    version = "math-v1" if category in REFERENCE_CATEGORIES else "v2" if pairwise else "v1"
    return f"{kind}-{version}{'-multi-turn' if turn == 2 else ''}"


def placeholders(category: str, turn: int, *, pairwise: bool) -> set[str]:
    """The placeholders that the prompt of `prompt_name` must hold."""
    sides = ("answer_a", "answer_b") if pairwise else ("answer",)
    references = {f"ref_answer_{n}" for n in range(1, turn + 1)} if category in REFERENCE_CATEGORIES else set()
    if turn == 1:
        return {"question", *sides, *references}
    return {"question_1", "question_2", *(f"{side}_{n}" for side in sides for n in (1, 2)), *references}


def parse_rating(judgment: str) -> float:
    """The first number in double brackets, else the first in single ones; NaN where there is none.

    As in FastChat the number may lie outside 1 to 10.
    """
    match = _RATING.search(judgment) or _RATING_ELSE.search(judgment)
    return float(match[1]) if match else math.nan


def parse_winner(judgment: str) -> Winner:
    """The verdict of a comparison; "error" where there is none. Of several, A comes before B, and B before a tie."""
    verdicts: dict[str, Winner] = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}
    return next((winner for mark, winner in verdicts.items() if mark in judgment), "error")


def answer_lines(rows: Iterable[Mapping[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """Lines of model_answer/<model>.jsonl from rows of engine.schema.MT_BENCH_ANSWERS.

    A second turn that was not asked is "ERROR", as where FastChat's generation fails. There are no time stamps, so that
    the same answers give the same file.
    """
    for row in rows:
        missing = ["ERROR"] * (len(row["turns"]) - len(row["answers"]))
        yield {
            "question_id": row["question_id"],
            "answer_id": f"{row['prompt_id']}-{row['weights'][:12]}",
            "model_id": model,
            "choices": [{"index": 0, "turns": [*row["answers"], *missing]}],
        }


def single_lines(rows: Iterable[Mapping[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """Lines of model_judgment/<judge>_single.jsonl from rows of engine.schema.MT_BENCH_JUDGMENTS."""
    for row in rows:
        yield {
            "question_id": row["question_id"],
            "model": model,
            "judge": [row["judge"], row["prompt"]],
            "user_prompt": row["user_prompt"],
            "judgment": row["judgment"] or ERROR,
            "score": NO_RATING if math.isnan(row["rating"]) else row["rating"],
            "turn": row["turn"],
        }


def pair_lines(rows: Iterable[Mapping[str, Any]], model: str, baseline: str) -> Iterator[dict[str, Any]]:
    """Lines of model_judgment/<judge>_pair.jsonl from rows of engine.schema.MT_BENCH_JUDGMENTS."""
    games: dict[tuple[int, int], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        games.setdefault((row["question_id"], row["turn"]), {})[row["game"]] = row
    for (question, turn), of in games.items():
        yield {
            "question_id": question,
            "model_1": model,
            "model_2": baseline,
            **{f"g{n}_winner": of[n]["winner"] for n in (1, 2)},
            "judge": [of[1]["judge"], of[1]["prompt"]],
            **{f"g{n}_user_prompt": of[n]["user_prompt"] for n in (1, 2)},
            **{f"g{n}_judgment": of[n]["judgment"] or ERROR for n in (1, 2)},
            "turn": turn,
        }


def _question(row: dict[str, Any]) -> BenchQuestion:
    turns = _texts(row.get("turns"), "turns")
    if len(turns) > 2:
        raise RowError(f"turns holds {len(turns)} turns; MT-Bench has one or two")
    return BenchQuestion(_id(row), text_of(row.get("category"), "category"), turns)


def _rating(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    score, turn = number_of(row.get("score"), "score"), row.get("turn")
    if score is None or turn not in (1, 2):
        raise RowError("score must be a number and turn 1 or 2, as in FastChat's <judge>_single.jsonl")
    rating = math.nan if score == NO_RATING else score
    return text_of(row.get("model"), "model"), {"question_id": _id(row), "turn": turn, "rating": rating}


def _answer(row: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RowError('choices must be a list with an object such as {"index": 0, "turns": [...]}')
    return _id(row), _texts(choices[0].get("turns"), "choices[0].turns")


def _prompt(row: dict[str, Any]) -> BenchPrompt:
    name, template = text_of(row.get("name"), "name"), text_of(row.get("prompt_template"), "prompt_template")
    expected = _placeholders_by_name().get(name)
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise RowError(f"prompt_template is no format string ({error}); write {{{{ and }}}} for braces") from None
    found = {name for _, name, _, _ in fields if name is not None}
    if any(spec or conversion for _, name, spec, conversion in fields if name is not None):
        raise RowError("prompt_template has a placeholder with a format; expected a name in braces")
    if expected is not None and found != expected:
        raise RowError(f"prompt_template has the placeholders {sorted(found)}; expected {sorted(expected)}")
    return BenchPrompt(name, text_of(row.get("system_prompt"), "system_prompt"), template)


def _placeholders_by_name() -> dict[str, set[str]]:
    cases = [(c, turn, pairwise) for c in ("writing", "math") for turn in (1, 2) for pairwise in (False, True)]
    return {prompt_name(c, turn, pairwise=p): placeholders(c, turn, pairwise=p) for c, turn, p in cases}


def _id(row: dict[str, Any]) -> int:
    value = row.get("question_id")
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"question_id holds {type_name(value)}; expected a whole number")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} holds {type_name(value)}; expected a list of texts")
    return tuple(text_of(text, f"{name}[{n}]") for n, text in enumerate(value))
