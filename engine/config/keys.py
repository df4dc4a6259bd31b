"""Every key that a configuration may have, with its range, default and meaning; the text of `--help`.

Everything is read from the JSON schema that pydantic derives from engine/config/run.py, so it follows the models.
A *node* is a part of that schema.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.config.base import NO_EFFECT
from engine.config.run import RunConfig

Node = dict[str, Any]
Path = tuple[str | int, ...]

TAGS = ("kind", "name")
"""Keys that choose between the variants of a section (scorer.kind, algorithm.name)."""

MOST_USED = (
    "model.path",
    "prompts.source",
    "iterations",
    "sampling.num_samples",
    "sampling.temperature",
    "scorer",
    "scorer.path",
    "algorithm",
    "learner.optimizer.lr",
    "learner.batch_size",
    "generator.num_replicas",
    "cluster.placement",
    "name",
    "output",
)
"""What `--help` shows."""


@cache
def root() -> Node:
    """The schema of the whole configuration."""
    return RunConfig.model_json_schema()


def options(node: Node) -> list[Node]:
    """The alternatives of a node, with references and unions resolved."""
    if "$ref" in node:
        return options(root()["$defs"][node["$ref"].rpartition("/")[2]])
    for word in ("anyOf", "oneOf", "allOf"):
        if word in node:
            return [option for part in node[word] for option in options(part)]
    return [node]


def variants(node: Node) -> list[Node]:
    """The sections that a node may hold; empty where it holds a value."""
    return [option for option in options(node) if "properties" in option]


def tag_of(node: Node) -> str | None:
    """The key that selects the variant of a section; None where there is only one."""
    sections = variants(node)
    if len(sections) < 2:
        return None
    return next((tag for tag in TAGS if all("const" in s["properties"].get(tag, {}) for s in sections)), None)


def default_tag(node: Node) -> str | None:
    """The variant that holds where a section does not say."""
    default, tag = node.get("default"), tag_of(node)
    return default.get(tag) if tag and isinstance(default, dict) else None


def choices(node: Node) -> list[str]:
    """The values of the key that selects the variant."""
    tag = tag_of(node)
    return [section["properties"][tag]["const"] for section in variants(node)] if tag else []


def section(node: Node, value: dict[str, Any]) -> Node | None:
    """The variant that `value` chooses; None where it chooses none, or the node is no section."""
    sections, tag = variants(node), tag_of(node)
    if tag is None:
        return sections[0] if sections else None
    chosen = value.get(tag, default_tag(node))
    return next((s for s in sections if s["properties"][tag]["const"] == chosen), None)


def node_at(path: Path, data: Any) -> Node:
    """The node of the key at `path` in the configuration `data`."""
    node = root()
    for key in path:
        node = child(node, key, data)
        data = data.get(key) if isinstance(data, dict) else data[int(key)] if isinstance(data, list) else None
    return node


def child(node: Node, key: str | int, value: Any) -> Node:
    """The node below `node` at `key`; an empty one, which allows anything, where there is none."""
    if isinstance(key, str):
        keys = section(node, value if isinstance(value, dict) else {})
        return keys["properties"].get(key, {}) if keys else _value_of_mapping(node)
    array = next((option for option in options(node) if option.get("type") == "array"), {})
    return array["prefixItems"][key] if key in range(len(array.get("prefixItems", ()))) else array.get("items", {})


def _value_of_mapping(node: Node) -> Node:
    """What any key of a mapping without declared keys holds (algorithm.losses); empty where that is anything."""
    values = (option.get("additionalProperties") for option in options(node))
    return next((value for value in values if isinstance(value, dict)), {})


def in_words(node: Node) -> str:
    """What a value must be, e.g. "a whole number from 2 to 256" or "one of rmsprop, adamw"."""
    if tag_of(node):
        return f"a section whose {tag_of(node)} is one of {', '.join(choices(node))}"
    return " or ".join(dict.fromkeys(_option_in_words(option) for option in options(node)))


def _option_in_words(option: Node) -> str:
    if "properties" in option:
        return f"a section with the keys {', '.join(option['properties'])}"
    if "enum" in option:
        return f"one of {', '.join(map(str, option['enum']))}"
    if "const" in option:
        return str(option["const"])
    if option.get("type") == "array":
        return _list_in_words(option)
    if isinstance(option.get("additionalProperties"), dict):
        return f"a mapping, each value {in_words(option['additionalProperties'])}"
    nouns = {
        "null": "null",
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "object": "a mapping",
    }
    return nouns.get(option.get("type", ""), "any value") + _range_in_words(option)


def _list_in_words(option: Node) -> str:
    if "prefixItems" in option:
        parts = list(dict.fromkeys(in_words(item) for item in option["prefixItems"]))
        return f"a list of {len(option['prefixItems'])}, each {' / '.join(parts)}"
    return f"a list, each {in_words(option.get('items', {}))}"


def _range_in_words(option: Node) -> str:
    low, high = option.get("minimum"), option.get("maximum")
    if option.get("type") == "integer" and "exclusiveMinimum" in option:
        low = option["exclusiveMinimum"] + 1
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    bounds = [f"at least {low:g}"] if low is not None else []
    if "exclusiveMinimum" in option and low is None:
        bounds.append(f"above {option['exclusiveMinimum']:g}")
    if high is not None:
        bounds.append(f"at most {high:g}")
    if "exclusiveMaximum" in option:
        bounds.append(f"below {option['exclusiveMaximum']:g}")
    if "pattern" in option:
        bounds.append(f"matching {option['pattern']}")
    return " " + " and ".join(bounds) if bounds else ""


@dataclass(frozen=True)
class Key:
    """One key that a configuration may have."""

    path: str
    """Dotted."""
    node: Node
    variant: str | None
    """The kind of the nearest section with variants that the key stands in."""
    required: bool
    has_effect: bool
    """Whether a run's results depend on it."""


