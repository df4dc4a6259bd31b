"""Text of unknown origin (model answers, prompts), made safe to look at.

A model may write terminal escape sequences, carriage returns that overwrite a line, or bidirectional
marks that reorder what a reader sees ("Trojan source", CVE-2021-42574). Here each becomes a visible
code. For looking at only: nothing that is stored, scored or trained on passes through this module.
"""

from __future__ import annotations

import re
from html import escape
from typing import Literal

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls but tab and newline; ESC and CSI start terminal commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible; joiners stay, emoji need them
    "\ud800-\udfff"  # surrogates, which no file or terminal takes
    "\U000e0000-\U000e007f"  # tags: a whole invisible ASCII
    "]"
)
_UNSAFE_OR_BREAK = re.compile(_UNSAFE.pattern[:-1] + "\t\n]")


def _code(match: re.Match[str]) -> str:
    """Return the Python escape of the matched character: \\n, \\x1b, \\u202e or \\U000e0041."""
    return match.group().encode("unicode_escape", "surrogatepass").decode("ascii")


def printable(text: str, newlines: Literal["keep", "show"] = "keep") -> str:
    """Return `text` with control, escape, bidirectional and invisible characters as visible codes.

    newlines: keep tabs and line feeds as they are, or show them as codes too (one line for one text).
    A text that already spells a code, like a backslash followed by n, is left alone.
    """
    return (_UNSAFE if newlines == "keep" else _UNSAFE_OR_BREAK).sub(_code, text)


def html(text: str, newlines: Literal["keep", "show"] = "keep") -> str:
    """Return `printable(text)` for use in HTML, as element content or in a quoted attribute."""
    return escape(printable(text, newlines), quote=True)
