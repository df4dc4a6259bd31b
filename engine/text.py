"""Make text of unknown origin (model answers, prompts) safe to display.

A model may write terminal escape sequences, carriage returns that overwrite a line, or bidirectional marks that reorder
what a reader sees ("Trojan source", CVE-2021-42574). `printable` turns each into a visible code. For display only: text
that is stored, scored or trained on is never changed.
"""

from __future__ import annotations

import re
from html import escape
from typing import Literal

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls except tab and newline; ESC and CSI start terminal commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible; joiners stay, emoji need them
    "\ud800-\udfff"  # surrogates, which cannot be encoded as UTF-8
    "\U000e0000-\U000e007f"  # tags, an invisible copy of ASCII
    "]"
)
_UNSAFE_OR_BREAK = re.compile(_UNSAFE.pattern[:-1] + "\t\n]")


def _code(match: re.Match[str]) -> str:
    """The Python escape of the matched character: \\n, \\x1b, \\u202e or \\U000e0041."""
    return match.group().encode("unicode_escape", "surrogatepass").decode("ascii")


def printable(text: str, newlines: Literal["keep", "show"] = "keep") -> str:
    """Return `text` with control, escape, bidirectional and invisible characters as visible codes.

    newlines: keep tabs and line feeds, or show them as codes too, so that the text is one line. A code that is already
    spelt in the text, like a backslash followed by n, stays as it is.
    """
    return (_UNSAFE if newlines == "keep" else _UNSAFE_OR_BREAK).sub(_code, text)


def html(text: str, newlines: Literal["keep", "show"] = "keep") -> str:
    """Return `printable(text)` escaped for HTML, as element content or in a quoted attribute."""
    return escape(printable(text, newlines), quote=True)


def markdown(text: str) -> str:
    """Return `text` as one line of Markdown in which no character is markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~$])", r"\\\1", printable(text, newlines="show"))


def markdown_block(text: str) -> str:
    """Return `text` as a code block whose fence is longer than any run of backticks in it, so it cannot end there."""
    text = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
