"""Runs of a sweep share what they would compute alike: a new run adopts shards of a sibling that has them already.

A shard is a function of its input shard, the weights that its role serves, and some sections of the configuration.
Where all of these are equal, the sibling's bytes are what this run would write, so its digest is that of a run alone.
Only the start policy's work can be equal: its held-out answers, its answers and their scores in the first iteration,
and the reference log-probabilities of the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.load import effective, load
from engine.config.run import RunConfig
from engine.errors import KumiteError
from engine.store.reader import RunReader
from engine.store.run import RunStore

ENGINE = ("seed", "shard_size", "model", "sampling", "generator")
"""What decides the answers of a policy, beside its weights and the prompts."""


@dataclass(frozen=True)
class Shareable:
    """A stage of the start policy, its input, and the sections of the configuration that decide its output."""

    stage: str
    reads: str
    sections: tuple[str, ...]
    pins: tuple[str, ...] = ()
    """Identities that the run must then use too, as recorded by RunStore.pin."""


TRAINING = ("learner.optimizer", "learner.schedule")
"""Parts of `learner` that change no log-probability of the start policy."""


def shareable_stages(config: RunConfig) -> tuple[Shareable, ...]:
    """The stages of the start policy, in dataflow order: an adopted shard may be the input of the next one."""
    selects_from = config.algorithm.selects_from(0)
    return (
        Shareable(
            "heldout_completions", "heldout_prompts", (*ENGINE, "evaluation.num_samples", "evaluation.temperature")
        ),
        Shareable("completions", "prompts", ENGINE),
        Shareable("null_model", "completions", ("seed", "scorer"), ("scorer",)),
        Shareable("scores", "completions", ("seed", "scorer"), ("scorer",)),
        Shareable("agreement", "scores", ("seed", "evaluation.scorer"), ("evaluator",)),
        Shareable("selected", selects_from, ("algorithm",)),
        Shareable("ref_logps", "selected", ("model", "algorithm.reference", "learner")),
    )


def adopt(store: RunStore, config: RunConfig, siblings: Iterable[Path]) -> dict[str, int]:
    """Adopt every shard that a sibling has and this run lacks; return {stage: shards adopted}.

    The prompts and the start policy of `store` must be committed. A sibling that cannot be read is passed over.
    """
    adopted: dict[str, int] = {}
    if config.policy_judges:
        return adopted  # the scores come from the policy, whose engine also holds the judge's settings
    for folder in siblings:
        try:
            sibling, other = RunReader(folder), load(folder / "config.yaml")
        except KumiteError:
            continue
        same_start = sibling.recorded_digest(0) == store.recorded_digest(0)
        if not same_start or not _same_pin(store, sibling, "tokenizer and chat template"):
            continue
        for shareable in shareable_stages(config):
            if all(_section(config, name) == _section(other, name) for name in shareable.sections):
                count = _adopt_stage(store, sibling, shareable)
                adopted[shareable.stage] = adopted.get(shareable.stage, 0) + count
    return {stage: count for stage, count in adopted.items() if count}


def _adopt_stage(store: RunStore, sibling: RunReader, shareable: Shareable) -> int:
    count = 0
    for shard in sibling.shards(0, shareable.stage):
        ours, theirs = (run.shard_record(0, shareable.reads, shard) for run in (store, sibling))
        same_input = ours is not None and theirs is not None and ours["sha256"] == theirs["sha256"]
        if not same_input or store.has(0, shareable.stage, shard) or not sibling.has(0, shareable.stage, shard):
            continue
        for name in shareable.pins:
            if pinned := sibling.recorded(f"pinned {name}"):
                store.pin(name, pinned["identity"])
        store.adopt(sibling, 0, shareable.stage, shard)
        count += 1
    return count


def _section(config: RunConfig, name: str) -> Any:
    """The values below a dotted name that decide results; null where there is none."""
    value: Any = effective(config)
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if name == "learner" and isinstance(value, dict):
        return {key: item for key, item in value.items() if f"learner.{key}" not in TRAINING}
    return value


def _same_pin(store: RunStore, sibling: RunReader, name: str) -> bool:
    ours, theirs = store.recorded(f"pinned {name}"), sibling.recorded(f"pinned {name}")
    return bool(ours and theirs and ours["identity"] == theirs["identity"])
