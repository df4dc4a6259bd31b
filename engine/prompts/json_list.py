"""The elements of one JSON list as a stream of texts, so that neither size nor one bad element matters.

json.load would need the whole file in memory, several times over, and would lose every row to one
syntax error. Knows brackets, strings and escapes, and nothing of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from engine.errors import DataError

CHUNK_CHARACTERS = 2**20
_STRUCTURE = re.compile(r'["\[\]{},]')
_STRING_END = re.compile(r'["\\]')


def elements(file: IO[str], source: str, limit: int) -> Iterator[str | None]:
    """Texts of the elements of the list in `file`, found by counting the brackets outside strings.

    Whether an element is valid is json.loads' to say. None stands for an element of more than `limit`
    characters, whose text is not kept. Raises DataError, naming `source`, where `file` is not one list.
    """
    kept: list[str] = []
    depth = size = number = 0
    closed = False
    for text, mark in _pieces(file):
        if depth == 0:
            _outside_the_list(text + mark, closed, source)
            depth = 1 if mark else 0
            continue
        ends = depth == 1 and mark in (",", "]")
        piece = text if ends else text + mark
        size += len(piece)
        if size > limit:
            kept.clear()
        else:
            kept.append(piece)
        if not ends:
            # A stray closing bracket must not end the list: its element is bad, the next one may be good.
            depth = max(1, depth + {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark, 0))
            continue
        element, kept = "".join(kept), []
        if size > limit or element.strip() or mark == "," or number:
            yield None if size > limit else element
        number, size, closed, depth = number + 1, 0, mark == "]", 0 if mark == "]" else 1
    if not closed:
        raise DataError(f"{source}: the JSON list is not closed; the file seems cut off after row {number}")


def _pieces(file: IO[str]) -> Iterator[tuple[str, str]]:
    """Cut a stream at the brackets and commas outside strings: (text before, mark), mark "" at a chunk's end."""
    in_string = escaped = False
    while chunk := file.read(CHUNK_CHARACTERS):
        start = position = 0
        while position < len(chunk):
            if escaped:
                position, escaped = position + 1, False
                continue
            match = (_STRING_END if in_string else _STRUCTURE).search(chunk, position)
            if match is None:
                break
            position, mark = match.end(), match.group()
            if mark == "\\":
                escaped = True
            elif mark == '"':
                in_string = not in_string
            else:
                yield chunk[start : position - 1], mark
                start = position
        yield chunk[start:], ""


def _outside_the_list(text: str, closed: bool, source: str) -> None:
    """Raise DataError unless `text` may stand before the list (or after it, where it is closed)."""
    text = text.strip()
    if closed and text:
        raise DataError(f"{source}: something follows the JSON list: {text[:40]!r}")
    if text not in ("", "["):
        hint = "; if it holds one object per line, name it .jsonl" if text.startswith("{") else ""
        raise DataError(f"{source}: starts with {text[:40]!r}; expected a JSON list of objects or strings{hint}")
