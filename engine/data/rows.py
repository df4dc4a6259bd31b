"""Stream rows from JSONL, JSON, CSV, Parquet and Arrow files and from data sets of the Hugging Face hub.

Each row arrives as the file holds it, or as a RefusedRow with its place and the reason. Memory is bounded by one row
of at most MAX_ROW_BYTES, or one batch of a columnar file. If the structure of the file itself is damaged, DataError
ends the stream, because every row after that point would be a guess.

Text files are read here and not by `datasets` or pyarrow. At one invalid line these refuse the whole file; in a CSV,
pyarrow accepts a quote that is never closed, and `datasets` reads 001 as a number and NA as null.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from engine.data.values import MAX_ROW_BYTES, RefusedRow, RowError, type_name
from engine.errors import DataError

BATCH_ROWS = 256


@dataclass(frozen=True)
class Row:
    """One row of a file, by its place."""

    source: str
    number: int
    """From 1. The line in JSONL, the row elsewhere."""
    value: dict[str, Any] | str
    """By column; text only from JSON and JSONL."""

    @property
    def where(self) -> str:
        return f"{self.source}:{self.number}"


@dataclass(frozen=True)
class Columns:
    """The columns of one source to read."""

    required: tuple[str, ...]
    """Each exists, and holds text or lists."""
    optional: tuple[str, ...] = ()
    """Text, numbers or lists; read if they exist."""


SelectColumns = Callable[[Sequence[str], str], Columns]
"""(names of all columns of a source, the source) -> those to read. Raises DataError where the source lacks one."""


def select_by_name(text: Sequence[str], numbers: Sequence[str] = (), optional: Sequence[str] = ()) -> SelectColumns:
    """Return a selection of columns with fixed names, of which `text` and `numbers` must exist.

    Only files with a header or a schema are checked as a whole; whether a JSON row has its keys is the caller's check.
    """

    def select(columns: Sequence[str], source: str) -> Columns:
        if missing := [name for name in (*text, *numbers) if name not in columns]:
            raise DataError(f"{source}: no column {', '.join(missing)}; found: {', '.join(columns)}")
        return Columns(tuple(text), (*numbers, *optional))

    return select


def read_rows(source: str, select: SelectColumns, split: str = "train") -> Iterator[Row | RefusedRow]:
    """Stream the rows of a file (by its suffix), or of a hub id or local data-set folder (by `split`).

    Raises DataError for a file that is missing, empty, damaged or of an unknown type, and what `select` raises for
    the columns of CSV and columnar files. The keys of JSON objects are left to the caller.
    """
    path = Path(source)
    suffix = next((s for s in sorted(_READERS, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if path.is_dir() or (suffix is None and not path.exists()):
        return _hub_rows(source, select, split)
    if suffix is None:
        raise DataError(
            f"{source}: unknown kind of file {path.suffix or 'without suffix'!r}; expected {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise DataError(f"{source}: no such file (in {Path.cwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{source}: the file is empty; expected at least one row")
    return _READERS[suffix](source, select)


def _jsonl_rows(source: str, select: SelectColumns) -> Iterator[Row | RefusedRow]:
    """One JSON value per line. Empty lines are skipped, as in other readers of JSONL."""
    try:
        with gzip.open(source) if source.lower().endswith(".gz") else Path(source).open("rb") as file:
            for number, line in _lines(file):
                if line is None:
                    yield RefusedRow(f"{source}:{number}", f"the line is longer than {MAX_ROW_BYTES} bytes")
                elif line.strip():
                    yield _json_row(source, number, line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source}: damaged gzip file ({error})") from error


def _lines(file: gzip.GzipFile | IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without a byte-order mark; None for a line beyond MAX_ROW_BYTES, which is skipped."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES)
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _json_rows(source: str, select: SelectColumns) -> Iterator[Row | RefusedRow]:
    """The elements of one JSON list. Each is parsed by itself, so that a bad one costs only itself."""
    # surrogateescape turns bytes that are not UTF-8 into lone surrogates, which no prompt may hold.
    with Path(source).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, element in enumerate(elements(file, source, MAX_ROW_BYTES), start=1):
            if element is None:
                yield RefusedRow(f"{source}:{number}", f"longer than {MAX_ROW_BYTES} characters")
            else:
                yield _json_row(source, number, element)


def _json_row(source: str, number: int, text: str | bytes) -> Row | RefusedRow:
    try:
        return Row(source, number, _json_value(text))
    except RowError as error:
        return error.at(f"{source}:{number}")


def _json_value(text: str | bytes) -> dict[str, Any] | str:
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise RowError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise RowError(f"not valid UTF-8 (byte {error.start + 1} of the line)") from None
    except ValueError as error:  # also integers of more than 4300 digits
        raise RowError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict | str):
        raise RowError(f"holds {type_name(value)}; expected an object or a string")
    return value


def _csv_rows(source: str, select: SelectColumns) -> Iterator[Row | RefusedRow]:
    """Records of a comma-separated file with a header, quoted as in RFC 4180."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # 128 KiB by default; holds for the whole process
    with Path(source).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_csv_lines(file, source), strict=True)
        number = 0
        try:
            header = next(reader, [])
            _check_unique(header, select(header, source), source)
            for fields in filter(None, reader):  # an empty line is not a record
                number += 1
                if len(fields) == len(header):
                    yield Row(source, number, dict(zip(header, fields, strict=True)))
                else:
                    reason = f"{len(fields)} fields where the header has {len(header)}"
                    yield RefusedRow(f"{source}:{number}", reason)
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


