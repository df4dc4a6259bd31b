"""What the commands that make models and data share: options from a dataclass, errors, and outputs kept as they are.

A command is a function from settings to figures. Its options are the fields of its Settings: the name with
dashes, the type, the default, and the docstring below the field as the help text. Errors that are meant for
people go to stderr as `error: ...`, and the exit code is the error's.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from engine.errors import DataError, KumiteError
from engine.store.disk import write_atomically

Settings = TypeVar("Settings")


def new_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, which shows the module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def settings_from(
    parser: argparse.ArgumentParser, kind: type[Settings], arguments: list[str] | None = None
) -> tuple[Settings, argparse.Namespace]:
    """Add an option per field of the dataclass `kind`, parse, and return the settings and what else was parsed.

    Fields may be int, float, str, any of them with None, bool (a flag) or tuple[str, ...] (an option to repeat).
    Those without a default are required; those that __init__ does not take are no options.
    """
    helps, types = _attribute_docstrings(kind), get_type_hints(kind)
    options = [field for field in fields(kind) if field.init]
    for field in options:
        _add_option(parser, field, types[field.name], helps.get(field.name, ""))
    given = vars(parser.parse_args(arguments))
    values = {field.name: given.pop(field.name) for field in options}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**values), argparse.Namespace(**given)


def _add_option(parser: argparse.ArgumentParser, field: Field[Any], kind: Any, text: str) -> None:
    name, required = f"--{field.name.replace('_', '-')}", field.default is MISSING
    text = text.rstrip(".").replace("%", "%%")
    if kind is bool:
        parser.add_argument(name, action="store_true", help=text)
    elif get_origin(kind) is tuple:
        parser.add_argument(name, action="append", required=required, help=f"{text}; may be given several times")
    else:
        kind = next((each for each in get_args(kind) if each is not type(None)), kind)
        shown = "" if required or field.default is None else f" (default: {field.default})"
        default = None if required else field.default
        parser.add_argument(name, type=kind, default=default, required=required, help=f"{text}{shown}".strip())


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """{field: the docstring below it} in the source of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): inspect.cleandoc(doc.value.value)
        for field, doc in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
        if isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def run(command: Callable[..., Any], *arguments: Any) -> int:
    """Call `command`, print its figures as JSON (a text as it is) and return the process's exit code."""
    try:
        figures = command(*arguments)
    except KumiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(figures if isinstance(figures, str) else json.dumps(figures, indent=2))
    return 0


def refuse_existing(*paths: Path) -> None:
    """Raise DataError naming the paths that exist."""
    if existing := [str(path) for path in paths if path.exists()]:
        raise DataError(f"{', '.join(existing)} exists; nothing is overwritten, choose another name")


def complete(marker: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The contents of `marker`, the file that a command writes last, or None if it does not exist.

    Raises DataError naming each value that differs from `origin`, or from a dict in it.
    """
    if not marker.exists():
        return None
    written = json.loads(marker.read_text(encoding="utf-8"))
    old, new = _flat({key: written.get(key) for key in origin}), _flat(json.loads(json.dumps(origin)))
    changed = [f"{key}: {old.get(key)!r}, now {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)]
    if changed:
        raise DataError(
            f"{marker} was made with other settings; choose another folder or delete this one. Different are:\n"
            + "\n".join(f"  - {text}" for text in changed)
        )
    return written


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The items of `values`, with those of a dict among them in its place."""
    items = (value.items() if isinstance(value, dict) else [(key, value)] for key, value in values.items())
    return dict(item for each in items for item in each)


def write_json(path: Path, data: dict[str, Any] | list[Any]) -> None:
    """Put `data` at `path`, durably and all at once, indented for people."""
    write_atomically(path, json.dumps(data, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Put one JSON object per line at `path`, durably and all at once."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
