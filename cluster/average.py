"""From the versions of a run to one model whose weights are their mean.

That is a stand-in: the mixture of which the theory speaks picks one version per answer. Reads the run folder
only, so the run may be going on. Knows nothing of roles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cluster.merge import read_config, read_versions
from engine.errors import StoreError
from engine.store.adapters import check_base, is_adapter
from engine.store.disk import TEMPORARY, Disk
from engine.store.manifest import Record
from engine.store.weights import verify_weights

MARKER = "average.json"


def average_versions(run: Path, output: Path, first: int = 1, last: int | None = None) -> list[int]:
    """Write the mean of versions `first` to `last` (None: the run's last) to `output`, which must not exist.

    Adapters are merged first, each into a whole model beside `output` until the mean is written. Returns the
    versions. Raises StoreError where there is nothing to average, WeightsError where a version was altered.
    """
    records = read_versions(run)
    last = max(records, default=0) if last is None else last
    wanted = list(range(first, last + 1))
    if output.exists():
        raise StoreError(f"nothing was averaged: {output} exists already; name a new folder")
    if absent := [version for version in wanted if version not in records]:
        raise StoreError(f"nothing was averaged: {run} has no version {_listed(absent)}, only {_listed(records)}")
    if len(wanted) < 2:
        raise StoreError(f"nothing was averaged: versions {first} to {last} of {run} are fewer than two")
    _check(run, [records[version] for version in wanted], records[0])
    disk, part, scratch = Disk(), _beside(output, TEMPORARY), _beside(output, f".merged{TEMPORARY}")
    for folder in (part, scratch):
        disk.remove(folder)
    try:
        _write(run, [records[version] for version in wanted], records[0], scratch, part)
    finally:
        disk.remove(scratch)
    disk.publish(part, output)
    return wanted


def _check(run: Path, records: Sequence[Record], start: Record) -> None:
    """Every file's hash, before any of it is used; the start's too where adapters need it."""
    adapters = [run / record["folder"] for record in records if is_adapter(run / record["folder"])]
    for record in {r["version"]: r for r in (*records, *([start] if adapters else []))}.values():
        verify_weights(run / record["folder"], record["digest"])
    for folder in adapters:
        check_base(folder, start["digest"])


def _write(run: Path, records: Sequence[Record], start: Record, scratch: Path, part: Path) -> None:
    from actors.average import write_average

    folders = []
    for record in records:
        folder = run / record["folder"]
        if is_adapter(folder):
            from actors.lora_folder import merge_adapter

            whole = scratch / f"{record['version']:03d}"
            merge_adapter(read_config(run).model, run / start["folder"], folder, whole)
            folder = whole
        folders.append(folder)
    write_average(folders, part)
    told = {"what": "uniform mean of weights", "versions": {r["version"]: r["digest"] for r in records}}
    (part / MARKER).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _listed(versions: Sequence[int] | dict[int, Record]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"
