"""Stream rows from JSONL, JSON, CSV, Parquet and Arrow files and from data sets of the Hugging Face hub.

Each row arrives as the file holds it, or as a `BadRow` that says where and why. Memory stays bounded by one
row of at most MAX_ROW_BYTES (or one batch of a columnar file). Where the structure of a whole file is lost,
DataError ends the stream, because every row after that point would be a guess.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from engine.errors import DataError

MAX_ROW_BYTES = 10 * 2**20
"""A longer line, JSON element or text is a mistake or an attack, not a prompt."""
BATCH_ROWS = 256
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".arrow")


@dataclass(frozen=True)
class Row:
    where: str
    """`file:line` in JSONL, `file:row` elsewhere; both count from 1."""
    value: Any
    """A dict by column, or a string (JSON and JSONL)."""


@dataclass(frozen=True)
class BadRow:
    where: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """The columns of one source that are worth reading."""

    needed: tuple[str, ...]
    """Each is there, and holds text or lists."""
    also: tuple[str, ...] = ()
    """Text, numbers or lists, read where present."""


class Columns(Protocol):
    """Whoever knows what to look for; engine.data.formats.Layouts is one."""

    def of(self, found: Sequence[str], source: str) -> Wanted:
        """Return what to read of a source with the columns `found`. Raises DataError where that is nothing."""
        ...


def read_rows(source: str, split: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Stream the rows of a file (by its suffix), or of a hub id or local data-set folder (by `split`).

    Raises DataError for a file that is missing, empty, damaged or of an unknown kind, and for a
    columnar file that `columns` finds nothing in; keys of JSON objects are left to the caller.
    """
    path = Path(source)
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if path.is_dir() or (suffix is None and not path.exists()):
        return _hub_rows(source, split, columns)
    if suffix is None:
        raise DataError(f"{source}: unknown kind of file {path.suffix or 'without suffix'!r}; expected {_LIST}")
    if not path.is_file():
        raise DataError(f"{source}: no such file (in {Path.cwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{source}: the file is empty; expected at least one row")
    if suffix in (".jsonl", ".jsonl.gz"):
        return _jsonl_rows(source)
    if suffix == ".json":
        return _json_rows(source)
    return {".csv": _csv_rows, ".parquet": _parquet_rows, ".arrow": _arrow_rows}[suffix](source, columns)


_LIST = ", ".join(SUFFIXES)


def _parse(where: str, text: str) -> Row | BadRow:
    """One JSON value, which must be an object or a string."""
    try:
        value = json.loads(text)
    except RecursionError:
        return BadRow(where, "nested too deeply")
    except ValueError as error:  # also integers of more than 4300 digits
        return BadRow(where, f"not valid JSON ({error})")
    if isinstance(value, dict | str):
        return Row(where, value)
    return BadRow(where, f"holds {kind(value)}; expected an object or a string")


