"""What the files of benchmarks share: rows of objects that are read and checked together, lines of JSON, file names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from engine.data.rows import Columns, read_rows
from engine.data.values import RefusedRow, RowError, list_refused, type_name
from engine.errors import DataError

T = TypeVar("T")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.(?:json|jsonl|csv|parquet))")


def dataset_file(source: str, key: str) -> str:
    """`source` if there is such a file, else the download of ORG/NAME/FILE, a file of a data set on the hub.

    key: the config key, for messages. Raises DataError where the hub does not give it.
    """
    match = _HUB_FILE.fullmatch(source)
    if Path(source).exists() or match is None:
        return source
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(match[1], match[2], repo_type="dataset")
    except Exception as error:  # the hub's client, its HTTP library and the disk each raise errors of their own
        raise DataError(
            f"{key} = {source}: no such file in {Path.cwd()}, and the download from the hub failed "
            f"({type(error).__name__}: {error}); download it where there is access "
            f"(hf download {match[1]} {match[2]} --repo-type dataset) and name the file"
        ) from error


def shown(source: str) -> str:
    """A file by its name, and a hub id as it is."""
    return Path(source).name if source.startswith(("/", ".", "~")) or Path(source).exists() else source


def read_objects(
    source: str,
    parse: Callable[[dict[str, Any]], T],
    key: str,
    identity: Callable[[T], Hashable],
    split: str = "train",
) -> list[T]:
    """Every row of a file or data set of objects by `parse`, which raises RowError.

    identity: the row's `key`, different for every row. split: of a data set of the hub. Raises one DataError with all
    rows that cannot be used, and for a source without rows.
    """
    kept: dict[Hashable, T] = {}
    refused: list[RefusedRow] = []
    for row in read_rows(source, _every_column, split):
        if isinstance(row, RefusedRow):
            refused.append(row)
            continue
        try:
            if not isinstance(row.value, dict):
                raise RowError(f"holds {type_name(row.value)}; expected an object")
            value = parse(row.value)
            if identity(value) in kept:
                raise RowError(f"{key} {identity(value)} occurs a second time")
            kept[identity(value)] = value
        except RowError as error:
            refused.append(error.at(row.where))
    if refused:
        raise DataError(
            f"{source}: {len(refused)} of {len(refused) + len(kept)} rows cannot be used:\n{list_refused(refused)}"
        )
    if not kept:
        raise DataError(f"{source}: holds no rows; expected at least one object")
    return list(kept.values())


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object per line, in ASCII."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def quoted(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(text[:60]) + ("..." if len(text) > 60 else "")


def file_name(name: str) -> str:
    """`name` of a model or scorer as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _every_column(columns: Any, source: str) -> Columns:
    return Columns((), tuple(columns))
