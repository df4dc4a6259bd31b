"""Inspect a run folder without owning it: its digest, its damages, its state.

Reads only, so that a run may be inspected while it is being written.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from engine.errors import KumiteError
from engine.store import manifest
from engine.store.disk import sha256_of
from engine.store.reader import current, load
from engine.store.weights import verify_weights


def load_records(folder: Path) -> list[manifest.Record]:
    """The records that are valid now. Raises StoreError if `folder` is not a run folder."""
    return list(current(load(folder)).values())


def run_digest(folder: Path) -> str:
    """One sha256 over everything that the run computed, independent of times, paths and the order of commits.

    Equal for a run that was killed and resumed and one that was not.
    """
    parts = []
    for record in load_records(folder):
        if record["kind"] == "shard":
            parts.append(f"shard {record['iteration']} {record['stage']} {record['shard']} {record['sha256']}")
        elif record["kind"] == "weights":
            parts.append(f"weights {record['version']} {record['digest']}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def damages(folder: Path) -> list[str]:
    """One sentence for every committed file or folder that is missing or changed."""
    sentences = []
    for record in load_records(folder):
        if record["kind"] == "shard":
            path = folder / record["file"]
            if not path.is_file():
                sentences.append(f"{record['file']} is missing")
            elif sha256_of(path) != record["sha256"]:
                sentences.append(f"{record['file']} is not what was committed ({record['bytes']:,} bytes then)")
        elif record["kind"] == "weights":
            try:
                verify_weights(folder / record["folder"], record["digest"])
            except KumiteError as error:
                sentences.append(f"weights version {record['version']}: {error}")
    return sentences


def state(folder: Path) -> dict[str, Any]:
    """Progress of a run: whether it is finished, its weights, its shards per stage, its checkpoints.

    Iterations are counted from 1, versions of the weights from 0.
    """
    records = load_records(folder)
    stages: dict[str, dict[str, int]] = {}
    for record in records:
        if record["kind"] == "shard":
            number = record["iteration"]
            name = f"version {number}" if record["of"] == "version" else f"iteration {number + 1}"
            counts = stages.setdefault(name, {})
            counts[record["stage"]] = counts.get(record["stage"], 0) + 1
    return {
        "finished": any(r["kind"] == "fact" and r["name"] == "finished" for r in records),
        "weights": {r["version"]: r["digest"] for r in records if r["kind"] == "weights"},
        "stages": {name: stages[name] for name in sorted(stages, key=_place)},
        "checkpoints": {r["iteration"] + 1: r["step"] for r in records if r["kind"] == "checkpoint"},
    }


def _place(name: str) -> tuple[str, int]:
    """Sorts "iteration 2" before "iteration 10"."""
    kind, number = name.split()
    return kind, int(number)
