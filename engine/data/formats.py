"""The formats of data sets that bring answers along, recognised by their column names.

    format          answers per row    columns
    ------          ---------------    -------
    pair            2                  chosen, rejected; the prompt in a column of its own or at the start of both
    arena           2                  prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie
    kumite          1 or 2             messages, given_answers, given_win_rates: our own tables
    labelled        1                  prompt, completion, label
    completion      1                  prompt, completion (Alpaca: instruction, output)
    conversation    1                  messages or conversations; the last turn is the answer

Every format becomes a Prompt with G answers, chosen before rejected, and what the data set says of each as a
win rate: 1 and 0 for a plain label, 1/2 for a tie, or the data set's own probabilities. Texts are unchanged.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from engine.data.chats import (
    SYSTEM_COLUMNS,
    Message,
    Prompt,
    Unusable,
    asking,
    conversation_of,
    text_of,
    turns_of,
    user_turn,
    with_system,
)
from engine.data.rows import BadRow, Row, Wanted, kind
from engine.errors import DataError
from engine.text import printable

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


Found = tuple[list[Message], list[str], list[float], list[str]]
"""Prompt, answers, win rates, and the declared rules that applied."""


def to_given(row: Row, layout: Layout) -> Prompt | BadRow:
    """Return the prompt of a row with its answers, or why it has none."""
    try:
        if not isinstance(row.value, dict):
            raise Unusable(f"holds {kind(row.value)}; expected an object with {', '.join(layout.answers)}")
        for name in (layout.prompt, *layout.answers):
            if name and row.value.get(name) is None:
                raise Unusable(f"no {name}; found: {', '.join(list(row.value)[:10]) or 'nothing'}")
        messages, answers, win_rates, notes = READERS[layout.format](row.value, layout)
        for name, answer in zip(layout.answers * len(answers), answers, strict=False):
            if not text_of(answer, name).strip():
                raise Unusable(f"{name} is empty; expected an answer")
        return Prompt(row.where, messages, tuple(notes), tuple(answers), tuple(win_rates))
    except Unusable as error:
        return BadRow(row.where, str(error))


def _read_pair(row: dict[str, Any], layout: Layout) -> Found:
    """Two completions of a prompt, or two conversations that begin with it; both at once have to agree."""
    sides: list[Any] = [row[name] for name in layout.answers]
    notes: list[str] = []
    if [isinstance(side, str) for side in sides].count(True) == 1:
        raise Unusable(f"chosen holds {kind(sides[0])} and rejected {kind(sides[1])}; expected the same of both")
    stated: list[Message] = []
    if layout.prompt:
        stated, notes = conversation_of(row, layout.prompt)
    if all(isinstance(side, str) for side in sides) and not layout.prompt:
        if all(transcript(side) for side in sides):
            sides, notes = [transcript(side) for side in sides], [*notes, "transcripts"]
        else:
            text, *answers = split_texts(*sides)
            messages = with_system(row, [user_turn(text)], "chosen", notes)
            return messages, answers, rates_of_pair(row, answers, notes), notes
    parts = [_side(side, name) for side, name in zip(sides, layout.answers, strict=True)]
    messages = _agreed(stated, *(before for before, _ in parts))
    if not layout.prompt:
        messages = with_system(row, messages, "chosen", notes)
    answers = [answer for _, answer in parts]
    return messages, answers, rates_of_pair(row, answers, notes), notes


def _side(value: Any, name: str) -> tuple[list[Message], str]:
    """The turns before an answer, none where `value` is the answer alone, and the answer."""
    if isinstance(value, str):
        return [], value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(f"{name} holds {kind(value)}; expected text or a list of messages")
    turns = turns_of(value, name)
    if not turns or turns[-1]["role"] != "assistant":
        end = f"ends with a {turns[-1]['role']} turn" if turns else "is an empty list"
        raise Unusable(f"{name} {end}; expected the assistant's answer at its end")
    before = turns[:-1]
    return asking(before, name) if before else [], turns[-1]["content"]


def _agreed(stated: list[Message], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The one prompt of a pair. Raises Unusable where there is none, or where its places say different things."""
    if chosen != rejected:
        raise Unusable(f"the prompts of chosen and rejected differ: {difference(chosen, rejected)}")
    if not chosen:
        if not stated:
            raise Unusable("no prompt: chosen and rejected hold answers alone, and there is no column with the prompt")
        return stated
    if not stated:
        return chosen
    # A prompt column holds the only question, the first one (UltraChat) or the last one, at times trimmed.
    system = [m for m in stated if m["role"] == "system" and chosen[0]["role"] != "system"]
    asked = [m["content"].strip() for m in stated if m["role"] != "system"]
    turns = [m["content"].strip() for m in chosen if m["role"] != "system"]
    questions = [m["content"].strip() for m in chosen if m["role"] == "user"]
    if asked == turns or (len(asked) == 1 and asked[0] in (questions[:1] + questions[-1:])):
        return [*system, *chosen]
    raise Unusable(f"the prompt column and the conversations differ: {difference(stated, chosen)}")


