"""From YAML files and command lines to a RunConfig, and back.

Layers, the later one wins: a recipe's own values, the files under `defaults:`, the file, the command
line. Sections merge key by key; lists are replaced whole. Where a layer chooses another variant of a
section (scorer.kind, algorithm.name), that section starts afresh, so nothing of the old variant stays.

PyYAML follows YAML 1.1, where `5e-7` is text, `no` is False and `1:30` is 90. Here scalars follow the
core schema of YAML 1.2, keys are always text, repeated keys and tags are refused, and a crafted file
can exhaust neither the stack (depth) nor the memory (size, aliases that expand).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import yaml
from pydantic import ValidationError

from engine.config import explain
from engine.config.explain import Node, Path, describe, shown
from engine.config.run import RunConfig
from engine.errors import ConfigError

__all__ = ["config_digest", "describe", "diff", "dump", "load"]

COMMAND_LINE = "command line"
MAX_GENERATIONS = 8
"""How many files may stand above one another through `defaults:`."""

WITHOUT_EFFECT: dict[str, Any] = {
    "run": {"name", "output", "cluster", "tracking"},
    "model": {"num_parameters"},
    "prompts": {"expected"},
    "scorer": {
        "num_replicas": True,
        "cpus": True,
        "server": {"num_parameters", "api_key_env", "allow_insecure_http", "timeout_s", "max_retries", "cache"}
        | {"max_concurrency", "max_requests", "max_tokens_total", "max_cost_usd"}
        | {"usd_per_million_input_tokens", "usd_per_million_output_tokens"},
    },
    "generator": {"num_replicas", "cpus", "probe_tolerance"},
    "learner": {"checkpoint_every"},
}
"""Keys that decide where, how fast and how watchfully a run computes, but not what.

Whatever might change a floating-point sum counts as an effect: learner.num_ranks, micro_batch_size,
logits_chunk, tensor_parallel_size, batch_tokens.
"""


def load(
    path: str | File | None = None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> RunConfig:
    """Read a configuration file and command-line overrides on top of a recipe's values.

    `overrides` are `a.b=value`, `--a.b=value` or `--a.b value`, values in YAML; `a.b.0=value` replaces one
    element of a list, and a value that is a mapping replaces its section. Paths under `defaults:` are
    relative to the file that names them. Raises ConfigError with every problem found; checks that compare
    keys with each other are made once the keys by themselves are right.
    """
    problems: list[str] = []
    tree = entry(base or {}, "the recipe" if base else COMMAND_LINE)
    if path is not None:
        try:
            tree = _merge(tree, _read(File(path), ()), explain.root())
        except ConfigError as error:
            _parse_overrides(overrides, problems)
            raise ConfigError(error.problems + problems) from error
    for keys, value in _parse_overrides(overrides, problems):
        try:
            tree = _set(tree, explain.root(), keys, value)
        except LookupError as error:
            problems.append(f"{'.'.join(keys)}: {error.args[0]} ({COMMAND_LINE})")
    return _validate(tree, problems)


def dump(config: RunConfig) -> str:
    """Write `config` in full as YAML that `load` reads back to an equal one."""
    return dump_yaml(config.model_dump())


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines such as "learner.optimizer.lr: 5e-07 -> 1e-06", in the order of `old`, then of `new`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {shown(before[key]) if key in before else '(absent)'} -> "
        f"{shown(after[key]) if key in after else '(absent)'}"
        for key in dict.fromkeys([*before, *after])
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def config_digest(config: RunConfig) -> str:
    """SHA-256, in hex, over what determines a run's results: all but WITHOUT_EFFECT."""
    drop = WITHOUT_EFFECT
    evaluation: dict[str, Any] = {"prompts": drop["prompts"]} if config.evaluation else {}
    if config.evaluation and config.evaluation.scorer:
        evaluation["scorer"] = drop["scorer"]
    exclude: dict[str, Any] = dict.fromkeys(drop["run"], True)
    exclude |= {"model": drop["model"], "prompts": drop["prompts"]}
    exclude |= {"generator": drop["generator"], "scorer": drop["scorer"], "learner": drop["learner"]}
    data = config.model_dump(exclude=exclude | {"evaluation": evaluation})
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=list).encode()).hexdigest()


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and (data or not prefix):
        for key, value in data.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(data) if isinstance(data, tuple) else data


