"""Reads YAML 1.2 safely and remembers where each value stands. Knows nothing of what the values mean.

PyYAML follows YAML 1.1, where `5e-7` is text, `no` is False and `1:30` is 90. Here scalars follow the
core schema of YAML 1.2, keys are always text, repeated keys and tags are refused, and a crafted file
can exhaust neither the stack (depth) nor the memory (size, aliases that expand).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from engine.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Values after aliases are expanded."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_KNOWN_TAGS = {_TAG + name for name in (*_SCALARS, "str", "seq", "map")}


@dataclass(frozen=True)
class Entry:
    """A value and where it was written, e.g. "sppo.yaml:12" or "command line"."""

    value: Any
    """A scalar, a list of entries, or a dict from text to entry."""
    where: str

    def plain(self) -> Any:
        """Return the value as ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def location(self, path: tuple[str | int, ...]) -> str:
        """Where the value at `path` was written, or the nearest section around it that was."""
        entry = self
        for part in path:
            try:
                entry = entry.value[part]
            except (KeyError, IndexError, TypeError):
                break
        return entry.where


def entry(value: Any, where: str) -> Entry:
    """Wrap ordinary Python data whose place is `where`."""
    if isinstance(value, dict):
        return Entry({str(key): entry(item, where) for key, item in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Entry([entry(item, where) for item in value], where)
    return Entry(value, where)


def parse(text: str, where: str, numbered: bool = True) -> Entry:
    """Read one YAML document; entries say `where:line` if `numbered`, else `where`.

    Raises ConfigError naming every repeated key and forbidden tag, or the first syntax error.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError([f"{where}: larger than {MAX_BYTES} bytes"])
    try:
        root = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark and numbered else where
        raise ConfigError([f"{place}: not YAML: {error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{where}: not YAML: {error}"]) from error
    if root is None:
        return Entry(None, where)
    reader = _Reader(where, numbered)
    result = reader.read(root, where, 0)
    if reader.problems:
        raise ConfigError(reader.problems)
    return result


def dump(value: Any) -> str:
    """Write plain data as YAML that both YAML 1.1 and 1.2 readers understand alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Composer(yaml.SafeLoader):
    """Text to a tree of nodes, with YAML 1.2's scalars and a bound on depth."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own declaration)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML leaves Unicode's line breaks bare in plain and single-quoted text, where readers fold them into spaces."""
    folds = any(mark in text for mark in "\x85\u2028\u2029")
    return dumper.represent_scalar(_TAG + "str", text, style='"' if folds else None)


_Dumper.add_representer(str, _represent_text)
for _name, _pattern in _SCALARS.items():
    _Composer.add_implicit_resolver(_TAG + _name, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, None)


class _Reader:
    """Nodes to entries; collects what is wrong on the way."""

    def __init__(self, where: str, numbered: bool):
        self.where, self.numbered = where, numbered
        self.problems: list[str] = []
        self._left = MAX_VALUES

    def read(self, node: yaml.Node, where: str, depth: int) -> Entry:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise ConfigError([f"{self._at(node)}: over {MAX_VALUES} values, or aliases that contain themselves"])
        if node.tag not in _KNOWN_TAGS:
            self.problems.append(f"{self._at(node)}: the tag {node.tag!r} is not allowed; only plain values are")
            return Entry(None, where)
        if isinstance(node, yaml.MappingNode):
            return Entry({key: self.read(child, place, depth + 1) for key, child, place in self._items(node)}, where)
        if isinstance(node, yaml.SequenceNode):
            return Entry([self.read(child, self._at(child), depth + 1) for child in node.value], where)
        return Entry(self._scalar(node), where)

    def _at(self, node: yaml.Node) -> str:
        return f"{self.where}:{node.start_mark.line + 1}" if self.numbered else self.where

    def _items(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, str]]:
        seen: dict[str, str] = {}
        for key, child in node.value:
            place = self._at(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{place}: a key must be text")
            elif key.value in seen:
                self.problems.append(f"{place}: the key {key.value!r} is here twice; first at {seen[key.value]}")
            else:
                seen[key.value] = place
                yield key.value, child, place

    def _scalar(self, node: yaml.Node) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=[iInN])", "", text))
        except (ValueError, KeyError):
            self.problems.append(f"{self._at(node)}: {text[:40]!r} is not a value of type {kind}")
        return text
