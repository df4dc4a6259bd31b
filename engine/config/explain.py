"""What keys a configuration may have, in words: ranges, choices, nearest names, the text of `--help`.

Reads the JSON schema that pydantic derives from engine/config/run.py, so that every message and the help
text follow the models by themselves. A *node* is a part of that schema. Knows nothing of files.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.config.run import RunConfig

Node = dict[str, Any]
Path = tuple[str | int, ...]

TAGS = ("kind", "name")
"""Keys that choose between the variants of a section (scorer.kind, algorithm.name)."""

ELSEWHERE = {
    "api_key": "scorer.server.api_key_env, the NAME of an environment variable",
    "beta": "algorithm.beta, or algorithm.eta = 1 / beta in sppo",
    "pairs": "sampling.num_samples",
    "num_generations": "sampling.num_samples",
    "n_samples_per_prompt": "sampling.num_samples",
    "best_of_n": "sampling.num_samples",
    "max_tokens": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "response_length": "sampling.max_new_tokens",
    "max_prompt_length": "sampling.max_prompt_tokens",
    "max_length": "sampling.max_prompt_tokens + sampling.max_new_tokens",
    "max_seq_length": "sampling.max_prompt_tokens + sampling.max_new_tokens",
    "learning_rate": "learner.optimizer.lr",
    "optim": "learner.optimizer.name",
    "gradient_clipping": "learner.optimizer.max_grad_norm",
    "lr_scheduler_type": "learner.schedule.kind",
    "warmup_steps": "learner.schedule.warmup_ratio",
    "num_train_epochs": "learner.schedule.scheduler_total_epochs and learner.schedule.stop_after_epochs",
    "per_device_train_batch_size": "learner.micro_batch_size (and learner.batch_size for all ranks together)",
    "gradient_accumulation_steps": "learner.batch_size / (learner.micro_batch_size x learner.num_ranks)",
    "train_batch_size": "learner.batch_size",
    "bf16": "model.dtype = bfloat16",
    "fp16": "model.dtype = bfloat16 or float32 (the loss of SPPO overflows 16-bit floats)",
    "loss_weights": "algorithm.losses",
    "rpo_alpha": "algorithm.nll_weight",
    "cpo_alpha": "algorithm.alpha",
    "simpo_gamma": "algorithm.gamma",
    "discopop_tau": "algorithm.tau",
    "loss_type": "algorithm.name, or algorithm.losses in dpo",
    "model_name_or_path": "model.path",
    "dataset_name": "prompts.source",
    "output_dir": "output and name",
    "reward_model": "scorer.path",
    "world_size": "learner.num_ranks",
    "deepspeed": "learner.zero_stage and learner.offload_optimizer",
    "<<": "a `defaults:` line; merge keys are not part of YAML 1.2",
}
"""What keys of TRL, OpenRLHF, verl and the released SPPO code are called here."""


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
    """The key that tells the variants of a section apart; None where there is only one."""
    sections = variants(node)
    if len(sections) < 2:
        return None
    return next((tag for tag in TAGS if all("const" in s["properties"].get(tag, {}) for s in sections)), None)


def default_tag(node: Node) -> str | None:
    """The variant that holds where a section does not say."""
    default, tag = node.get("default"), tag_of(node)
    return default.get(tag) if tag and isinstance(default, dict) else None


def choices(node: Node) -> list[str]:
    """The values of the key that tells variants apart."""
    tag = tag_of(node)
    return [section["properties"][tag]["const"] for section in variants(node)] if tag else []


def section(node: Node, value: dict[str, Any]) -> Node | None:
    """The variant that `value` chooses; None where it chooses none, or the node is no section."""
    sections, tag = variants(node), tag_of(node)
    if tag is None:
        return sections[0] if sections else None
    chosen = value.get(tag, default_tag(node))
    return next((s for s in sections if s["properties"][tag]["const"] == chosen), None)


def child(node: Node, key: str | int, value: Any) -> Node:
    """The node below `node` at `key`; an empty one, which allows anything, where there is none."""
    if isinstance(key, str):
        found = section(node, value if isinstance(value, dict) else {})
        return found["properties"].get(key, {}) if found else _value_of_mapping(node)
    return next((option.get("items", {}) for option in options(node) if option.get("type") == "array"), {})


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


def all_keys(node: Node | None = None, prefix: str = "", variant: str | None = None) -> Iterator[Key]:
    """Every key, sections before what they hold, of every variant."""
    node = root() if node is None else node
    tag = tag_of(node)
    for part in variants(node):
        inside = part["properties"][tag]["const"] if tag else variant
        for name, below in part["properties"].items():
            yield Key(prefix + name, below, inside, name in part.get("required", []))
            yield from all_keys(below, f"{prefix}{name}.", inside)


def advice(path: Path) -> str:
    """What a person who wrote the unknown key `path` may have meant; empty if nothing comes near."""
    dotted, name = ".".join(map(str, path)), str(path[-1])
    known = list(all_keys())
    if kinds := [key.variant for key in known if key.path == dotted and key.variant]:
        place = ".".join(map(str, path[:-1]))
        hint = f"; else it is {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        return f"it belongs to another kind of {place}: {', '.join(dict.fromkeys(kinds))}{hint}"
    if any(key.path == name for key in known) and "." in name:
        return "dots work on the command line; in a file write nested sections"
    if name in ELSEWHERE:
        return f"here it is {ELSEWHERE[name]}"
    names = _nearest(dotted, name, list(dict.fromkeys(key.path for key in known)))
    return f"did you mean {' or '.join(names)}?" if names else ""


def _nearest(dotted: str, name: str, known: list[str]) -> list[str]:
    """Up to three known keys: the same name elsewhere, else a similar one here, else similar ones elsewhere."""
    last = {path: path.rpartition(".")[2] for path in known}
    if same := [path for path in known if last[path] == name]:
        return sorted(same, key=lambda path: -difflib.SequenceMatcher(None, path, dotted).ratio())[:3]
    parent = dotted.rpartition(".")[0]
    here = {last[path]: path for path in known if path.rpartition(".")[0] == parent}
    if similar := difflib.get_close_matches(name, here, n=1):
        return [here[similar[0]]]
    names = difflib.get_close_matches(name, set(last.values()), n=1, cutoff=0.7)
    return [path for path in known if last[path] in names][:3]


def describe() -> str:
    """Every key with its range, its default and what it means: the body of `--help`."""
    lines: list[str] = []
    for key in all_keys():
        kind = f"  [{key.variant}]" if key.variant else ""
        lines.append(f"{key.path}{kind}: {_summary(key)}")
        meaning = key.node.get("description") or next((s.get("description", "") for s in variants(key.node)), "")
        lines += textwrap.wrap(" ".join(meaning.split()), 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _summary(key: Key) -> str:
    if variants(key.node):
        tag = tag_of(key.node)
        return f"section, {tag} is one of {', '.join(choices(key.node))}" if tag else "section"
    default = "required" if key.required else f"default {shown(key.node.get('default'))}"
    return f"{in_words(key.node)}; {default}"


def shown(value: Any) -> str:
    """A value as a person would write it, in at most 80 characters."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
