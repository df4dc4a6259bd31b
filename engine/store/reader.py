"""A run folder, read without owning it: also while a run writes to it. engine/store/run.py adds the writing.

Readers accept what the manifest names and a hash confirms, nothing else.
Iterations are counted from 0 in methods and folder names, from 1 in messages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StoreError, WeightsError
from engine.schema import conform
from engine.store import manifest
from engine.store.disk import sha256_of
from engine.store.manifest import Record
from engine.store.weights import is_adapter, verify_weights

Owner = Literal["input", "iteration", "version"]
"""What a shard belongs to: the run's input, an iteration, or a version of the policy, whose number it then has."""


@dataclass(frozen=True)
class Policy:
    """One version of the weights. Version 0 is the start model, version t + 1 what iteration t learned."""

    version: int
    folder: Path
    digest: str
    probe_logps: list[list[float]]
    """The learner's per-token log-probabilities of the probe batch, in nats; generators must reproduce them."""
    base: Path | None = None
    """The start model, where `folder` holds an adapter of it; None: `folder` is a whole model."""


class RunReader:
    """The committed content of a run folder, as it was when this was constructed."""

    def __init__(self, folder: Path, records: list[Record] | None = None):
        """records: the manifest's; None: read them. Raises StoreError if `folder` is not a run folder."""
        self.folder = folder
        self._index = current(load(folder) if records is None else records)
        self._confirmed: set[str] = set()

    def has(self, iteration: int, stage: str, shard: int) -> bool:
        """Whether the shard is committed and its bytes are unchanged. A store sets a damaged shard aside."""
        record = self._index.get(("shard", iteration, stage, shard))
        if record is None:
            return False
        if record["file"] in self._confirmed:
            return True
        path = self.folder / record["file"]
        if path.is_file() and sha256_of(path) == record["sha256"]:
            self._confirmed.add(record["file"])
            return True
        self._damaged(path, record)
        return False

    def read(self, iteration: int, stage: str, shard: int, schema: pa.Schema) -> pa.Table:
        """Return a committed shard, confirmed by its hash. Raises StoreError if there is none."""
        if not self.has(iteration, stage, shard):
            missing = f"{stage} of iteration {iteration + 1} (or version {iteration}), shard {shard}"
            what = "not what was committed" if ("shard", iteration, stage, shard) in self._index else "not committed"
            raise StoreError(f"{self.folder}: {missing} is {what}; run the same command again to compute it")
        record = self._index["shard", iteration, stage, shard]
        data = (self.folder / record["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise StoreError(f"{self.folder / record['file']} changed while the run was using it")
        # A shard is small: starting threads costs more than they save.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return conform(table, schema, where(iteration, stage, shard, record["of"]))

    def shards(self, iteration: int, stage: str) -> list[int]:
        """Numbers of the stage's recorded shards, in order."""
        return sorted(key[3] for key in self._index if key[:3] == ("shard", iteration, stage))

    def stages(self, of: Owner) -> list[str]:
        """Names of the recorded stages whose shards belong to `of`, in the order in which they were first written."""
        return list(dict.fromkeys(key[2] for key, record in self._index.items() if record.get("of") == of))

    def owners(self, stage: str) -> list[int]:
        """Iterations or versions of which the stage has recorded shards, in order."""
        return sorted({key[1] for key in self._index if key[0] == "shard" and key[2] == stage})

    def tables(self, iteration: int, stage: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """The stage's committed shards in order, read one at a time."""
        return (self.read(iteration, stage, shard, schema) for shard in self.shards(iteration, stage))

    def shard_record(self, iteration: int, stage: str, shard: int) -> Record | None:
        """The record of a committed shard, with its `sha256`; its bytes are not read. None if there is none."""
        return self._index.get(("shard", iteration, stage, shard))

    def counts(self, iteration: int, stage: str) -> dict[str, int]:
        """Sum over the committed shards of a stage of what was counted; empty where there is no shard."""
        total: Counter[str] = Counter()
        for shard in self.shards(iteration, stage):
            total.update(self._index["shard", iteration, stage, shard]["counts"])
        return dict(total)

    def policy(self, version: int) -> Policy | None:
        """A committed version whose files are unchanged; None if there is none.

        A store sets a damaged version aside, so that its iteration is repeated. A damaged start model raises
        WeightsError.
        """
        record = self._index.get(("weights", version))
        if record is None:
            return None
        policy = self._policy(record)
        if policy.digest in self._confirmed:
            return policy
        try:
            verify_weights(policy.folder, policy.digest)
        except WeightsError:
            if version == 0:
                raise
            self._damaged(policy.folder, record)
            return None
        self._confirmed.add(policy.digest)
        return policy

    @property
    def versions(self) -> list[int]:
        """The recorded versions of the policy, in order; their files are not read."""
        return sorted(key[1] for key in self._index if key[0] == "weights")

    def recorded_digest(self, version: int) -> str | None:
        """Recorded digest of a version; its files are not read. None if there is none."""
        record = self._index.get(("weights", version))
        return record["digest"] if record else None

    def trained_steps(self, version: int) -> int | None:
        """The optimizer step of its iteration whose weights the version has; None if that is not recorded."""
        record = self._index.get(("weights", version))
        return record.get("step") if record else None

    def recorded(self, name: str) -> Record | None:
        """The newest fact recorded under `name`; None if there is none."""
        return self._index.get(("fact", name))

    def _policy(self, record: Record) -> Policy:
        folder = self.folder / record["folder"]
        base = self.folder / self._index["weights", 0]["folder"] if is_adapter(folder) else None
        return Policy(record["version"], folder, record["digest"], record["probe"], base)

    def _damaged(self, path: Path, record: Record) -> None:
        """Called for a file or folder that its hash does not confirm. A reader leaves it where it is."""


def load(folder: Path) -> list[Record]:
    """All records of a run folder, void ones too. Raises StoreError if it is none."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise StoreError(f"{folder} is not a run folder: it has no manifest.jsonl")
    return manifest.read(path)[0]


def current(records: list[Record]) -> dict[tuple[Any, ...], Record]:
    """{key: record} of the valid records: the newest of each key, unless it is void."""
    if any(record["kind"] == "mark" or (record["kind"] == "shard" and "of" not in record) for record in records):
        raise StoreError(
            "this run folder was written by an earlier version of Kumite, whose records had other names; continue it "
            "with that version, or give the run another name="
        )
    newest = {key_of(record): record for record in records}
    return {key: record for key, record in newest.items() if not record.get("void")}


def key_of(record: Record) -> tuple[Any, ...]:
    """What a record is about, e.g. ("shard", 0, "scores", 3); a newer record with the same key replaces it."""
    parts = {
        "shard": ("iteration", "stage", "shard"),
        "weights": ("version",),
        "checkpoint": ("iteration", "step"),
        "fact": ("name",),
    }[record["kind"]]
    return (record["kind"], *(record[p] for p in parts))


def where(iteration: int, stage: str, shard: int, of: Owner) -> str:
    """A shard in words, for messages."""
    return f"{f'version {iteration}' if of == 'version' else f'iteration {iteration + 1}'}, {stage}, shard {shard}"
