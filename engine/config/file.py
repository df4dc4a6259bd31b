"""From files and command lines to a RunConfig, and back.

Layers, the later one wins: a recipe's own values, the files under `defaults:`, the file, the command
line. Sections merge key by key; lists are replaced whole. Where a layer chooses another variant of a
section (scorer.kind, algorithm.name), that section starts afresh, so nothing of the old variant stays.
What the keys mean is engine/config/model.py's business; this module imports nothing heavy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path as File
from typing import Any

from pydantic import ValidationError

from engine.config import schema as schema
from engine.config import yaml12
from engine.config.model import RunConfig
from engine.config.schema import Node, Path, describe, shown
from engine.config.yaml12 import Entry
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
    tree = yaml12.entry(base or {}, "the recipe" if base else COMMAND_LINE)
    if path is not None:
        try:
            tree = _merge(tree, _read(File(path), ()), schema.root())
        except ConfigError as error:
            _parse_overrides(overrides, problems)
            raise ConfigError(error.problems + problems) from error
    for keys, value in _parse_overrides(overrides, problems):
        try:
            tree = _set(tree, schema.root(), keys, value)
        except LookupError as error:
            problems.append(f"{'.'.join(keys)}: {error.args[0]} ({COMMAND_LINE})")
    return _validate(tree, problems)


def dump(config: RunConfig) -> str:
    """Write `config` in full as YAML that `load` reads back to an equal one."""
    return yaml12.dump(config.model_dump())


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
    found = yaml12.parse(_text(path), str(path))
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
        tree = _merge(tree, _read(path.parent / name, (*above, here)), schema.root())
    return _merge(tree, Entry(keys, str(path)), schema.root())


def _text(path: File) -> str:
    try:
        if path.stat().st_size > yaml12.MAX_BYTES:
            raise ConfigError([f"{path}: larger than {yaml12.MAX_BYTES} bytes; is it a configuration?"])
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
        below = schema.child(node, key, {**under.plain(), **over.plain()})
        merged[key] = _merge(merged[key], value, below) if key in merged else value
    return Entry(merged, over.where)


def _chooses_another(under: Entry, over: Entry, node: Node) -> bool:
    """Whether `over` turns the section into another variant than `under` says it is."""
    tag = schema.tag_of(node)
    if tag is None or tag not in over.value:
        return False
    before = under.plain().get(tag, schema.default_tag(node))
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
            found.append((key.split("."), yaml12.parse(text, COMMAND_LINE, numbered=False)))
        except ConfigError as error:
            problems += [f"{key} = {text!r}: {p}; quotes around the value may help" for p in error.problems]
    return sorted(found, key=lambda item: (len(item[0]), item[0][-1] not in schema.TAGS))


def _set(tree: Entry, node: Node, keys: Sequence[str], value: Entry) -> Entry:
    """A copy of `tree` with `value` at `keys`. Raises LookupError saying what is in the way."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree.value, list):
        if not (key.isdecimal() and int(key) < len(tree.value)):
            raise LookupError(f"the list has no element {key!r}; it has 0 to {len(tree.value) - 1}")
        items = list(tree.value)
        items[int(key)] = _set(items[int(key)], schema.child(node, int(key), None), rest, value)
        return Entry(items, tree.where)
    if tree.value is not None and not isinstance(tree.value, dict):
        raise LookupError(f"{shown(tree.value)} has no keys below it")
    if tree.value is None and key.isdecimal() and not schema.variants(node):
        raise LookupError("there is no list yet to change one element of; give the whole list: key=[a,b]")
    tree = Entry(tree.value or {}, tree.where)
    if not rest and _chooses_another(tree, Entry({key: value}, COMMAND_LINE), node):
        return Entry({key: value}, COMMAND_LINE)
    below = tree.value.get(key, Entry(None, COMMAND_LINE))
    changed = _set(below, schema.child(node, key, tree.plain()), rest, value)
    return Entry({**tree.value, key: changed}, tree.where)


def _validate(tree: Entry, problems: list[str]) -> RunConfig:
    """The configuration that `tree` holds; `problems` are those already known."""
    data = _prepare(tree, schema.root(), (), problems)
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
        kinds = {option.get("type") for option in schema.options(node)}
        if kinds & {"integer", "number"} and "boolean" not in kinds:
            problems.append(_wrong(path, tree.value, node, tree.where))
            return 1
    if isinstance(tree.value, list):
        return [_prepare(item, schema.child(node, i, None), (*path, i), problems) for i, item in enumerate(tree.value)]
    if not isinstance(tree.value, dict):
        return tree.value
    data = {}
    for key, item in tree.value.items():
        below = schema.child(node, key, tree.plain())
        may_be_null = any(option.get("type") == "null" for option in schema.options(below))
        if item.value is None and schema.variants(below) and not may_be_null:
            continue
        data[key] = _prepare(item, below, (*path, key), problems)
    if schema.default_tag(node):
        data.setdefault(str(schema.tag_of(node)), schema.default_tag(node))
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
    node = schema.root()
    for part in loc:
        known = isinstance(part, str) and part in (schema.section(node, _mapping(data)) or {}).get("properties", {})
        if known or (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            node = schema.child(node, part, data)
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
        hint = schema.advice(path)
        return f"{name}: unknown key{'; ' + hint if hint else ''} ({where})"
    if item["type"] == "missing":
        return f"{name}: missing; expected {schema.in_words(node)} ({where})"
    if item["type"] == "value_error":
        return f"{name + ': ' if name else ''}{item['ctx']['error']} ({where})"
    tag = schema.tag_of(node)
    if tag and isinstance(item["input"], dict):
        allowed, where = {"enum": schema.choices(node)}, tree.location((*path, tag))
        if tag not in item["input"]:
            return f"{name}.{tag}: missing; expected {schema.in_words(allowed)} ({where})"
        return _wrong((*path, tag), item["input"][tag], allowed, where)
    return _wrong(path, item["input"], node, where)


def _wrong(path: Path, value: Any, node: Node, where: str) -> str:
    allowed = [str(choice) for option in schema.options(node) for choice in option.get("enum", [])]
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{'.'.join(map(str, path))} = {shown(value)}: expected {schema.in_words(node)}{hint} ({where})"