def _read_arena(row: dict[str, Any], layout: Layout) -> Found:
    """A battle of Chatbot Arena: JSON lists of turns, and a verdict on the whole conversation.

    The sides of a longer conversation answer different histories. Only where all answers but the last are
    the same is there one prompt for both; else the first turn stands for the conversation ("first_turn").
    """
    names = (layout.prompt or "prompt", *layout.answers)
    questions, first, second = (_json_turns(row[name], name) for name in names)
    if not len(questions) == len(first) == len(second):
        counts = f"{len(questions)}, {len(first)} and {len(second)}"
        raise Unusable(f"{', '.join(names)} hold {counts} turns; expected the same number")
    notes: list[str] = []
    turns = len(questions)
    if turns > 1 and first[:-1] != second[:-1]:
        turns, notes = 1, ["first_turn"]
    messages = [user_turn(text_of(questions[0], f"{names[0]}[0]"))]
    for i in range(1, turns):
        messages.append({"role": "assistant", "content": text_of(first[i - 1], f"{names[1]}[{i - 1}]")})
        messages.append(user_turn(text_of(questions[i], f"{names[0]}[{i}]")))
    last = turns - 1
    answers = [text_of(first[last], f"{names[1]}[{last}]"), text_of(second[last], f"{names[2]}[{last}]")]
    winner = _winner(row)
    if winner is None:
        return messages, answers, [0.5, 0.5], [*notes, "ties"]
    return messages, [answers[winner], answers[1 - winner]], [1.0, 0.0], notes


def _winner(row: dict[str, Any]) -> int | None:
    """0 for response_a, 1 for response_b, None for a tie."""
    won = [label_of(row.get(name), name) for name in WINNERS]
    if sum(won) != 1:
        raise Unusable(f"{', '.join(WINNERS)} are {[int(one) for one in won]}; expected exactly one 1")
    return None if won[2] else won.index(True)


def _json_turns(value: Any, name: str) -> list[Any]:
    try:
        turns = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{name} is not a JSON list of turns ({error})") from error
    if not isinstance(turns, list) or not turns:
        raise Unusable(f"{name} holds {kind(turns)}; expected a JSON list with at least one turn")
    return turns


def _read_kumite(row: dict[str, Any], layout: Layout) -> Found:
    """A row of our own PROMPTS, or of a table made from one."""
    messages, notes = conversation_of(row, layout.prompt or "messages")
    answers, rates = row["given_answers"], row.get("given_win_rates")
    if not isinstance(answers, list) or not isinstance(rates, list) or len(answers) != len(rates):
        raise Unusable("given_answers and given_win_rates are not two lists of the same length")
    return messages, answers, [_required(rate, "given_win_rates") for rate in rates], notes


def _read_labelled(row: dict[str, Any], layout: Layout) -> Found:
    """One answer that was liked or not."""
    messages, answers, _, notes = _read_completion(row, layout)
    return messages, answers, [float(label_of(row.get("label"), "label"))], notes


def _read_completion(row: dict[str, Any], layout: Layout) -> Found:
    messages, notes = conversation_of(row, layout.prompt or "prompt")
    before, answer = _side(row[layout.answers[0]], layout.answers[0])
    return _agreed(messages, before, before), [answer], [1.0], notes


def _read_conversation(row: dict[str, Any], layout: Layout) -> Found:
    """A conversation whose last turn is the answer."""
    name, notes = layout.answers[0], list[str]()
    if not isinstance(row[name], list):
        raise Unusable(f"{name} holds {kind(row[name])}; expected a list of messages")
    before, answer = _side(row[name], name)
    if not before:
        raise Unusable(f"{name} holds an answer without a question before it")
    return with_system(row, before, name, notes), [answer], [1.0], notes


def _required(value: Any, name: str) -> float:
    number = number_of(value, name, 0.0, 1.0)
    if number is None:
        raise Unusable(f"{name} holds null; expected a number from 0 to 1")
    return number


READERS: dict[str, Callable[[dict[str, Any], Layout], Found]] = {
    "pair": _read_pair,
    "arena": _read_arena,
    "kumite": _read_kumite,
    "labelled": _read_labelled,
    "completion": _read_completion,
    "conversation": _read_conversation,
}