def _read(path: File, above: tuple[File, ...]) -> Entry:
    """The entries of a file, merged onto those of the files it names under `defaults:`."""
    here = path.resolve()
    if here in above:
        raise ConfigError([f"{path}: `defaults:` go in a circle: {' -> '.join(p.name for p in (*above, here))}"])
    if len(above) >= MAX_GENERATIONS:
        raise ConfigError([f"{path}: `defaults:` go more than {MAX_GENERATIONS} files deep"])
    found = parse_yaml(_text(path), str(path))
    if found.value is None:
        return Entry({}, str(path))
    if not isinstance(found.value, dict):
        raise ConfigError([f"{path}: expected `key: value` lines at the top, found {shown(found.plain())}"])
    keys = dict(found.value)
    defaults = keys.pop("defaults", Entry([], str(path)))
    names = defaults.plain() if isinstance(defaults.value, list) else [defaults.value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError([f"defaults = {shown(names)}: expected a file or a list of files ({defaults.where})"])
    tree = Entry({}, str(path))
    for name in names:
        tree = _merge(tree, _read(path.parent / name, (*above, here)), explain.root())
    return _merge(tree, Entry(keys, str(path)), explain.root())


def _text(path: File) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_BYTES} bytes; is it a configuration?"])
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8: {error.reason} at byte {error.start}"]) from error
    except FileNotFoundError as error:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise ConfigError([f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else "")]) from error
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error


def _merge(under: Entry, over: Entry, node: Node) -> Entry:
    """`over` on top of `under`, section by section."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    if _chooses_another(under, over, node):
        return over
    merged = dict(under.value)
    for key, value in over.value.items():
        below = explain.child(node, key, {**under.plain(), **over.plain()})
        merged[key] = _merge(merged[key], value, below) if key in merged else value
    return Entry(merged, over.where)


def _chooses_another(under: Entry, over: Entry, node: Node) -> bool:
    """Whether `over` turns the section into another variant than `under` says it is."""
    tag = explain.tag_of(node)
    if tag is None or tag not in over.value:
        return False
    before = under.plain().get(tag, explain.default_tag(node))
    return before is not None and over.value[tag].plain() != before


def _parse_overrides(tokens: Sequence[str], problems: list[str]) -> list[tuple[list[str], Entry]]:
    """Keys and values, wider sections first and their variants first of all: their order does not matter."""
    found = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        key, equals, text = token.removeprefix("--").partition("=")
        if not equals and token.startswith("--") and rest and not rest[0].startswith("--"):
            equals, text = "=", rest.pop(0)
        if not equals or not key or not all(key.split(".")):
            problems.append(f"{token!r}: expected key=value, for example learner.optimizer.lr=5e-7 ({COMMAND_LINE})")
            continue
        try:
            found.append((key.split("."), parse_yaml(text, COMMAND_LINE, numbered=False)))
        except ConfigError as error:
            problems += [f"{key} = {text!r}: {p}; quotes around the value may help" for p in error.problems]
    return sorted(found, key=lambda item: (len(item[0]), item[0][-1] not in explain.TAGS))


def _set(tree: Entry, node: Node, keys: Sequence[str], value: Entry) -> Entry:
    """A copy of `tree` with `value` at `keys`. Raises LookupError saying what is in the way."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree.value, list):
        if not (key.isdecimal() and int(key) < len(tree.value)):
            raise LookupError(f"the list has no element {key!r}; it has 0 to {len(tree.value) - 1}")
        items = list(tree.value)
        items[int(key)] = _set(items[int(key)], explain.child(node, int(key), None), rest, value)
        return Entry(items, tree.where)
    if tree.value is not None and not isinstance(tree.value, dict):
        raise LookupError(f"{shown(tree.value)} has no keys below it")
    if tree.value is None and key.isdecimal() and not explain.variants(node):
        raise LookupError("there is no list yet to change one element of; give the whole list: key=[a,b]")
    tree = Entry(tree.value or {}, tree.where)
    if not rest and _chooses_another(tree, Entry({key: value}, COMMAND_LINE), node):
        return Entry({key: value}, COMMAND_LINE)
    below = tree.value.get(key, Entry(None, COMMAND_LINE))
    changed = _set(below, explain.child(node, key, tree.plain()), rest, value)
    return Entry({**tree.value, key: changed}, tree.where)


