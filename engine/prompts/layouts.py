"""Which columns of a data set hold what, recognised by their names alone.

    format          answers per row    columns
    ------          ---------------    -------
    pair            2                  chosen, rejected; the prompt in a column of its own or at the start of both
    arena           2                  prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie
    kumite          1 or 2             messages, given_answers, given_win_rates: our own tables
    labelled        1                  prompt, completion, label
    completion      1                  prompt, completion (Alpaca: instruction, output)
    conversation    1                  messages or conversations; the last turn is the answer

Knows names and nothing of rows. What a row of each format means is conversations.py's and preferences.py's work.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.errors import DataError
from engine.prompts.conversations import SYSTEM_COLUMNS
from engine.prompts.files import Wanted
from engine.watch.text import printable

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question", "conversations")
"""Columns looked for, in this order, where prompts.column is null."""
TEXT_COLUMNS = ("prompt", "instruction", "question")
ANSWER_COLUMNS = ("completion", "output", "response", "answer")
CONVERSATION_COLUMNS = ("messages", "conversations", "real")
"""`real`: demonstrations in the tables of SPIN's authors."""
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
NUMBERS = (
    "label",
    "given_win_rates",
    *WINNERS,
    "chosen_probs",
    "chosen_probs_win",
    "chosen_probs_lose",
    "score_chosen",
    "score_rejected",
    "all_generated_responses",
    "all_rm_scores",
)
"""What data sets say about their answers."""


@dataclass(frozen=True)
class Given:
    """The answers that each row must bring along."""

    answers: int = 0
    """G: none, 1 (a demonstration, or an answer with a label) or 2 (a preference pair)."""
    max_tokens: int = 0
    """Longer answers follow prompts.on_long_answer."""
    wanted_by: str = ""
    """Who needs them, for messages: "algorithm.name = dpo"."""


@dataclass(frozen=True)
class Layout:
    """Where one data set keeps what."""

    format: str
    """"prompt" where only the prompt is read."""
    prompt: str | None
    """None: the prompt is what stands before the answers, in their own columns."""
    answers: tuple[str, ...] = ()

    @property
    def wanted(self) -> Wanted:
        """What to read of a file in this layout."""
        needed = (*((self.prompt,) if self.prompt else ()), *self.answers)
        return Wanted(needed, ("input", *SYSTEM_COLUMNS, *(NUMBERS if self.answers else ())))


@dataclass(frozen=True)
class Layouts:
    """The layouts that would do for one source."""

    column: str | None
    """prompts.column"""
    format: str | None
    """prompts.format"""
    given: Given

    def choose(self, found: Iterable[str]) -> Layout | None:
        """Return the first layout that the columns `found` fit; None if there is none."""
        names = set(found)
        layouts = (FINDERS[name](names, self.column) for name in self._formats())
        return next((layout for layout in layouts if layout), None)

    def of(self, found: Sequence[str], source: str) -> Wanted:
        """Return what to read of a file with these columns. Raises DataError where no layout fits."""
        layout = self.choose(found)
        if layout is None:
            raise self.missing(found, source)
        return layout.wanted

    def missing(self, found: Iterable[str], source: str) -> DataError:
        """The error of a source whose columns fit nothing."""
        names = [str(name) for name in found]
        shown = printable(", ".join(names[:30]) + (", ..." if len(names) > 30 else ""), "show") or "no columns"
        wanted = (self.column,) if self.column else PROMPT_COLUMNS
        near = {m for name in wanted for m in difflib.get_close_matches(name, names, n=2, cutoff=0.6)}
        hint = f"; nearest: {printable(', '.join(sorted(near)), 'show')}" if near and not self.given.answers else ""
        if not self.given.answers and not self.format:
            return DataError(
                f"{source}: no column {' or '.join(wanted)}; found: {shown}{hint}. "
                f"Name the column with the prompt in prompts.column"
            )
        asked = f"; prompts.format = {self.format}" if self.format else ""
        asked += f"; prompts.column = {self.column}" if self.column else ""
        return DataError(
            f"{source}: {self.given.wanted_by or 'this data set'} needs {_NEEDS[self.given.answers]}, which these "
            f"columns do not hold: {shown}{asked}. Accepted are\n"
            + "\n".join(f"  {name}: {WORDS[name]}" for name in self._formats() if name in WORDS)
            + "\nRename the columns, or name the one with the prompt in prompts.column"
        )

    def _formats(self) -> tuple[str, ...]:
        """Names of the formats that would do, the most telling columns first."""
        if self.format:
            return (self.format,)
        if self.given.answers:
            return FORMATS[self.given.answers]
        # A pair's own prompt column is read as it would be without the pair; an arena's is JSON.
        return ("prompt",) if self.column else ("arena", "prompt", "pair")


def _prompt(found: set[str], column: str | None) -> Layout | None:
    name = _first(found, (column,) if column else PROMPT_COLUMNS)
    return Layout("prompt", name) if name else None


def _pair(found: set[str], column: str | None) -> Layout | None:
    if not {"chosen", "rejected", column or "chosen"} <= found:
        return None
    return Layout("pair", column or _first(found, PROMPT_COLUMNS), ("chosen", "rejected"))


def _arena(found: set[str], column: str | None) -> Layout | None:
    prompt = column or "prompt"
    if not {prompt, "response_a", "response_b", *WINNERS} <= found:
        return None
    return Layout("arena", prompt, ("response_a", "response_b"))


def _kumite(found: set[str], column: str | None) -> Layout | None:
    prompt = column or "messages"
    fits = {prompt, "given_answers", "given_win_rates"} <= found
    return Layout("kumite", prompt, ("given_answers",)) if fits else None


def _labelled(found: set[str], column: str | None) -> Layout | None:
    layout = _completion(found, column)
    return Layout("labelled", layout.prompt, layout.answers) if layout and "label" in found else None


def _completion(found: set[str], column: str | None) -> Layout | None:
    prompt = _first(found, (column,) if column else TEXT_COLUMNS)
    answer = _first(found, ANSWER_COLUMNS)
    return Layout("completion", prompt, (answer,)) if prompt and answer and prompt != answer else None


def _conversation(found: set[str], column: str | None) -> Layout | None:
    name = _first(found, (column,) if column else CONVERSATION_COLUMNS)
    return Layout("conversation", None, (name,)) if name else None


def _first(found: set[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in found), None)


FINDERS: dict[str, Callable[[set[str], str | None], Layout | None]] = {
    "prompt": _prompt,
    "pair": _pair,
    "arena": _arena,
    "kumite": _kumite,
    "labelled": _labelled,
    "completion": _completion,
    "conversation": _conversation,
}
FORMATS = {1: ("kumite", "labelled", "completion", "conversation"), 2: ("kumite", "arena", "pair")}
"""By G, in the order in which they are looked for."""
WORDS = {
    "pair": "chosen and rejected, with prompt (or instruction, question) or with the prompt at the start of both",
    "arena": "prompt, response_a, response_b and winner_model_a, winner_model_b, winner_tie",
    "kumite": "messages, given_answers and given_win_rates",
    "labelled": "prompt, completion and label (true or false)",
    "completion": "prompt (or instruction, question) and completion (or output, response, answer)",
    "conversation": "messages or conversations, whose last turn is the answer",
}
_NEEDS = {
    0: "prompts",
    1: "one answer per prompt, a demonstration or one with a label",
    2: "preferences, two answers per prompt",
}
