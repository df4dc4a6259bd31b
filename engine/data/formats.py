"""The formats of data sets: one class per format, recognised by its columns, in the order of FORMATS.

A format that brings answers reads a row as a Prompt with its answers, chosen before rejected, and a win rate for
each: 1 and 0 for a plain label, 1/2 for a tie, or the data set's own probabilities. Texts are unchanged.
docs/prompts.md has a table of all formats.
"""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.data.chats import (
    SYSTEM_COLUMNS,
    Message,
    Prompt,
    add_system,
    prompt_of,
    split_answer,
    user_message,
)
from engine.data.pairs import shared_prompt, split_texts, transcript, win_rates
from engine.data.rows import Columns, Row
from engine.data.values import RowError, answer_of, label_of, number_of, text_of, type_name
from engine.errors import DataError
from engine.text import printable

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question", "conversations")
"""Columns looked for, in this order, where prompts.column is null."""
TEXT_COLUMNS = ("prompt", "instruction", "question")
ANSWER_COLUMNS = ("completion", "output", "response", "answer")
CONVERSATION_COLUMNS = ("messages", "conversations", "real")
"""`real`: demonstrations in the tables of SPIN's authors."""


Reading = tuple[list[Message], Sequence[str], Sequence[float]]
"""The prompt, its answers and their win rates."""


@dataclass(frozen=True)
class Format(ABC):
    """One format; an instance holds the names of its columns in one data set."""

    name: ClassVar[str]
    """As in prompts.format."""
    description: ClassVar[str]
    """The columns in words, for messages."""
    num_answers: ClassVar[tuple[int, ...]]
    """The numbers of answers that its rows may bring."""
    labels: ClassVar[tuple[str, ...]] = ()
    """Columns about the answers: labels, scores, winners. Read if the data set has them."""

    prompt: str | None
    """Column with the prompt; None: the prompt stands before the answers, in their columns."""
    answers: tuple[str, ...] = ()
    """Columns with the answers."""

    @classmethod
    @abstractmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        """Return the format bound to these columns, or None if they do not fit. `prompt_column`: prompts.column."""

    @property
    def columns(self) -> Columns:
        """What to read of a file."""
        required = ((self.prompt,) if self.prompt else ()) + self.answers
        return Columns(required, ("input", *SYSTEM_COLUMNS, *self.labels))

    def read(self, row: Row) -> Prompt:
        """Return the prompt of a row with its answers. Raises RowError."""
        if not isinstance(row.value, dict):
            raise RowError(f"holds {type_name(row.value)}; expected an object with {', '.join(self.answers)}")
        for name in (self.prompt, *self.answers):
            if name and name not in row.value:
                raise RowError(f"no {name}; found: {_names(row.value)}")
            if name and row.value[name] is None:
                raise RowError(f"{name} holds null; expected text or messages")
        notes: list[str] = []
        messages, answers, rates = self._read(row.value, notes)
        return Prompt(row.where, messages, tuple(notes), tuple(answers), tuple(rates))

    @abstractmethod
    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        """Read a row in which no column of the prompt and the answers is null. Adds to `notes`. Raises RowError."""

    def _prompt(self, row: dict[str, Any], notes: list[str]) -> list[Message]:
        """The messages in the prompt's column; [] if there is none."""
        return prompt_of(row, self.prompt, notes) if self.prompt else []


class PromptOnly(Format):
    """A column with the prompt, or rows of plain text. Answers are not read, so it is not in FORMATS."""

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        prompt = _first(columns, (prompt_column,) if prompt_column else PROMPT_COLUMNS)
        return cls(prompt) if prompt else None

    def read(self, row: Row) -> Prompt:
        if isinstance(row.value, str):
            return Prompt(row.where, [user_message(row.value)])
        if self.prompt is None:
            raise RowError(f"no column with a prompt; found: {_names(row.value)}")
        return super().read(row)

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        return self._prompt(row, notes), (), ()


class Kumite(Format):
    """Rows of Kumite's own prompts table, or of a table made from it."""

    name = "kumite"
    description = "messages, dataset_completions and dataset_win_rates"
    num_answers = (1, 2)
    labels = ("dataset_win_rates",)

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        prompt = prompt_column or "messages"
        fits = {prompt, "dataset_completions", "dataset_win_rates"} <= set(columns)
        return cls(prompt, ("dataset_completions",)) if fits else None

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        messages = self._prompt(row, notes)
        answers, rates = row["dataset_completions"], row.get("dataset_win_rates")
        if not isinstance(answers, list) or not isinstance(rates, list) or len(answers) != len(rates):
            raise RowError("dataset_completions and dataset_win_rates are not two lists of the same length")
        answers = [answer_of(answer, "dataset_completions") for answer in answers]
        numbers = [n for rate in rates if (n := number_of(rate, "dataset_win_rates", 0.0, 1.0)) is not None]
        if len(numbers) < len(rates):
            raise RowError("dataset_win_rates holds null; expected a number from 0 to 1")
        return messages, answers, numbers