@cache
def all_keys() -> tuple[Key, ...]:
    """Every key, sections before what they hold, of every variant."""
    return tuple(_keys(root(), "", None, True))


def _keys(node: Node, prefix: str, variant: str | None, has_effect: bool) -> Iterator[Key]:
    tag = tag_of(node)
    for part in variants(node):
        inside = part["properties"][tag]["const"] if tag else variant
        for name, below in part["properties"].items():
            effect = has_effect and not below.get(NO_EFFECT, False)
            yield Key(prefix + name, below, inside, name in part.get("required", []), effect)
            yield from _keys(below, f"{prefix}{name}.", inside, effect)


@cache
def sections(nullable: bool = False) -> frozenset[Path]:
    """Paths of all sections; without `nullable` of those for which null is no value."""
    return frozenset(
        tuple(key.path.split("."))
        for key in all_keys()
        if variants(key.node) and (nullable or all(option.get("type") != "null" for option in options(key.node)))
    )


@cache
def tags() -> dict[Path, tuple[str, str | None]]:
    """By section with variants: the key that chooses one, and its default."""
    tagged = {tuple(key.path.split(".")): (tag_of(key.node), default_tag(key.node)) for key in all_keys()}
    return {path: (tag, default) for path, (tag, default) in tagged.items() if tag}


def shown(value: Any) -> str:
    """A value as a person would write it, in at most 80 characters."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def describe() -> str:
    """Every key with its range, its default and what it means: the text of `--help-all`."""
    lines: list[str] = []
    for key in all_keys():
        variant = f"  [{key.variant}]" if key.variant else ""
        effect = "" if key.has_effect else "; no effect on results"
        lines.append(f"{key.path}{variant}: {_summary(key)}{effect}")
        lines += textwrap.wrap(meaning(key), 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def describe_most_used(algorithm: str | None = None) -> str:
    """The most used keys with their defaults and a sentence each, and those of `algorithm`: the text of `--help`."""
    algorithm = algorithm or tags()["algorithm",][1] or ""
    first = {key.path: key for key in reversed(all_keys())}
    own = [key for key in all_keys() if key.path.startswith("algorithm.") and key.variant == algorithm]
    values = [f"{key.path.partition('.')[2]} = {_default(key)}" for key in own if key.path != "algorithm.name"]
    rows = [("algorithm.KEY", "", f"{algorithm} has {', '.join(values)}.")]
    for path in reversed(MOST_USED):
        key, tag = first[path], tag_of(first[path].node)
        default, sentence = _default(key), meaning(key).split(". ")[0].rstrip(".")
        if tag:
            path, default, sentence = f"{path}.{tag}", default_tag(key.node) or default, " or ".join(choices(key.node))
        rows.insert(0, (path, algorithm if path == "algorithm.name" else default, sentence + "."))
    lines = (f"{path:<23} {default:<13} {sentence}" for path, default, sentence in rows)
    return "".join(
        textwrap.fill(line, 115, subsequent_indent=" " * 38, break_on_hyphens=False) + "\n" for line in lines
    )


def _default(key: Key) -> str:
    default = key.node.get("default")
    return "required" if key.required else default if isinstance(default, str) else shown(default)


def meaning(key: Key) -> str:
    """The docstring of the key, or of the section that it holds, on one line."""
    text = key.node.get("description") or next((s.get("description", "") for s in variants(key.node)), "")
    return " ".join(text.split())


def _summary(key: Key) -> str:
    if variants(key.node):
        tag = tag_of(key.node)
        return f"section, {tag} is one of {', '.join(choices(key.node))}" if tag else "section"
    default = "required" if key.required else f"default {shown(key.node.get('default'))}"
    return f"{in_words(key.node)}; {default}"
