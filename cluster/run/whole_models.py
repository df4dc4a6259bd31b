"""Whole models from a run folder: the last adapter merged into its base, or the mean of several versions.

The run folder is only read, so the run may still be in progress. The mean of weights is a practical stand-in: the
mixture in the theory of SPPO and SPAC picks one version per answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine.config.load import load
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.store import inspection
from engine.store.disk import TEMPORARY, Disk
from engine.store.manifest import Record
from engine.store.weights import check_base, is_adapter, verify_weights


def merge_last(run: Path, output: Path) -> int:
    """Write the run's last version to `output`, which must not exist; return the version.

    Raises StoreError if there is nothing to merge, WeightsError if adapter or base were changed.
    """
    versions = read_versions(run)
    if not versions or output.exists():
        reason = f"{output} exists already; name a new folder" if versions else f"{run} has no weights yet"
        raise StoreError(f"nothing was merged: {reason}")
    last, start = versions[max(versions)], versions[0]
    folder, base = run / last["folder"], run / start["folder"]
    if not is_adapter(folder):
        raise StoreError(f"nothing was merged: version {last['version']} is a whole model already, in {folder}")
    for record, path in ((last, folder), (start, base)):
        verify_weights(path, record["digest"])
    check_base(folder, start["digest"])
    _write_merged(read_config(run), base, folder, output)
    return last["version"]


def read_versions(run: Path) -> dict[int, Record]:
    """Return {version: record} for the weights of a run folder. Raises StoreError if it is not a run folder."""
    return {r["version"]: r for r in inspection.load_records(run) if r["kind"] == "weights"}


def read_config(run: Path) -> RunConfig:
    """Return the config with which the run began."""
    return load(run / "config.yaml")


def _write_merged(config: RunConfig, base: Path, adapter: Path, output: Path) -> None:
    """Write under a temporary name first, so that a folder with the final name is always complete."""
    disk, part = Disk(), output.with_name(output.name + TEMPORARY)
    if part.exists():
        disk.remove(part)
    merge_into(config, base, adapter, part)
    disk.publish(part, output)


def merge_into(config: RunConfig, base: Path, adapter: Path, folder: Path) -> None:
    """Write `base` with `adapter` merged to the new `folder`, in model.dtype."""
    from actors.export import merge_adapter

    merge_adapter(config.model, base, adapter, folder)


MARKER = "average.json"


def average_versions(run: Path, output: Path, first: int = 1, last: int | None = None) -> list[int]:
    """Write the mean of versions `first` to `last` (None: the run's last) to `output`, which must not exist.

    Adapters are merged first, each into a whole model beside `output` until the mean is written. Returns the
    versions. Raises StoreError if there is nothing to average, WeightsError if a version was changed.
    """
    records = read_versions(run)
    last = max(records, default=0) if last is None else last
    versions = list(range(first, last + 1))
    if output.exists():
        raise StoreError(f"nothing was averaged: {output} exists already; name a new folder")
    if missing := [version for version in versions if version not in records]:
        raise StoreError(f"nothing was averaged: {run} has no version {_listed(missing)}, only {_listed(records)}")
    if len(versions) < 2:
        raise StoreError(f"nothing was averaged: {first} to {last} are fewer than two versions of {run}")
    _check(run, [records[version] for version in versions], records[0])
    disk, part, scratch = Disk(), _beside(output, TEMPORARY), _beside(output, f".merged{TEMPORARY}")
    for folder in (part, scratch):
        disk.remove(folder)
    try:
        _write_average(run, [records[version] for version in versions], records[0], scratch, part)
    finally:
        disk.remove(scratch)
    disk.publish(part, output)
    return versions


def _check(run: Path, records: Sequence[Record], start: Record) -> None:
    """Check the hash of every file before it is used; those of the start model too if there are adapters."""
    adapters = [run / record["folder"] for record in records if is_adapter(run / record["folder"])]
    for record in {r["version"]: r for r in (*records, *([start] if adapters else []))}.values():
        verify_weights(run / record["folder"], record["digest"])
    for folder in adapters:
        check_base(folder, start["digest"])


def _write_average(run: Path, records: Sequence[Record], start: Record, scratch: Path, part: Path) -> None:
    from actors.export import write_average

    folders = []
    for record in records:
        folder = run / record["folder"]
        if is_adapter(folder):
            from actors.export import merge_adapter

            merged = scratch / f"{record['version']:03d}"
            merge_adapter(read_config(run).model, run / start["folder"], folder, merged)
            folder = merged
        folders.append(folder)
    write_average(folders, part)
    description = {"what": "uniform mean of weights", "versions": {r["version"]: r["digest"] for r in records}}
    (part / MARKER).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _listed(versions: Sequence[int] | dict[int, Record]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"
