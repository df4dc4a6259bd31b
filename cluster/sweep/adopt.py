"""Runs of a sweep share what they would compute alike: a new run adopts shards of a sibling that has them already.

A shard is a function of its input shard, the weights that its role serves, and some sections of the configuration.
Where all of these are equal, the sibling's bytes are what this run would write, so its digest is that of a run alone.
Only the start policy's work can be equal: its answers to held-out prompts and benchmarks, its answers and their scores
in the first iteration, and the reference log-probabilities of the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.plan.workload import benchmark_names
from engine.config.load import effective, load
from engine.config.run import RunConfig
from engine.errors import KumiteError
from engine.loop.spending import PAID
from engine.store.reader import RunReader
from engine.store.run import RunStore

SERVED = "served"
"""Not a section: the rank of adapters and the length for which generators start their engines. Both follow from other
sections, and either makes vLLM compute log-probabilities in another way."""
ENGINE = ("seed", "shard_size", "model", "sampling", "generator", SERVED)
"""What decides the answers of a policy, beside its weights and the prompts."""
TRAINING = ("learner.optimizer", "learner.schedule")
"""Parts of `learner` that change no log-probability of the start policy."""
INPUTS: dict[str, tuple[str, ...]] = {
    "prompts": ("seed", "shard_size", "iterations", "prompts", "sampling", "evaluation.preferences"),
    "validation_pairs": ("seed", "shard_size", "iterations", "prompts", "sampling", "evaluation.preferences"),
    "heldout_prompts": ("seed", "shard_size", "evaluation.prompts", "sampling"),
}
"""Sections that decide an input; runs that differ in them may still have equal shards."""


@dataclass(frozen=True)
class Shareable:
    """A stage of the start policy, its input, and the sections of the configuration that decide its output."""

    stage: str
    reads: str
    sections: tuple[str, ...]
    pins: tuple[str, ...] = ()
    """Identities that the run must then use too, as recorded by RunStore.pin."""


def shareable_stages(config: RunConfig) -> list[Shareable]:
    """The stages of the start policy that the run has, in dataflow order, without benchmarks.

    An adopted shard may be the input of the next stage.
    """
    if config.policy_judges:
        return []  # the scores come from the policy, whose engine also holds the judge's settings
    found: list[Shareable] = []
    if config.evaluation and config.evaluation.prompts:
        sections = (*ENGINE, "evaluation.num_samples", "evaluation.temperature")
        found.append(Shareable("heldout_completions", "heldout_prompts", sections))
    reads, scores = "prompts", (("seed", "scorer"), ("scorer",))
    for stage in config.algorithm.stages(0):
        found.append(Shareable(stage, reads, *scores) if "scores" in stage else Shareable(stage, reads, ENGINE))
        if stage == "scores" and config.null_model:
            found.append(Shareable("null_model", reads, *scores))
        reads = stage
    reference = ("model", "algorithm.reference", "learner")
    found += [Shareable("selected", reads, ("algorithm",)), Shareable("ref_logps", "selected", reference)]
    if "scores" in config.algorithm.stages(0) and config.audits:
        found.append(Shareable("agreement", "scores", ("seed", "evaluation.scorer"), ("evaluator",)))
    if config.preferences:
        found.append(Shareable("validation_rows", "validation_pairs", ("algorithm",)))
        found.append(Shareable("validation_ref_logps", "validation_rows", reference))
    return found


def adopt(store: RunStore, config: RunConfig, siblings: Iterable[Path]) -> dict[str, int]:
    """Adopt every shard that a sibling has and this run lacks; return {stage: shards adopted}.

    The prompts and the start policy of `store` must be committed. A sibling that cannot be read is passed over.
    """
    adopted = Counter[str]()
    for folder in siblings:
        try:
            sibling, other = RunReader(folder), load(folder / "config.yaml")
        except KumiteError:
            continue
        same_start = sibling.recorded_digest(0) == store.recorded_digest(0)
        if not same_start or not _same_pin(store, sibling, "tokenizer and chat template"):
            continue
        for shareable in shareable_stages(config):
            if _equal(config, other, shareable.sections):
                adopted[shareable.stage] += _adopt_stage(store, sibling, shareable)
        for name in benchmark_names(config):
            adopted += _adopt_benchmark(store, sibling, config, other, name)
    return {stage: count for stage, count in adopted.items() if count}


def is_computing(config: RunConfig, other: RunConfig, folder: Path) -> bool:
    """Whether a run of `other` in `folder`, which is going on, still computes what a run of `config` could adopt."""
    try:
        run = RunReader(folder)
    except KumiteError:
        run = None  # it has only just begun
    equal = {name: _equal(config, other, sections) for name, sections in INPUTS.items()}
    for shareable in shareable_stages(config):
        equal[shareable.stage] = equal[shareable.reads] and _equal(config, other, shareable.sections)
        if equal[shareable.stage] and not (run and _is_complete(run, shareable.stage, shareable.reads)):
            return True
    names = [name for name in benchmark_names(config) if _equal(config, other, _benchmark_sections(name))]
    return any(not (run and _is_measured(run, name)) for name in names)


def _is_measured(run: RunReader, benchmark: str) -> bool:
    failed = run.recorded(f"{benchmark} failed for version 0")
    return failed is not None or bool(run.shards(0, f"{benchmark}_results"))


def _is_complete(run: RunReader, stage: str, reads: str) -> bool:
    return run.recorded("prompts") is not None and run.shards(0, stage) == run.shards(0, reads) != []


def _adopt_stage(store: RunStore, sibling: RunReader, shareable: Shareable) -> int:
    numbers = [
        shard
        for shard in sibling.shards(0, shareable.stage)
        if _same_shard(store, sibling, shareable.reads, shard) and not store.has(0, shareable.stage, shard)
    ]
    return _adopt_shards(store, sibling, shareable.stage, numbers, shareable.pins)


def _adopt_benchmark(
    store: RunStore, sibling: RunReader, config: RunConfig, other: RunConfig, name: str
) -> Counter[str]:
    """Adopt what a benchmark found about the start policy, as a whole or not at all; {stage: shards adopted}."""
    adopted = Counter[str]()
    results, read = f"{name}_results", f"{name}_input"
    numbers = store.shards(0, read)
    same = numbers == sibling.shards(0, read) and all(_same_shard(store, sibling, read, n) for n in numbers)
    if not same or not _equal(config, other, _benchmark_sections(name)) or store.has(0, results, 0):
        return adopted
    stages = [stage for stage in sibling.stages("version") if stage.startswith(f"{name}_")]
    shards = [(stage, n) for stage in stages for n in sibling.shards(0, stage)]
    if (results, 0) in shards and all(sibling.has(0, stage, n) for stage, n in shards):
        for stage in stages:
            missing = [n for n in sibling.shards(0, stage) if not store.has(0, stage, n)]
            adopted[stage] += _adopt_shards(store, sibling, stage, missing, (config.annotating_role,))
    return adopted


def _benchmark_sections(name: str) -> tuple[str, ...]:
    return (*ENGINE, f"evaluation.benchmarks.{name}", "evaluation.annotator", "evaluation.scorer", "scorer")


def _adopt_shards(
    store: RunStore, sibling: RunReader, stage: str, numbers: Iterable[int], pins: tuple[str, ...]
) -> int:
    """Adopt those that are undamaged; what their judge was paid for, the sibling has paid.

    Nothing is adopted from a sibling whose scorer is another one than that which this run has used already.
    """
    used = {name: store.recorded(f"pinned {name}") for name in pins}
    if any(record and not _same_pin(store, sibling, name) for name, record in used.items()):
        return 0
    count = 0
    for number in numbers:
        if not sibling.has(0, stage, number):
            continue
        for name in pins:
            if pinned := sibling.recorded(f"pinned {name}"):
                store.pin(name, pinned["identity"])
        store.adopt(sibling, 0, stage, number, without=PAID)
        count += 1
    return count


def _same_shard(store: RunReader, sibling: RunReader, stage: str, number: int) -> bool:
    ours, theirs = (run.shard_record(0, stage, number) for run in (store, sibling))
    return ours is not None and theirs is not None and ours["sha256"] == theirs["sha256"]


def _equal(config: RunConfig, other: RunConfig, sections: Iterable[str]) -> bool:
    return all(_section(config, name) == _section(other, name) for name in sections)


def _section(config: RunConfig, name: str) -> Any:
    """The values below a dotted name that decide results; null where there is none."""
    if name == SERVED:
        return config.served_rank, config.benchmarks.room
    value: Any = effective(config)
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if name == "learner" and isinstance(value, dict):
        return {key: item for key, item in value.items() if f"learner.{key}" not in TRAINING}
    return value


def _same_pin(store: RunStore, sibling: RunReader, name: str) -> bool:
    ours, theirs = store.recorded(f"pinned {name}"), sibling.recorded(f"pinned {name}")
    return bool(ours and theirs and ours["identity"] == theirs["identity"])
