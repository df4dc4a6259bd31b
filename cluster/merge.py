"""From a run that trained adapters to a whole model that transformers and vLLM load.

Reads the run folder only, so the run may be going on. Knows nothing of roles.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from engine.config.model import RunConfig
from engine.errors import StoreError
from engine.store import inspection
from engine.store.adapters import check_base, is_adapter
from engine.store.disk import TEMPORARY, Disk
from engine.store.manifest import Record
from engine.store.weights import verify_weights


def merge_last(run: Path, output: Path) -> int:
    """Write the run's last version to `output`, which must not exist; return the version.

    Raises StoreError where there is nothing to merge, WeightsError where adapter or base were altered.
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
    _write(read_config(run), base, folder, output)
    return last["version"]


def read_versions(run: Path) -> dict[int, Record]:
    """{version: its record} of a run folder's weights. Raises StoreError if it is none."""
    return {r["version"]: r for r in inspection.load_records(run) if r["kind"] == "weights"}


def read_config(run: Path) -> RunConfig:
    """The config that a run folder was begun with."""
    return RunConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))


def _write(config: RunConfig, base: Path, adapter: Path, output: Path) -> None:
    """Under a temporary name first: a folder with the final one is complete."""
    from actors.lora_folder import merge_adapter

    disk, part = Disk(), output.with_name(output.name + TEMPORARY)
    if part.exists():
        disk.remove(part)
    merge_adapter(config.model, base, adapter, part)
    disk.publish(part, output)