class Arena(Format):
    """Battles of Chatbot Arena: JSON lists of turns, and a verdict on the whole conversation.

    The two sides of a longer conversation may have different histories. Only where all answers but the last are the
    same is there one prompt for both; else the first turn stands for the conversation (counted as "first_turn").
    """

    name = "arena"
    description = "prompt, response_a, response_b and winner_model_a, winner_model_b, winner_tie"
    num_answers = (2,)
    labels = ("winner_model_a", "winner_model_b", "winner_tie")

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        prompt = prompt_column or "prompt"
        fits = {prompt, "response_a", "response_b", *cls.labels} <= set(columns)
        return cls(prompt, ("response_a", "response_b")) if fits else None

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        names = (self.prompt or "prompt", *self.answers)
        questions, first, second = (_json_turns(row[name], name) for name in names)
        if not len(questions) == len(first) == len(second):
            counts = f"{len(questions)}, {len(first)} and {len(second)}"
            raise RowError(f"{', '.join(names)} hold {counts} turns; expected the same number")
        last = len(questions) - 1
        if last and first[:-1] != second[:-1]:
            last = 0
            notes.append("first_turn")
        messages = []
        for i in range(last):
            messages.append(user_message(text_of(questions[i], f"{names[0]}[{i}]")))
            messages.append({"role": "assistant", "content": text_of(first[i], f"{names[1]}[{i}]")})
        messages.append(user_message(text_of(questions[last], f"{names[0]}[{last}]")))
        sides = zip(names[1:], (first[last], second[last]), strict=True)
        a, b = (answer_of(text_of(side, f"{name}[{last}]"), name) for name, side in sides)
        won = [label_of(row.get(name), name) for name in self.labels]
        if sum(won) != 1:
            raise RowError(f"{', '.join(self.labels)} are {[int(label) for label in won]}; expected exactly one 1")
        if won[2]:
            notes.append("ties")
            return messages, (a, b), (0.5, 0.5)
        return messages, (a, b) if won[0] else (b, a), (1.0, 0.0)


class Pair(Format):
    """Two answers to a prompt, or two conversations that begin with it. Where it stands twice, both must agree."""

    name = "pair"
    description = "chosen and rejected, with prompt (or instruction, question) or with the prompt at the start of both"
    num_answers = (2,)
    labels = (
        *("chosen_probs", "chosen_probs_win", "chosen_probs_lose", "score_chosen", "score_rejected"),
        *("all_generated_responses", "all_rm_scores"),
    )

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        if not {"chosen", "rejected", prompt_column or "chosen"} <= set(columns):
            return None
        return cls(prompt_column or _first(columns, PROMPT_COLUMNS), ("chosen", "rejected"))

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        chosen, rejected = (row[name] for name in self.answers)
        if isinstance(chosen, str) != isinstance(rejected, str):
            types = f"chosen holds {type_name(chosen)} and rejected {type_name(rejected)}"
            raise RowError(f"{types}; expected the same of both")
        stated = self._prompt(row, notes)
        if isinstance(chosen, str) and not self.prompt:
            if transcript(chosen) and transcript(rejected):
                chosen, rejected = transcript(chosen), transcript(rejected)
                notes.append("transcripts")
            else:
                text, chosen, rejected = split_texts(chosen, rejected)
                stated = [user_message(text)]
        (before_chosen, chosen), (before_rejected, rejected) = (
            split_answer(side, name) for side, name in zip((chosen, rejected), self.answers, strict=True)
        )
        messages = shared_prompt(stated, before_chosen, before_rejected)
        if not self.prompt:
            messages = add_system(row, messages, "chosen", notes)
        return messages, [chosen, rejected], win_rates(row, [chosen, rejected], notes)


class Completion(Format):
    """A prompt and an answer to imitate."""

    name = "completion"
    description = "prompt (or instruction, question) and completion (or output, response, answer)"
    num_answers = (1,)

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        prompt = _first(columns, (prompt_column,) if prompt_column else TEXT_COLUMNS)
        answer = _first(columns, ANSWER_COLUMNS)
        return cls(prompt, (answer,)) if prompt and answer and prompt != answer else None

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        stated = self._prompt(row, notes)
        before, answer = split_answer(row[self.answers[0]], self.answers[0])
        return shared_prompt(stated, before, before), (answer,), (1.0,)


