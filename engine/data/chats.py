"""A row as a conversation: plain text, Alpaca, ShareGPT, LIMA, and lists of chat messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.data.values import RowError, answer_of, text_of, type_name

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


@dataclass(frozen=True)
class Prompt:
    """One usable row."""

    where: str
    messages: list[Message]
    notes: tuple[str, ...] = ()
    """Rules that applied to this row and are counted: "joined_input", "added_system", "dropped_answer", "ties", ..."""
    answers: tuple[str, ...] = ()
    """[G] answers of the data set, chosen before rejected."""
    win_rates: tuple[float, ...] = ()
    """[G] in [0, 1]: the label of each answer, or the probability that it wins."""


def prompt_of(row: dict[str, Any], column: str, notes: list[str]) -> list[Message]:
    """Return the conversation in `column`, which an answer continues, and add the rules that applied to `notes`.

    Text becomes one user message; in Alpaca's `instruction` the row's `input` follows on the next line.
    Chat is a list of {role, content} or ShareGPT's {from, value}; assistant turns at its end are dropped, because
    the policy is to answer. A system column comes first. No text is changed. Raises RowError.
    """
    value = row[column]
    if isinstance(value, list):
        messages = _drop_answer(messages_of(value, column), column, notes)
    else:
        text = text_of(value, column)
        extra = row.get("input") if column == "instruction" else None
        if isinstance(extra, str) and extra:
            text = f"{text}\n{text_of(extra, 'input')}"
            notes.append("joined_input")
        messages = [user_message(text)]
    return add_system(row, messages, column, notes)


def add_system(row: dict[str, Any], messages: list[Message], column: str, notes: list[str]) -> list[Message]:
    """Return `messages` behind the text of the row's system column, if it has one.

    Raises RowError if the messages begin with a system message of their own.
    """
    system = next((text for name in SYSTEM_COLUMNS if isinstance(text := row.get(name), str) and text), None)
    if not system or column in SYSTEM_COLUMNS:
        return messages
    if messages[0]["role"] == "system":
        raise RowError(f"a system message in {column} and another in its own column; expected one")
    notes.append("added_system")
    return [{"role": "system", "content": text_of(system, "system")}, *messages]


def messages_of(turns: list[Any], column: str) -> list[Message]:
    """Return the messages of a list of turns: {role, content}, ShareGPT's {from, value}, or LIMA's plain texts.

    Plain texts are accepted in a column `conversations` only; they alternate, and the user begins. Raises RowError.
    """
    if column == "conversations" and turns and all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return [_message(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, where: str) -> Message:
    """One turn as {role, content}. Raises RowError for unknown roles, tool calls and content that is not text."""
    if not isinstance(turn, dict):
        raise RowError(f"{where} holds {type_name(turn)}; expected an object with role and content")
    if turn.get("tool_calls"):
        raise RowError(f"{where} holds tool calls, which are not supported")
    if turn.get("role") is not None:
        role, content, roles = turn["role"], turn.get("content"), {role: role for role in ROLES}
    elif turn.get("from") is not None:
        role, content, roles = turn["from"], turn.get("value"), SHAREGPT_ROLES
    else:
        raise RowError(f"{where} has neither role and content nor from and value")
    if not isinstance(role, str) or role not in roles:
        raise RowError(f"{where} has role {repr(role)[:40]}; expected {', '.join(roles)}")
    return {"role": roles[role], "content": text_of(content, f"{where}.content")}


def _drop_answer(messages: list[Message], column: str, notes: list[str]) -> list[Message]:
    """`messages` up to the last one that an answer follows."""
    is_empty = not messages
    if messages and messages[-1]["role"] == "assistant":
        notes.append("dropped_answer")
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    if not messages:
        content = "an empty list" if is_empty else "only assistant turns"
        raise RowError(f"{column} holds {content}; expected a user turn")
    return _check_question(messages, column)


def _check_question(messages: list[Message], column: str) -> list[Message]:
    """`messages`. Raises RowError unless they end with a question, or with the output of a tool."""
    last = messages[-1]
    if last["role"] == "assistant":
        raise RowError(f"{column} holds two assistant turns in a row at its end; expected one answer")
    if last["role"] == "system":
        raise RowError(f"{column} ends with a system message; expected a user turn")
    return messages if last["role"] == "tool" else [*messages[:-1], user_message(last["content"])]


def split_answer(value: Any, name: str) -> tuple[list[Message], str]:
    """Return the messages before an answer ([] where `value` is the answer alone), and the answer.

    `value` is text, one message, or a list of turns that ends with the assistant's. Raises RowError.
    """
    if isinstance(value, str):
        return [], answer_of(value, name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{name} holds {type_name(value)}; expected text or a list of messages")
    messages = messages_of(value, name)
    if not messages or messages[-1]["role"] != "assistant":
        end = f"ends with a {messages[-1]['role']} turn" if messages else "is an empty list"
        raise RowError(f"{name} {end}; expected the assistant's answer at its end")
    prompt, answer = messages[:-1], answer_of(messages[-1]["content"], name)
    return _check_question(prompt, name) if prompt else [], answer


def user_message(text: str) -> Message:
    """Return `text` as a user message. Raises RowError if it is not text, or only white space."""
    if not text_of(text, "the prompt").strip():
        raise RowError("the prompt is empty")
    return {"role": "user", "content": text}