_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def rates_of_pair(row: dict[str, Any], answers: list[str], notes: list[str]) -> list[float]:
    """Return [chosen, rejected] in [0, 1], and add to `notes` the rules that applied.

    The first that the row has: SPPO's chosen_probs_win and chosen_probs_lose, each the mean over all K answers;
    chosen_probs, the probability that chosen beats rejected; UltraFeedback's score_chosen and score_rejected;
    Snorkel's all_rm_scores, where the answers are among all_generated_responses; else 1 and 0.
    Equal scores are a tie. Probabilities are kept as they are, also where they favour the rejected answer: the data
    set's choice trains, and `soft_labels` reads how sure it was. Raises Unusable for numbers out of range, and for
    scores that contradict "chosen".
    """
    win, lose = (number_of(row.get(f"chosen_probs_{end}"), f"chosen_probs_{end}", 0.0, 1.0) for end in ("win", "lose"))
    if win is not None and lose is not None:
        return [win, lose]
    if win is not None or lose is not None:
        raise Unusable("one of chosen_probs_win and chosen_probs_lose is missing; expected both or none")
    if (beats := number_of(row.get("chosen_probs"), "chosen_probs", 0.0, 1.0)) is not None:
        return [beats, 1.0 - beats]
    names = ("score_chosen", "score_rejected")
    scores = [number_of(row.get(name), name) for name in names]
    if scores == [None, None]:
        names, scores = ("the score of chosen", "the score of rejected"), _reward_scores(row, answers, notes)
    high, low = scores
    if (high is None) != (low is None):
        raise Unusable(f"one of {' and '.join(names)} is missing; expected both or none")
    if high is None or low is None:
        return [1.0, 0.0]
    if high < low:
        raise Unusable(
            f"{names[0]} = {high:g} is below {names[1]} = {low:g}; expected the chosen answer's to be higher"
        )
    notes += ["ties"] * (high == low)
    return [0.5, 0.5] if high == low else [1.0, 0.0]


def _reward_scores(row: dict[str, Any], answers: list[str], notes: list[str]) -> list[float | None]:
    """Scores of both answers among all that were sampled; none, and a note, where a text is not among them."""
    texts, numbers = row.get("all_generated_responses"), row.get("all_rm_scores")
    if texts is None or numbers is None:
        return [None, None]
    if not isinstance(texts, list) or not isinstance(numbers, list) or len(texts) != len(numbers):
        raise Unusable("all_generated_responses and all_rm_scores are not two lists of the same length")
    scores = [number_of(number, f"all_rm_scores[{i}]") for i, number in enumerate(numbers)]
    if not all(answer in texts for answer in answers):
        notes.append("scores_without_answer")
        return [None, None]
    return [scores[texts.index(answer)] for answer in answers]


def number_of(value: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
    """Return a finite number within [least, most]; None for null or an empty field. Raises Unusable otherwise."""
    if value is None or value == "":
        return None
    bounds = "a finite number" if math.isinf(least) else f"a number from {least:g} to {most:g}"
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not least <= number <= most:
        raise Unusable(f"{name} holds {repr(value)[:40]}; expected {bounds}")
    return number


def label_of(value: Any, name: str) -> bool:
    """Return true or false from a boolean, 1 or 0, or these as text. Raises Unusable otherwise."""
    label = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if label is None:
        raise Unusable(f"{name} holds {repr(value)[:40]}; expected true or false, 1 or 0")
    return label


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
SHOWN = 30
"""Characters of a text that an error shows on each side of the difference."""


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return (prompt, chosen, rejected) of two whole texts: the prompt is what they share, in whole words.

    As TRL's extract_prompt, which cuts at the first character that differs and leaves a space to the
    answers; but two answers that begin with the same letters keep them ("cat" and "car" part before the c).
    Raises Unusable where nothing is shared.
    """
    shared = chosen[: _num_shared(chosen, rejected)]
    cut = len(shared) - len(re.split(r"\s", shared)[-1])
    cut -= chosen[cut - 1 : cut] == " "
    if not chosen[:cut].strip():
        raise Unusable("chosen and rejected share no beginning that could be the prompt, and no column holds one")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _num_shared(first: str, second: str) -> int:
    """Characters that both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def transcript(text: str) -> list[Message]:
    """Return the turns of a text in HH-RLHF's form ("\\n\\nHuman: ...\\n\\nAssistant: ..."); [] for any other text."""
    lead, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[who], "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    both = {turn["role"] for turn in turns} == {"user", "assistant"}
    return turns if both and not lead.strip() else []


def difference(first: list[Message], second: list[Message]) -> str:
    """Where two conversations part, in words, with a little of both."""
    for number, (one, other) in enumerate(zip_longest(first, second), start=1):
        if one == other:
            continue
        if one is None or other is None:
            return f"one has {len(first)} turns, the other {len(second)}"
        if one["role"] != other["role"]:
            return f"turn {number} is the {one['role']}'s in one, the {other['role']}'s in the other"
        at = _num_shared(one["content"], other["content"])
        start = max(0, at - SHOWN)
        shown = (repr(turn["content"][start : at + SHOWN]) for turn in (one, other))
        return f"turn {number} at character {at + 1}: {' and '.join(shown)}"
    return "they are the same"
