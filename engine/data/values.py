"""Values of a row, checked: text, numbers and labels. And what a row that cannot be used becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.text import printable

MAX_ROW_BYTES = 10 * 2**20
"""A longer line, JSON element or text is a mistake or an attack, not a prompt."""
MAX_SHOWN = 20
"""Refused rows that an error message lists; the others are counted."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be used."""

    where: str
    """`file:line` in JSONL, `file:row` elsewhere."""
    reason: str
    """What the row holds and what was expected. May quote the row, so control characters are shown as codes."""
    rule: str = "malformed"
    """The name under which such rows are counted; see engine.data.ingest.RULES."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason, "show"))


class RowError(Exception):
    """The current row cannot be used. Caught where its place is known, and turned into a RefusedRow."""

    def __init__(self, reason: str, rule: str = "malformed"):
        super().__init__(reason)
        self.reason, self.rule = reason, rule

    def at(self, where: str) -> RefusedRow:
        """Return the refused row, whose place is `where`."""
        return RefusedRow(where, self.reason, self.rule)


def list_refused(rows: Sequence[RefusedRow], count: int | None = None) -> str:
    """Return lines that name the first MAX_SHOWN of `rows`, and how many more of `count` (default: all) there are."""
    lines = [f"{row.where}: {row.reason}" for row in rows[:MAX_SHOWN]]
    more = (len(rows) if count is None else count) - len(lines)
    return "\n".join(f"  {line}" for line in [*lines, *([f"... and {more} more"] if more else [])])


def type_name(value: object) -> str:
    """Return the type of `value` in the words of JSON, with an article."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def text_of(value: Any, name: str) -> str:
    """Return `value` unchanged. Raises RowError if it is not text, or text that not every stage can hold."""
    if not isinstance(value, str):
        raise RowError(f"{name} holds {type_name(value)}; expected text")
    if len(value) > MAX_ROW_BYTES:
        raise RowError(f"{name} is longer than {MAX_ROW_BYTES} characters")
    if "\0" in value:
        raise RowError(f"{name} holds a NUL character at position {value.index(chr(0)) + 1}")
    if half := _SURROGATE.search(value):
        raise RowError(
            f"{name} holds U+{ord(half.group()):04X} at position {half.start() + 1}: "
            f"half of a surrogate pair, or a byte that is not UTF-8"
        )
    return value


def answer_of(value: Any, name: str) -> str:
    """Return `value` unchanged. Raises RowError if it is not text, or only white space."""
    if not text_of(value, name).strip():
        raise RowError(f"{name} is empty; expected an answer")
    return value


def number_of(value: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
    """Return a finite number in [least, most]; None for null or an empty field. Raises RowError otherwise."""
    if value is None or value == "":
        return None
    expected = "a finite number" if math.isinf(least) else f"a number from {least:g} to {most:g}"
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not least <= number <= most:
        raise RowError(f"{name} holds {repr(value)[:40]}; expected {expected}")
    return number


def label_of(value: Any, name: str) -> bool:
    """Return true or false from a boolean, 1 or 0, or one of these as text. Raises RowError otherwise."""
    label = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if label is None:
        raise RowError(f"{name} holds {repr(value)[:40]}; expected true or false, 1 or 0")
    return label
