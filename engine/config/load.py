"""Read YAML files and command lines into a RunConfig, and write one back.

A Layer is a flat dict: the path of a key -> its value and where it was written. Four kinds of layers are merged, a
later one wins: the recipe's own values, the files under `defaults:`, the file, the command line. Sections merge key
by key; lists are replaced as a whole. Where a layer chooses another variant of a section (scorer.kind,
algorithm.name), the old variant's keys are dropped. A section without keys counts as absent.

YAML is version 1.2, read by ruamel.yaml: `5e-7` is a number, `no` is text. Keys are always text; repeated keys and
tags are refused; size, depth and the number of values are bounded, so a crafted file exhausts neither stack nor memory.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from io import StringIO
from pathlib import Path as File
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from engine.config import explain
from engine.config.base import has_no_effect
from engine.config.keys import TAGS, Path, node_at, sections, shown, tags
from engine.config.run import RunConfig
from engine.errors import ConfigError

C = TypeVar("C", bound=BaseModel)
COMMAND_LINE = "command line"
MAX_FILES = 8
"""Length of a chain of files through `defaults:`."""
MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Values in one file after aliases are expanded."""


class Entry(NamedTuple):
    """One value of a layer."""

    value: Any
    """A scalar; {} for a mapping and [] for a list, whose contents have entries of their own."""
    where: str
    """The place for messages, e.g. "sppo.yaml:12" or "command line"."""


class Layer(dict[Path, Entry]):
    """Entries by path, each mapping or list before what it holds. The path of the whole is ()."""

    @classmethod
    def of(cls, value: Any, where: str, path: Path = ()) -> Layer:
        """Flatten Python data that was written at `where`."""
        is_list = isinstance(value, list | tuple)
        layer = cls({path: Entry({} if isinstance(value, dict) else [] if is_list else value, where)})
        for key, item in enumerate(value) if is_list else value.items() if isinstance(value, dict) else ():
            layer.update(cls.of(item, where, (*path, key if is_list else str(key))))
        return layer

    def plain(self) -> Any:
        """The layer as nested Python data."""
        data: dict[Path, Any] = {}
        for path, entry in self.items():
            data[path] = entry.value.copy() if isinstance(entry.value, dict | list) else entry.value
            if path:
                parent = data[path[:-1]]
                parent.append(data[path]) if isinstance(parent, list) else parent.update({path[-1]: data[path]})
        return data[()]

    def value(self, path: Path) -> Any:
        """The value at `path`; None where there is none."""
        return self[path].value if path in self else None

    def place(self, path: Path) -> str:
        """Where the value at `path` was written, or else the nearest section around it."""
        return next(self[path[:n]].where for n in range(len(path), -1, -1) if path[:n] in self)

    def cleared(self, paths: Collection[Path]) -> Layer:
        """A copy without what stands below any of `paths`."""
        return Layer({p: e for p, e in self.items() if not any(p[:n] in paths for n in range(len(p)))})

    def without_empty_sections(self) -> Layer:
        """A copy without sections that hold no key, as where all lines below `learner:` are comments."""
        return Layer({p: e for p, e in self.items() if e.value is not None or p not in sections()})