def kind(value: object) -> str:
    """Return what `value` is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _jsonl_rows(source: str) -> Iterator[Row | BadRow]:
    """One JSON value per line; empty lines are skipped, as everywhere in the field."""
    try:
        with gzip.open(source) if source.lower().endswith(".gz") else Path(source).open("rb") as file:
            for number, line in _lines(file):
                where = f"{source}:{number}"
                if line is None:
                    yield BadRow(where, f"the line is longer than {MAX_ROW_BYTES} bytes")
                elif line.strip():
                    yield _parse_bytes(where, line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source}: damaged gzip file ({error})") from error


def _lines(file: gzip.GzipFile | IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without a byte-order mark; None for one beyond MAX_ROW_BYTES, which is skipped over."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES)
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _parse_bytes(where: str, line: bytes) -> Row | BadRow:
    try:
        return _parse(where, line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(where, f"not valid UTF-8 (byte {error.start + 1} of the line)")


def _json_rows(source: str) -> Iterator[Row | BadRow]:
    """The elements of one JSON list, each parsed by itself, so that a bad one costs only itself."""
    # surrogateescape turns bytes that are no UTF-8 into lone surrogates, which no prompt may hold.
    with Path(source).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, element in enumerate(elements(file, source, MAX_ROW_BYTES), start=1):
            where = f"{source}:{number}"
            if element is None:
                yield BadRow(where, f"longer than {MAX_ROW_BYTES} characters")
            else:
                yield _parse(where, element)


def _csv_rows(source: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Records of a comma-separated file with a header, quoted as RFC 4180 says."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # 128 KiB unless raised, for the whole process
    with Path(source).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_csv_lines(file, source), strict=True)
        number = 0
        try:
            header = next(reader, [])
            for name in columns.of(header, source).needed:
                if header.count(name) > 1:
                    raise DataError(f"{source}: has {header.count(name)} columns named {name}; expected one")
            for fields in filter(None, reader):  # an empty line is no record
                number += 1
                if len(fields) == len(header):
                    yield Row(f"{source}:{number}", dict(zip(header, fields, strict=True)))
                else:
                    yield BadRow(f"{source}:{number}", f"{len(fields)} fields where the header has {len(header)}")
        except csv.Error as error:
            raise DataError(
                f"{source}:{number + 1}: {error} (line {reader.line_num}); no row after it can be trusted"
            ) from error


def _csv_lines(file: IO[str], source: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise DataError(f"{source}: line {number} is longer than {MAX_ROW_BYTES} characters")
        yield line


def _parquet_rows(source: str, columns: Columns) -> Iterator[Row | BadRow]:
    import pyarrow.parquet as pq

    with _damage(source), pq.ParquetFile(source) as file:
        names = _readable(file.schema_arrow, columns, source)
        yield from _batch_rows(source, file.iter_batches(BATCH_ROWS, columns=names), names)


def _arrow_rows(source: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Arrow IPC, as a file (which starts with ARROW1) or as a stream."""
    with _damage(source), pa.memory_map(source) as mapped:
        if mapped.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            mapped.seek(0)
            reader = pa.ipc.open_stream(mapped)
            batches = iter(reader)
        names = _readable(reader.schema, columns, source)
        yield from _batch_rows(source, batches, names)


def _hub_rows(source: str, split: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A data set of the hub or a local folder of data files. Never runs code that comes with the data."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(f"{source}: no such file (in {Path.cwd()}), and not a hub id; expected {_LIST}")
    from datasets import load_dataset

    try:
        data = load_dataset(source, split=split)
    except Exception as error:  # datasets and its transports raise dozens of types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: neither a file nor a data set that loads with prompts.split = {split!r}: {reason[0]}"
        ) from error
    names = _readable(data.features.arrow_schema, columns, source)
    with _damage(source):
        batches = data.select_columns(names).with_format("arrow").iter(BATCH_ROWS)
        yield from _batch_rows(f"{source}[{split}]", batches, names)


@contextmanager
def _damage(source: str) -> Iterator[None]:
    """Turn Arrow's errors, and values without a Python form, into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{source}: cannot be read as the {Path(source).suffix} file it is named: {error}") from error


def _readable(schema: pa.Schema, columns: Columns, source: str) -> list[str]:
    """Names of the columns to read. Extension types, which may carry code or pickles, are never built."""
    wanted = columns.of(schema.names, source)
    for name in wanted.needed:
        if (many := schema.names.count(name)) > 1:
            raise DataError(f"{source}: has {many} columns named {name}; expected one")
        found = schema.field(name).type
        if not _is_text(found) and not (pa.types.is_nested(found) and _is_plain(found)):
            raise DataError(f"{source}: column {name} holds {found}; expected text or lists of chat messages")
    once = (name for name in wanted.also if schema.names.count(name) == 1)
    return [*wanted.needed, *(name for name in once if _is_plain(schema.field(name).type))]


def _is_plain(of: pa.DataType) -> bool:
    """Whether values of this type are Python's own, at any depth."""
    parts = [of.field(i).type for i in range(of.num_fields)] if pa.types.is_nested(of) else []
    return not isinstance(of, pa.BaseExtensionType) and all(map(_is_plain, parts))


def _is_text(of: pa.DataType) -> bool:
    of = of.value_type if pa.types.is_dictionary(of) else of
    return any((pa.types.is_string(of), pa.types.is_large_string(of), pa.types.is_string_view(of)))


def _batch_rows(where: str, batches: Iterable[pa.RecordBatch | pa.Table], names: list[str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        batch = batch.select(names)
        batch.validate(full=True)  # offsets of an untrusted file may point anywhere in memory
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for value in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                yield Row(f"{where}:{number}", value)


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
