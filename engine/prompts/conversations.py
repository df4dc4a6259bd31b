"""What a row of a prompt file means as a conversation: the conventions of the field, and its refusals.

Knows Alpaca, ShareGPT and chat rows, and nothing of files, tokenizers or policies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.prompts.files import MAX_ROW_BYTES, BadRow, Row, kind

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
    """Declared rules that applied: "joined_input", "added_system", "dropped_answer"."""


class _Unusable(Exception):
    """Why a row holds no prompt."""


def to_prompt(row: Row, column: str | None) -> Prompt | BadRow:
    """Return the conversation in `column` of the row, or why there is none.

    Text becomes one user message; in Alpaca's `instruction` the row's `input` follows on the next line.
    Chat is a list of {role, content} or ShareGPT's {from, value}; assistant turns at its end are dropped,
    since answering is the policy's work. A system column comes first. No text is changed.
    """
    try:
        if isinstance(row.value, str):
            return Prompt(row.where, [_user(row.value)])
        if column is None or column not in row.value:
            names = ", ".join(list(row.value)[:10])
            raise _Unusable(f"no {column or 'column with a prompt'}; found: {names or 'nothing'}")
        messages, notes = _conversation(row.value, column)
        return Prompt(row.where, messages, tuple(notes))
    except _Unusable as error:
        return BadRow(row.where, str(error))


def _conversation(row: dict[str, Any], column: str) -> tuple[list[Message], list[str]]:
    value = row[column]
    notes: list[str] = []
    if isinstance(value, list):
        messages = _turns(value, column, notes)
    else:
        text = _text(value, column)
        extra = row.get("input") if column == "instruction" else None
        if isinstance(extra, str) and extra:
            text, notes = f"{text}\n{_text(extra, 'input')}", ["joined_input"]
        messages = [_user(text)]
    system = next((s for name in SYSTEM_COLUMNS if isinstance(s := row.get(name), str) and s), None)
    if system and column not in SYSTEM_COLUMNS:
        if messages[0]["role"] == "system":
            raise _Unusable(f"a system message in {column} and another in its own column")
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
        notes.append("added_system")
    return messages, notes


def _turns(turns: list[Any], column: str, notes: list[str]) -> list[Message]:
    """The messages up to the last one that asks for an answer."""
    messages = [_message(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]
    if messages and messages[-1]["role"] == "assistant":
        notes.append("dropped_answer")
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    if not messages:
        raise _Unusable(f"{column} holds {'only assistant turns' if turns else 'an empty list'}; expected a user turn")
    last = messages[-1]
    if last["role"] == "system":
        raise _Unusable(f"{column} ends with a system message; expected a user turn")
    return messages if last["role"] == "tool" else [*messages[:-1], _user(last["content"])]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise _Unusable(f"{where} holds {kind(turn)}; expected an object with role and content")
    if turn.get("tool_calls"):
        raise _Unusable(f"{where} holds tool calls, which are not supported")
    if turn.get("role") is not None:
        name, content, allowed = turn["role"], turn.get("content"), {role: role for role in ROLES}
    elif turn.get("from") is not None:
        name, content, allowed = turn["from"], turn.get("value"), SHAREGPT_ROLES
    else:
        raise _Unusable(f"{where} has neither role and content nor from and value")
    if not isinstance(name, str) or name not in allowed:
        raise _Unusable(f"{where} has role {repr(name)[:40]}; expected {', '.join(allowed)}")
    return {"role": allowed[name], "content": _text(content, f"{where}.content")}


def _user(text: str) -> Message:
    if not _text(text, "the prompt").strip():
        raise _Unusable("the prompt is empty")
    return {"role": "user", "content": text}


def _text(value: Any, what: str) -> str:
    """Return `value` unchanged, or raise _Unusable where it is no text that every stage can hold."""
    if not isinstance(value, str):
        raise _Unusable(f"{what} holds {kind(value)}; expected text")
    if len(value) > MAX_ROW_BYTES:
        raise _Unusable(f"{what} is longer than {MAX_ROW_BYTES} characters")
    if "\0" in value:
        raise _Unusable(f"{what} holds a NUL character at position {value.index(chr(0)) + 1}")
    if half := _SURROGATE.search(value):
        raise _Unusable(
            f"{what} holds U+{ord(half.group()):04X} at position {half.start() + 1}: "
            f"half of a surrogate pair, or a byte that is not UTF-8"
        )
    return value
