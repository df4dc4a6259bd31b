"""The policies that `kumite eval` is given: run folders, model folders, adapters, hub ids, files of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from cluster.run.whole_models import read_config
from engine.errors import ConfigError, StoreError
from engine.evaluation.gate import best_version
from engine.store.disk import sha256_of
from engine.store.reader import Policy, RunReader
from engine.store.weights import is_adapter, read_adapter, weights_digest

SHARED = ("seed", "shard_size", "model", "sampling", "generator", "cluster", "tracking")
"""Sections that the evaluation of a run takes from the run, unless the file or the command line says otherwise."""


NO_MODEL: dict[str, Any] = {"model": {"path": "none"}}
"""Configuration of a source in which no policy is asked."""


@dataclass(frozen=True)
class Candidate:
    """One policy to evaluate."""

    name: str
    """As tables and files call it."""
    policy: Policy
    answers: Path | None = None
    """A file with its answers; None: it is asked."""


@dataclass(frozen=True)
class Source:
    """Policies that share a tokenizer and are served by the same engines, or one file of answers."""

    name: str
    """A file name, different for each source."""
    candidates: tuple[Candidate, ...]
    config: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration that follow from the source."""
    run: Path | None = None
    """The run that trained the policies; None: their training prompts are not known."""


def read_sources(arguments: Sequence[str], cache: Path) -> list[Source]:
    """The source of each argument; all mistakes are reported at once.

    RUN, RUN@2, RUN@1,3 or RUN@best; a folder or hub id of a model or a PEFT adapter; a file of answers, .json or
    .jsonl.
    cache: folder for downloads and for adapters that are merged into their bases.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for argument in arguments:
        try:
            sources.append(_read(argument, cache))
        except ConfigError as error:
            problems += error.problems
        except StoreError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return _distinct(sources)


def scorer_alone() -> Source:
    """No policy at all, for benchmarks of the annotator."""
    return Source("annotator", (Candidate("annotator", Policy(0, Path(), "none", [])),), NO_MODEL)


def _read(argument: str, cache: Path) -> Source:
    folder, _, versions = argument.rpartition("@") if re.search(r"@(best|[\d,]+)$", argument) else (argument, "", "")
    if (Path(folder) / "manifest.jsonl").is_file():
        return _from_run(Path(folder), versions)
    if argument.endswith((".json", ".jsonl")):
        return _from_answers(Path(argument))
    return _from_model(argument, cache)


def _from_run(folder: Path, versions: str) -> Source:
    run, config = RunReader(folder), read_config(folder)
    wanted = [best_version(run)[0]] if versions == "best" else [int(v) for v in versions.split(",") if v]
    candidates = []
    for version in wanted or run.versions:
        policy = run.policy(version)
        if policy is None:
            raise StoreError(f"{folder} has no version {version}, only {', '.join(map(str, run.versions)) or 'none'}")
        candidates.append(Candidate(f"{config.name}-{version}", replace(policy, probe_logps=[])))
    start = run.policy(0)
    if start is None:
        raise StoreError(f"{folder} has no weights yet")
    ranks = [read_adapter(c.policy.folder).rank for c in candidates if c.policy.base]
    shared = config.model_dump(include=set(SHARED))
    shared["model"]["path"] = str(start.folder)
    if config.evaluation:
        shared["evaluation"] = config.evaluation.model_dump(
            include={"scorer", "annotator", "benchmarks"}, exclude_none=True
        )
    name = "-".join([config.name, *versions.split(",")]) if versions else config.name
    return Source(name, tuple(candidates), shared | {"lora_rank": max(ranks, default=0)}, folder)


def _from_answers(path: Path) -> Source:
    if not path.is_file():
        raise StoreError(
            f"{path}: no such file; expected answers in the form of AlpacaEval's "
            f"model_outputs.json or FastChat's model_answer/<model>.jsonl"
        )
    policy = Policy(0, path, sha256_of(path), [])
    name = path.stem if path.stem != "model_outputs" else path.resolve().parent.name
    return Source(name, (Candidate(name, policy, path),), NO_MODEL)


def _from_model(argument: str, cache: Path) -> Source:
    from actors.hub import local_folder

    folder = local_folder(argument, key="POLICY", cache_dir=cache / "hub")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", argument.strip("/").rpartition("/")[2]) or "model"
    if is_adapter(folder):
        folder = _merged(folder, cache)
    policy = Policy(0, folder, weights_digest(folder), [])
    return Source(name, (Candidate(name, policy),), {"model": {"path": str(folder)}})


def _merged(adapter: Path, cache: Path) -> Path:
    """The adapter and its base as one model folder; written once for these files."""
    from actors.export import merge_peft
    from actors.hub import local_folder

    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    target = cache / "merged" / weights_digest(adapter)[:16]
    if not target.exists():
        merge_peft(local_folder(base or "", key=f"base model of {adapter}", cache_dir=cache / "hub"), adapter, target)
    return target


def _distinct(sources: list[Source]) -> list[Source]:
    """Number the names that are taken, so that each source has a folder and each policy a column of its own."""
    folders: set[str] = set()
    columns: set[str] = set()
    distinct = []
    for source in sources:
        renamed = tuple(replace(c, name=_free(c.name, columns)) for c in source.candidates)
        distinct.append(replace(source, name=_free(source.name, folders), candidates=renamed))
    return distinct


def _free(name: str, taken: set[str]) -> str:
    """`name`, or the first of name-2, name-3, ... that is not taken; it is taken then."""
    free = next(n for n in chain([name], (f"{name}-{i}" for i in count(2))) if n not in taken)
    taken.add(free)
    return free