def _parquet_rows(source: str, select: SelectColumns) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with _named_errors(source), pq.ParquetFile(source) as file:
        names = _selected(file.schema_arrow, select, source)
        yield from _batch_rows(source, file.iter_batches(BATCH_ROWS, columns=names), names)


def _arrow_rows(source: str, select: SelectColumns) -> Iterator[Row]:
    """Arrow IPC, as a file (which starts with ARROW1) or as a stream."""
    with _named_errors(source), pa.memory_map(source) as mapped:
        if mapped.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            mapped.seek(0)
            reader = pa.ipc.open_stream(mapped)
            batches = iter(reader)
        names = _selected(reader.schema, select, source)
        yield from _batch_rows(source, batches, names)


def _hub_rows(source: str, select: SelectColumns, split: str) -> Iterator[Row]:
    """A data set of the hub or a local folder of data files. Code that comes with the data is never run."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(f"{source}: no such file (in {Path.cwd()}), and not a hub id; expected {', '.join(_READERS)}")
    from datasets import load_dataset

    try:
        data = load_dataset(source, split=split)
    except Exception as error:  # datasets and its transports raise dozens of types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: neither a file nor a data set that loads with prompts.split = {split!r}: {reason[0]}"
        ) from error
    names = _selected(data.features.arrow_schema, select, source)
    with _named_errors(source):
        batches = data.select_columns(names).with_format("arrow").iter(BATCH_ROWS)
        yield from _batch_rows(f"{source}[{split}]", batches, names)


@contextmanager
def _named_errors(source: str) -> Iterator[None]:
    """Turn Arrow's errors, and values without a Python form, into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{source}: cannot be read as the {Path(source).suffix} file it is named: {error}") from error


def _selected(schema: pa.Schema, select: SelectColumns, source: str) -> list[str]:
    """Names of the columns to read. Extension types, which may carry code or pickles, are never built."""
    columns = select(schema.names, source)
    _check_unique(schema.names, columns, source)
    for name in columns.required:
        type = schema.field(name).type
        if not _is_text(type) and not (pa.types.is_nested(type) and _is_plain(type)):
            raise DataError(f"{source}: column {name} holds {type}; expected text or lists of chat messages")
    unique = (name for name in columns.optional if schema.names.count(name) == 1)
    return [*columns.required, *(name for name in unique if _is_plain(schema.field(name).type))]


def _check_unique(names: list[str], columns: Columns, source: str) -> None:
    for name in columns.required:
        if (count := names.count(name)) > 1:
            raise DataError(f"{source}: has {count} columns named {name}; expected one")


def _is_plain(type: pa.DataType) -> bool:
    """Whether values of this type are Python's own, at any depth."""
    parts = [type.field(i).type for i in range(type.num_fields)] if pa.types.is_nested(type) else []
    return not isinstance(type, pa.BaseExtensionType) and all(map(_is_plain, parts))


def _is_text(type: pa.DataType) -> bool:
    type = type.value_type if pa.types.is_dictionary(type) else type
    return any((pa.types.is_string(type), pa.types.is_large_string(type), pa.types.is_string_view(type)))


def _batch_rows(source: str, batches: Iterable[pa.RecordBatch | pa.Table], names: list[str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        batch = batch.select(names)
        batch.validate(full=True)  # offsets of an untrusted file may point anywhere in memory
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for value in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                yield Row(source, number, value)


_READERS: dict[str, Callable[[str, SelectColumns], Iterator[Row | RefusedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}

CHUNK_CHARACTERS = 2**20
_STRUCTURE = re.compile(r'["\[\]{},]')
_STRING_END = re.compile(r'["\\]')


def elements(file: IO[str], source: str, limit: int) -> Iterator[str | None]:
    """Yield the text of each element of the JSON list in `file`, found by counting the brackets outside strings.

    The texts are not parsed; json.loads decides whether each is valid. (A parser of JSON streams such as ijson stops
    at the first invalid element.) None stands for an element of more than `limit` characters, whose text is not kept.
    Raises DataError, naming `source`, if `file` does not hold one list.
    """
    kept: list[str] = []
    depth = size = number = 0
    closed = False
    for text, mark in _pieces(file):
        if depth == 0:
            _check_outside_list(text + mark, closed, source)
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
    """Split a stream at the brackets and commas outside strings into (text before, mark); "" marks a chunk's end."""
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


def _check_outside_list(text: str, closed: bool, source: str) -> None:
    """Raise DataError unless `text` is the list's opening bracket, or white space before or after the list."""
    text = text.strip()
    if closed and text:
        raise DataError(f"{source}: something follows the JSON list: {text[:40]!r}")
    if text not in ("", "["):
        hint = "; if it holds one object per line, name it .jsonl" if text.startswith("{") else ""
        raise DataError(f"{source}: starts with {text[:40]!r}; expected a JSON list of objects or strings{hint}")
