"""What a row of a prompt file means as a conversation: the conventions of the field, and its refusals.

Knows Alpaca, ShareGPT, LIMA and chat rows, and nothing of answers to train on, files, tokenizers or policies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.data.rows import MAX_ROW_BYTES, BadRow, Row, kind

Message = dict[str, str]
"""{"role": ..., "content": ...}"""

SYSTEM_COLUMNS = ("system", "system_prompt")
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompt:
    """One usable row."""

    where: str
    messages: list[Message]
    notes: tuple[str, ...] = ()
    """Declared rules that applied: "joined_input", "added_system", "dropped_answer" and those of preferences.py."""
    answers: tuple[str, ...] = ()
    """[G] what the data set answers, chosen before rejected."""
    win_rates: tuple[float, ...] = ()
    """[G] in [0, 1]: labels, or what the data set says of each answer."""


class Unusable(Exception):
    """Why a row cannot be used."""


def to_prompt(row: Row, column: str | None) -> Prompt | BadRow:
    """Return the conversation in `column` of the row, or why there is none.

    Text becomes one user message; in Alpaca's `instruction` the row's `input` follows on the next line.
    Chat is a list of {role, content} or ShareGPT's {from, value}; assistant turns at its end are dropped,
    since answering is the policy's work. A system column comes first. No text is changed.
    """
    try:
        if isinstance(row.value, str):
            return Prompt(row.where, [user_turn(row.value)])
        if column is None or column not in row.value:
            names = ", ".join(list(row.value)[:10])
            raise Unusable(f"no {column or 'column with a prompt'}; found: {names or 'nothing'}")
        messages, notes = conversation_of(row.value, column)
        return Prompt(row.where, messages, tuple(notes))
    except Unusable as error:
        return BadRow(row.where, str(error))


def conversation_of(row: dict[str, Any], column: str) -> tuple[list[Message], list[str]]:
    """Return the conversation that `column` asks to go on with, and the rules that applied. Raises Unusable."""
    value = row[column]
    notes: list[str] = []
    if isinstance(value, list):
        messages = _without_answer(turns_of(value, column), column, notes)
    else:
        text = text_of(value, column)
        extra = row.get("input") if column == "instruction" else None
        if isinstance(extra, str) and extra:
            text, notes = f"{text}\n{text_of(extra, 'input')}", ["joined_input"]
        messages = [user_turn(text)]
    return with_system(row, messages, column, notes), notes


def with_system(row: dict[str, Any], messages: list[Message], column: str, notes: list[str]) -> list[Message]:
    """Put the row's system column, where it has one, before `messages`. Raises Unusable where each has one."""
    system = next((s for name in SYSTEM_COLUMNS if isinstance(s := row.get(name), str) and s), None)
    if not system or column in SYSTEM_COLUMNS:
        return messages
    if messages[0]["role"] == "system":
        raise Unusable(f"a system message in {column} and another in its own column")
    notes.append("added_system")
    return [{"role": "system", "content": text_of(system, "system")}, *messages]


def turns_of(turns: list[Any], column: str) -> list[Message]:
    """Return the messages of a list of turns: {role, content}, ShareGPT's {from, value}, or LIMA's plain texts.

    Plain texts alternate, the user first, and are turns in a column `conversations` alone. Raises Unusable.
    """
    if column == "conversations" and turns and all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return [message_of(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]


def _without_answer(messages: list[Message], column: str, notes: list[str]) -> list[Message]:
    """The messages up to the last one that asks for an answer."""
    empty = not messages
    if messages and messages[-1]["role"] == "assistant":
        notes.append("dropped_answer")
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    if not messages:
        raise Unusable(f"{column} holds {'an empty list' if empty else 'only assistant turns'}; expected a user turn")
    return asking(messages, column)


def asking(messages: list[Message], column: str) -> list[Message]:
    """Return `messages` if their end asks for an answer. Raises Unusable otherwise."""
    last = messages[-1]
    if last["role"] == "assistant":
        raise Unusable(f"{column} holds two assistant turns in a row at its end; expected one answer")
    if last["role"] == "system":
        raise Unusable(f"{column} ends with a system message; expected a user turn")
    return messages if last["role"] == "tool" else [*messages[:-1], user_turn(last["content"])]


def message_of(turn: Any, where: str) -> Message:
    """Return one turn as {role, content}. Raises Unusable for unknown roles, tool calls and what is no text."""
    if not isinstance(turn, dict):
        raise Unusable(f"{where} holds {kind(turn)}; expected an object with role and content")
    if turn.get("tool_calls"):
        raise Unusable(f"{where} holds tool calls, which are not supported")
    if turn.get("role") is not None:
        name, content, allowed = turn["role"], turn.get("content"), {role: role for role in ROLES}
    elif turn.get("from") is not None:
        name, content, allowed = turn["from"], turn.get("value"), SHAREGPT_ROLES
    else:
        raise Unusable(f"{where} has neither role and content nor from and value")
    if not isinstance(name, str) or name not in allowed:
        raise Unusable(f"{where} has role {repr(name)[:40]}; expected {', '.join(allowed)}")
    return {"role": allowed[name], "content": text_of(content, f"{where}.content")}


def user_turn(text: str) -> Message:
    """Return `text` as a question. Raises Unusable where it is empty."""
    if not text_of(text, "the prompt").strip():
        raise Unusable("the prompt is empty")
    return {"role": "user", "content": text}


def text_of(value: Any, what: str) -> str:
    """Return `value` unchanged. Raises Unusable where it is no text that every stage can hold."""
    if not isinstance(value, str):
        raise Unusable(f"{what} holds {kind(value)}; expected text")
    if len(value) > MAX_ROW_BYTES:
        raise Unusable(f"{what} is longer than {MAX_ROW_BYTES} characters")
    if "\0" in value:
        raise Unusable(f"{what} holds a NUL character at position {value.index(chr(0)) + 1}")
    if half := _SURROGATE.search(value):
        raise Unusable(
            f"{what} holds U+{ord(half.group()):04X} at position {half.start() + 1}: "
            f"half of a surrogate pair, or a byte that is not UTF-8"
        )
    return value