def load(
    path: str | File | None = None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> RunConfig:
    """Read the configuration of a run: a file and command-line overrides on top of a recipe's values.

    `overrides` are `a.b=value`, `--a.b=value` or `--a.b value`, values in YAML; `a.b.0=value` replaces one
    element of a list, and a value that is a mapping replaces its section. Paths under `defaults:` are
    relative to the file that names them. Raises ConfigError with every problem; checks that compare
    keys with each other are made once every key on its own is right.
    """
    return load_as(RunConfig, path, overrides, base)


def load_as(
    kind: type[C], path: str | File | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> C:
    """The same for any kind of configuration whose keys are among those of a run."""
    problems: list[str] = []
    changes = _parse_overrides(overrides, problems)
    layer = Layer.of(base or {}, explain.RECIPE if base else COMMAND_LINE)
    if path is not None:
        try:
            layer = _merge(layer, _read(File(path), ()))
        except ConfigError as error:
            raise ConfigError(error.problems + problems) from error
    for keys, value in changes:
        try:
            layer = _override(layer, keys, value)
        except LookupError as error:
            problems.append(f"{'.'.join(keys)}: {error.args[0]} ({COMMAND_LINE})")
    return _validate(kind, layer, problems)


def dump(config: BaseModel) -> str:
    """Write `config` in full as YAML that `load` reads back to an equal one."""
    return dump_yaml(config.model_dump())


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines such as "learner.optimizer.lr: 5e-07 -> 1e-06", in the order of `old`, then of `new`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {shown(before[key]) if key in before else '(absent)'} -> "
        f"{shown(after[key]) if key in after else '(absent)'}"
        for key in {**before, **after}
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def config_digest(config: BaseModel) -> str:
    """SHA-256, in hex, of what determines a run's results: every key but those declared without effect.

    A key that is null counts as absent, so that a new optional key changes no digest.
    """
    return hashlib.sha256(json.dumps(effective(config), sort_keys=True).encode()).hexdigest()


def effective(section: BaseModel) -> dict[str, Any]:
    """The values that determine a run's results, nested; keys that are null or without effect are left out."""
    values = {name: getattr(section, name) for name, f in type(section).model_fields.items() if not has_no_effect(f)}
    return {
        name: effective(value) if isinstance(value, BaseModel) else value
        for name, value in values.items()
        if value is not None
    }


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and (data or not prefix):
        for key, value in data.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(data) if isinstance(data, tuple) else data


def _read(path: File, parents: tuple[File, ...]) -> Layer:
    """The layer of a file, on top of those of the files it names under `defaults:`."""
    try:
        resolved = path.resolve()
    except ValueError as error:  # a NUL character
        raise ConfigError([f"{str(path)!r}: not a file name: {error}"]) from error
    if resolved in parents:
        chain = " -> ".join(p.name for p in (*parents, resolved))
        raise ConfigError([f"{path}: the files under `defaults:` form a circle: {chain}"])
    if len(parents) >= MAX_FILES:
        raise ConfigError([f"{path}: more than {MAX_FILES} files refer to one another through `defaults:`"])
    layer = parse_yaml(_text(path), str(path))
    data = layer.plain()
    if data is None:
        return Layer.of({}, str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: expected `key: value` lines at the top level, got {shown(data)}"])
    names = data.get("defaults", [])
    names = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) for name in names):
        where = layer.place(("defaults",))
        raise ConfigError([f"defaults = {shown(names)}: expected a file or a list of files ({where})"])
    under = Layer.of({}, str(path))
    for name in names:
        under = _merge(under, _read(path.parent / name, (*parents, resolved)))
    return _merge(under, Layer({p: e for p, e in layer.items() if p[:1] != ("defaults",)}))


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


def _merge(under: Layer, over: Layer) -> Layer:
    """`over` on top of `under`, section by section."""
    over = over.without_empty_sections()
    replaced = {
        path
        for path, entry in over.items()
        if not (isinstance(entry.value, dict) and isinstance(under.value(path), dict))
        or _chooses_another_variant(under, over, path)
    }
    return Layer(under.cleared(replaced) | over)


def _chooses_another_variant(under: Layer, over: Layer, section: Path) -> bool:
    tag, default = tags().get(section, ("", None))
    chosen = (*section, tag)
    before = under[chosen].value if chosen in under else default
    return chosen in over and before is not None and over[chosen].value != before


def _parse_overrides(tokens: Sequence[str], problems: list[str]) -> list[tuple[list[str], Layer]]:
    """Keys and values, wider sections first and their variants first of all: their order does not matter."""
    overrides = []
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
            overrides.append((key.split("."), parse_yaml(text, COMMAND_LINE, numbered=False)))
        except ConfigError as error:
            problems += [f"{key} = {text!r}: {p}; quotes around the value may help" for p in error.problems]
    return sorted(overrides, key=lambda item: (len(item[0]), item[0][-1] not in TAGS))


def _override(layer: Layer, keys: Sequence[str], value: Layer) -> Layer:
    """A copy of `layer` with `value` at `keys`. Raises LookupError saying what is in the way."""
    path: Path = ()
    parents = {}
    for key in keys:
        holder = layer.value(path)
        if isinstance(holder, list):
            length = sum(p[:-1] == path for p in layer if p)
            if not (key.isdecimal() and int(key) < length):
                raise LookupError(f"the list has no element {key!r}; it has 0 to {length - 1}")
            path = (*path, int(key))
            continue
        if holder is None and key.isdecimal() and path not in sections(nullable=True):
            raise LookupError("there is no list yet to change one element of; give the whole list: key=[a,b]")
        if holder is None:
            parents[path] = Entry({}, layer[path].where if path in layer else COMMAND_LINE)
        elif not isinstance(holder, dict):
            raise LookupError(f"{shown(holder)} has no keys below it")
        path = (*path, key)
    change = Layer(parents | {path + below: entry for below, entry in value.items()})
    replaced = path
    if _chooses_another_variant(layer, change, path[:-1]):
        replaced = path[:-1]
        change = Layer({replaced: Entry({}, COMMAND_LINE)} | change)
    return Layer(layer.cleared({replaced}) | change).without_empty_sections()


def _validate(kind: type[C], layer: Layer, problems: list[str]) -> C:
    """The configuration that `layer` holds; `problems` are those known before."""
    for section, (tag, default) in tags().items():
        if default is not None and isinstance(layer.value(section), dict) and (*section, tag) not in layer:
            layer = Layer(layer | {(*section, tag): Entry(default, layer.place(section))})
    data = layer.plain()
    refused = {
        path: entry.value
        for path, entry in layer.items()
        if isinstance(entry.value, bool | str) and explain.is_no_number(entry.value, node_at(path, data))
    }  # pydantic would read true and "1" as numbers
    errors: list[Any] = []
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if problems := problems + explain.messages(refused, errors, data, layer.place):
        raise ConfigError(problems)
    return config


def parse_yaml(text: str, where: str, numbered: bool = True) -> Layer:
    """Read one YAML document; entries say `where:line` if `numbered`, else `where`.

    Raises ConfigError naming every repeated key and forbidden tag, or the first syntax error.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError([f"{where}: larger than {MAX_BYTES} bytes"])
    reader = _Reader(where, numbered)
    try:
        root = reader.yaml.compose(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{where}:{mark.line + 1}" if mark and numbered else where
        raise ConfigError([f"{place}: not YAML: {_syntax_error(error)}"]) from error
    if root is None:
        return Layer.of(None, where)
    reader.read(root, (), where)
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.layer


def _syntax_error(error: YAMLError) -> str:
    if isinstance(error, MaxDepthExceededError):
        return f"nested more than {MAX_DEPTH} deep"
    problem = str(getattr(error, "problem", None) or getattr(error, "context", None) or error)
    return "a tab where only spaces may stand; indent with spaces" if "'\\t'" in problem else problem


class _Reader:
    """YAML nodes to a layer; collects the problems on the way."""

    def __init__(self, where: str, numbered: bool):
        self.layer, self.problems = Layer(), list[str]()
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.max_depth = MAX_DEPTH
        self.yaml.composer.warn_double_anchors = False
        self._where, self._numbered = where, numbered

    def read(self, node: Node, path: Path, place: str) -> None:
        """Add the entries of `node`, which stands at `path` and was written at `place`."""
        if len(path) > MAX_DEPTH or len(self.layer) >= MAX_VALUES:
            message = f"more than {MAX_VALUES} values, or aliases that contain themselves"
            raise ConfigError([f"{self._place(node)}: {message}"])
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if isinstance(node, MappingNode) and kind == "map":
            self.layer[path] = Entry({}, place)
            self._read_keys(node, path)
        elif isinstance(node, SequenceNode) and kind == "seq":
            self.layer[path] = Entry([], place)
            for index, child in enumerate(node.value):
                self.read(child, (*path, index), self._place(child))
        elif isinstance(node, ScalarNode) and kind in _SCALARS:
            self.layer[path] = Entry(self._scalar(node, kind), place)
        else:
            self.problems.append(f"{self._place(node)}: the tag {node.tag!r} is not allowed; only plain values are")

    def _read_keys(self, node: MappingNode, path: Path) -> None:
        places: dict[str, str] = {}
        for key, child in node.value:
            place, name = self._place(key), key.value
            if not isinstance(key, ScalarNode):
                self.problems.append(f"{place}: a key must be text")
            elif name in places:
                self.problems.append(f"{place}: the key {name!r} is here twice; first at {places[name]}")
            else:
                places[name] = place
                self.read(child, (*path, name), place)

    def _place(self, node: Node) -> str:
        return f"{self._where}:{node.start_mark.line + 1}" if self._numbered else self._where

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        # ruamel.yaml goes beyond YAML 1.2's core schema in dates, `=`, `<<`, 1_000 and 0b1: these are text.
        if kind in ("str", "timestamp", "value", "merge") or re.search("_|0b", node.value):
            return node.value
        try:
            return self.yaml.constructor.construct_object(node)
        except (ValueError, KeyError, IndexError):
            self.problems.append(f"{self._place(node)}: {node.value[:40]!r} is not a value of type {kind}")
            return None


_SCALARS = {"null", "bool", "int", "float", "str", "timestamp", "value", "merge"}


def dump_yaml(value: Any) -> str:
    """Write plain data as YAML that readers of YAML 1.1 and 1.2 understand alike."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.width = False, 2**30  # a fold beside an escape adds or moves a space
    yaml.representer.sort_base_mapping_type_on_output = False
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    """Quotes all text that some version of YAML could take for something else, and gives floats a point."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        word = re.fullmatch(r"[A-Za-z/][\w./-]*", data, re.ASCII)
        special = data.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if word and not special else '"')

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)