class Labelled(Completion):
    """A prompt and an answer that is labelled as good or bad."""

    name = "labelled"
    description = "prompt, completion and label (true or false)"
    labels = ("label",)

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        return super().match(columns, prompt_column) if "label" in columns else None

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        messages, answers, _ = super()._read(row, notes)
        return messages, answers, (float(label_of(row.get("label"), "label")),)


class Conversation(Format):
    """A conversation whose last turn is the answer to imitate."""

    name = "conversation"
    description = "messages or conversations, whose last turn is the answer"
    num_answers = (1,)

    @classmethod
    def match(cls, columns: Collection[str], prompt_column: str | None) -> Format | None:
        name = _first(columns, (prompt_column,) if prompt_column else CONVERSATION_COLUMNS)
        return cls(None, (name,)) if name else None

    def _read(self, row: dict[str, Any], notes: list[str]) -> Reading:
        (name,) = self.answers
        if not isinstance(row[name], list):
            raise RowError(f"{name} holds {type_name(row[name])}; expected a list of messages")
        before, answer = split_answer(row[name], name)
        if not before:
            raise RowError(f"{name} holds an answer without a question before it")
        return add_system(row, before, name, notes), (answer,), (1.0,)


def _names(row: dict[str, Any]) -> str:
    return ", ".join(list(row)[:10]) or "nothing"


def _first(columns: Collection[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _json_turns(value: Any, name: str) -> list[Any]:
    try:
        turns = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise RowError(f"{name} is not a JSON list of turns ({error})") from error
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{name} holds {type_name(turns)}; expected a JSON list with at least one turn")
    return turns


FORMATS: tuple[type[Format], ...] = (Kumite, Arena, Pair, Labelled, Completion, Conversation)
"""The formats that bring answers, in the order in which they are tried."""


@dataclass(frozen=True)
class RequiredAnswers:
    """The answers that each row of a data set must bring."""

    count: int = 0
    """G: none, 1 (a demonstration, or an answer with a label) or 2 (a preference pair)."""
    max_tokens: int = 0
    """Longer answers follow prompts.on_long_answer."""
    required_by: str = ""
    """Who needs them, for messages: "algorithm.name = dpo"."""


_NEEDS = (
    "prompts",
    "one answer per prompt, a demonstration or one with a label",
    "preferences, two answers per prompt",
)


@dataclass(frozen=True)
class FormatChoice:
    """Chooses the format of a data set by its columns."""

    column: str | None
    """prompts.column"""
    format: str | None
    """prompts.format"""
    required: RequiredAnswers

    def choose(self, columns: Collection[str]) -> Format | None:
        """Return the first format that fits the columns; None if none does."""
        matches = (format.match(columns, self.column) for format in self._candidates())
        return next((match for match in matches if match), None)

    def select(self, columns: Sequence[str], source: str) -> Columns:
        """Return the columns to read of a file. Raises DataError where no format fits."""
        match = self.choose(columns)
        if match is None:
            raise self.mismatch(columns, source)
        return match.columns

    def mismatch(self, columns: Iterable[str], source: str) -> DataError:
        """Return the error of a data set whose columns fit no format."""
        names = [str(name) for name in columns]
        listed = printable(", ".join(names[:30]) + (", ..." if len(names) > 30 else ""), "show") or "no columns"
        if not self.required.count and not self.format:
            expected = (self.column,) if self.column else PROMPT_COLUMNS
            similar = {match for name in expected for match in difflib.get_close_matches(name, names, n=2)}
            hint = f"; nearest: {printable(', '.join(sorted(similar)), 'show')}" if similar else ""
            return DataError(
                f"{source}: no column {' or '.join(expected)}; found: {listed}{hint}. "
                f"Name the column with the prompt in prompts.column"
            )
        settings = f"; prompts.format = {self.format}" if self.format else ""
        settings += f"; prompts.column = {self.column}" if self.column else ""
        return DataError(
            f"{source}: {self.required.required_by or 'this data set'} needs {_NEEDS[self.required.count]}, "
            f"which these columns do not hold: {listed}{settings}. Accepted are\n"
            + "\n".join(f"  {format.name}: {format.description}" for format in self._candidates())
            + "\nRename the columns, or name the one with the prompt in prompts.column"
        )

    def _candidates(self) -> Sequence[type[Format]]:
        if self.format:
            return [format for format in FORMATS if format.name == self.format]
        if self.required.count:
            return [format for format in FORMATS if self.required.count in format.num_answers]
        # An arena's prompt is JSON, so Arena comes before the plain column, unless the user named that column.
        return [PromptOnly] if self.column else [Arena, PromptOnly, Pair]
