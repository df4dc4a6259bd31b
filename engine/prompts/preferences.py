"""What a row means that brings answers along: pairs, battles, labels and demonstrations, each with its prompt.

Every format (see layouts.py) becomes a Prompt with G answers, chosen before rejected, and what the data
set says of each as a win rate: 1 and 0 for a plain label, 1/2 for a tie, or the data set's own
probabilities. Texts are passed on unchanged. Knows nothing of files, tokenizers or policies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from engine.prompts.conversations import (
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
from engine.prompts.files import BadRow, Row, kind
from engine.prompts.layouts import WINNERS, Layout
from engine.prompts.shared import difference, split_texts, transcript
from engine.prompts.verdicts import label_of, number_of, rates_of_pair

Given = tuple[list[Message], list[str], list[float], list[str]]
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


def _pair(row: dict[str, Any], layout: Layout) -> Given:
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


def _arena(row: dict[str, Any], layout: Layout) -> Given:
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


def _kumite(row: dict[str, Any], layout: Layout) -> Given:
    """A row of our own PROMPTS, or of a table made from one."""
    messages, notes = conversation_of(row, layout.prompt or "messages")
    answers, rates = row["given_answers"], row.get("given_win_rates")
    if not isinstance(answers, list) or not isinstance(rates, list) or len(answers) != len(rates):
        raise Unusable("given_answers and given_win_rates are not two lists of the same length")
    return messages, answers, [_required(rate, "given_win_rates") for rate in rates], notes


def _labelled(row: dict[str, Any], layout: Layout) -> Given:
    """One answer that was liked or not."""
    messages, answers, _, notes = _completion(row, layout)
    return messages, answers, [float(label_of(row.get("label"), "label"))], notes


def _completion(row: dict[str, Any], layout: Layout) -> Given:
    messages, notes = conversation_of(row, layout.prompt or "prompt")
    before, answer = _side(row[layout.answers[0]], layout.answers[0])
    return _agreed(messages, before, before), [answer], [1.0], notes


def _conversation(row: dict[str, Any], layout: Layout) -> Given:
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


READERS: dict[str, Callable[[dict[str, Any], Layout], Given]] = {
    "pair": _pair,
    "arena": _arena,
    "kumite": _kumite,
    "labelled": _labelled,
    "completion": _completion,
    "conversation": _conversation,
}