def _validate(tree: Entry, problems: list[str]) -> RunConfig:
    """The configuration that `tree` holds; `problems` are those already known."""
    data = _prepare(tree, explain.root(), (), problems)
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems + list(_explain(error, tree, data))) from error
    if problems:
        raise ConfigError(problems)
    return config


def _prepare(tree: Entry, node: Node, path: Path, problems: list[str]) -> Any:
    """Plain data for pydantic: empty sections count as absent, and the default variant is named.

    Refuses true and false as numbers, which pydantic would read as 1 and 0.
    """
    if isinstance(tree.value, bool):
        kinds = {option.get("type") for option in explain.options(node)}
        if kinds & {"integer", "number"} and "boolean" not in kinds:
            problems.append(_wrong(path, tree.value, node, tree.where))
            return 1
    if isinstance(tree.value, list):
        return [_prepare(item, explain.child(node, i, None), (*path, i), problems) for i, item in enumerate(tree.value)]
    if not isinstance(tree.value, dict):
        return tree.value
    data = {}
    for key, item in tree.value.items():
        below = explain.child(node, key, tree.plain())
        may_be_null = any(option.get("type") == "null" for option in explain.options(below))
        if item.value is None and explain.variants(below) and not may_be_null:
            continue
        data[key] = _prepare(item, below, (*path, key), problems)
    if explain.default_tag(node):
        data.setdefault(str(explain.tag_of(node)), explain.default_tag(node))
    return data


def _explain(error: ValidationError, tree: Entry, data: dict[str, Any]) -> Iterator[str]:
    """One line per wrong key; pydantic has several where a value may be of several types."""
    found: dict[Path, Any] = {}
    for item in error.errors(include_url=False):
        path, _ = _key(item["loc"], data)
        found.setdefault(path, item)
    for path, item in found.items():
        if not any(path[:n] in found for n in range(len(path))):
            yield _line(path, item, tree, data)


def _key(loc: Path, data: Any) -> tuple[Path, Node]:
    """The key that pydantic means by `loc`, without the names of union members in it, and its node."""
    path: Path = ()
    node = explain.root()
    for part in loc:
        known = isinstance(part, str) and part in (explain.section(node, _mapping(data)) or {}).get("properties", {})
        if known or (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            node = explain.child(node, part, data)
            data = data.get(part) if isinstance(data, dict) else data[int(part)] if isinstance(data, list) else None
            path = (*path, part)
    return path, node


def _mapping(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def _line(path: Path, item: Any, tree: Entry, data: dict[str, Any]) -> str:
    """What is wrong with the key at `path`, in words."""
    name, where = ".".join(map(str, path)), tree.location(path)
    node = _key(path, data)[1]
    if item["type"] == "extra_forbidden":
        hint = explain.advice(path)
        return f"{name}: unknown key{'; ' + hint if hint else ''} ({where})"
    if item["type"] == "missing":
        return f"{name}: missing; expected {explain.in_words(node)} ({where})"
    if item["type"] == "value_error":
        return f"{name + ': ' if name else ''}{item['ctx']['error']} ({where})"
    tag = explain.tag_of(node)
    if tag and isinstance(item["input"], dict):
        allowed, where = {"enum": explain.choices(node)}, tree.location((*path, tag))
        if tag not in item["input"]:
            return f"{name}.{tag}: missing; expected {explain.in_words(allowed)} ({where})"
        return _wrong((*path, tag), item["input"][tag], allowed, where)
    return _wrong(path, item["input"], node, where)


def _wrong(path: Path, value: Any, node: Node, where: str) -> str:
    allowed = [str(choice) for option in explain.options(node) for choice in option.get("enum", [])]
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{'.'.join(map(str, path))} = {shown(value)}: expected {explain.in_words(node)}{hint} ({where})"


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


def parse_yaml(text: str, where: str, numbered: bool = True) -> Entry:
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


def dump_yaml(value: Any) -> str:
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
