"""One folder per run: what was computed and by which weights.

    runs/NAME/
      config.yaml  run.json  LOCK  manifest.jsonl  metrics.jsonl
      tables/<iteration>/<stage>/<shard>-<hash>.parquet
      weights/<version>/            a model folder, or an adapter of the start model in PEFT's format
      checkpoints/<iteration>/<step>/   the learner's own, while an iteration trains
      quarantine/                   files and folders that a hash did not confirm
      report/

A shard or a folder is committed once: written under a temporary name, made durable, renamed, then recorded in the
manifest with its hash. Readers accept nothing else, so a driver that dies at any moment loses only the work in flight.
Iterations are counted from 0 in methods and folder names, from 1 in messages.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StoreError
from engine.schema import conform
from engine.store.disk import TEMPORARY, Disk, RunLock, sha256_of
from engine.store.manifest import Manifest, Record
from engine.store.reader import Owner, Policy, RunReader, key_of, where
from engine.store.weights import check_base, is_adapter, verify_weights, weights_digest, write_checksums


class RunStore(RunReader):
    """The run folder, open for writing. One instance per folder; `close()` releases its lock.

    `note` receives a sentence whenever something is set aside or invalidated.
    """

    def __init__(self, folder: Path, disk: Disk | None = None, note: Callable[[str], None] = lambda text: None):
        folder.mkdir(parents=True, exist_ok=True)
        self.disk, self._note = disk or Disk(), note
        self._lock = RunLock(folder)
        self._manifest = Manifest(folder / "manifest.jsonl", self.disk)
        super().__init__(folder, self._manifest.records)
        self._sweep()

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Shards of tables

    def commit(
        self,
        iteration: int,
        stage: str,
        shard: int,
        table: pa.Table,
        schema: pa.Schema,
        *,
        of: Owner = "iteration",
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Write one shard durably and name it in the manifest, with `counts` beside it."""
        table = conform(table, schema, where(iteration, stage, shard, of))
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        name = f"tables/{iteration:03d}/{stage}/{shard:05d}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
        digest = self.disk.write(self.folder / name, data)
        self._add(kind="shard", of=of, iteration=iteration, stage=stage, shard=shard, file=name, sha256=digest,
                  rows=table.num_rows, bytes=len(data), counts=dict(counts or {}))  # fmt: skip
        self._confirmed.add(name)

    def adopt(self, other: RunReader, iteration: int, stage: str, shard: int, without: Collection[str] = ()) -> None:
        """Commit a shard of another run, byte for byte. The caller knows that this run would compute the same.

        without: names of counts that hold for the other run alone. Raises StoreError if the other run does not have the
        shard, or its bytes changed.
        """
        record = other.shard_record(iteration, stage, shard)
        data = (other.folder / record["file"]).read_bytes() if record else b""
        if record is None or hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise StoreError(f"{other.folder}: {where(iteration, stage, shard, 'iteration')} cannot be adopted")
        self.disk.write(self.folder / record["file"], data)
        counts = {name: count for name, count in record["counts"].items() if name not in without}
        self._add(**{**record, "counts": counts})
        self._confirmed.add(record["file"])

    # Weights

    def register_start(self, folder: Path, probe: Callable[[str, str], list[list[float]]]) -> Policy:
        """Record the start model as version 0. It stays where it is and must be the one that the run began with.

        `probe(folder, digest)` returns the learner's log-probabilities of it; called once per run. Raises WeightsError
        for another model.
        """
        record, path = self._index.get(("weights", 0)), str(folder.resolve())
        if record is None:
            digest = weights_digest(folder)
            record = self._add(kind="weights", version=0, folder=path, digest=digest, probe=probe(path, digest))
        elif record["folder"] != path:  # moved, e.g. downloaded again for another job: the same bytes are accepted
            verify_weights(folder, record["digest"])
            record = self._add(**{**record, "folder": path})
        policy = self.policy(0)
        assert policy is not None  # just recorded
        return policy

    def new_weights(self, version: int) -> Path:
        """An empty folder to save version `version` into; not valid before `commit_weights`."""
        return self._fresh(self.folder / "weights" / f"{version:03d}")

    def commit_weights(self, version: int, probe: list[list[float]], step: int | None = None) -> Policy:
        """Make the folder of `new_weights` durable and record it, with the optimizer step that made it.

        If the version had other weights before, everything that was made with those is invalidated.
        """
        path = self.folder / "weights" / f"{version:03d}"
        part = path.with_name(path.name + TEMPORARY)
        if is_adapter(part):
            check_base(part, self._index["weights", 0]["digest"])
        digest = write_checksums(part)
        self.disk.publish(part, path)
        name = path.relative_to(self.folder).as_posix()
        if any(r["digest"] != digest for r in self._manifest.records if key_of(r) == ("weights", version)):
            self._forget_from(version)
        self._add(kind="weights", version=version, folder=name, digest=digest, probe=probe, step=step)
        self._confirmed.add(digest)
        return self._policy(self._index["weights", version])

    # The learner's checkpoints within an iteration

    def new_checkpoint(self, iteration: int, step: int) -> Path:
        """An empty folder for the learner's state after `step` optimizer steps."""
        return self._fresh(self._checkpoint(iteration, step))

    def commit_checkpoint(self, iteration: int, step: int, keep: int | None = None) -> Path:
        """Record the checkpoint, then remove the iteration's other ones, except that of step `keep`."""
        path = self._checkpoint(iteration, step)
        part = path.with_name(path.name + TEMPORARY)
        if not any(p.is_file() for p in part.rglob("*")):
            raise StoreError(
                f"{part} is empty: the learner saved elsewhere. {self.folder} must be the same folder on every node"
            )
        files = {p.relative_to(part).as_posix(): sha256_of(p) for p in sorted(part.rglob("*")) if p.is_file()}
        self.disk.publish(part, path)
        name = path.relative_to(self.folder).as_posix()
        self._add(kind="checkpoint", iteration=iteration, step=step, folder=name, files=files)
        kept = [path, *([self._checkpoint(iteration, keep)] if keep is not None else [])]
        for other in path.parent.iterdir():
            if other not in kept:
                self.disk.remove(other)
        return path

    def checkpoints(self, iteration: int) -> dict[int, Path]:
        """{step: folder} of the iteration's checkpoints whose files are unchanged; damaged ones are set aside."""
        intact: dict[int, Path] = {}
        for key, record in list(self._index.items()):
            path = self.folder / record["folder"] if key[:2] == ("checkpoint", iteration) else None
            if path is None or not path.exists():  # removed when a later one was committed
                continue
            if all((path / f).is_file() and sha256_of(path / f) == h for f, h in record["files"].items()):
                intact[record["step"]] = path
            else:
                self._damaged(path, record)
        return intact

    def drop_checkpoints(self, iteration: int) -> None:
        """Remove the iteration's checkpoints. For use once its weights are committed."""
        folder = self.folder / "checkpoints" / f"{iteration:03d}"
        if folder.exists():
            self.disk.remove(folder)

    def _checkpoint(self, iteration: int, step: int) -> Path:
        return self.folder / "checkpoints" / f"{iteration:03d}" / f"{step:06d}"

    # Facts about the run

    def record(self, name: str, **values: Any) -> None:
        """Record a fact about the run, e.g. that all its prompts are committed."""
        self._add(kind="fact", name=name, **values)

    def pin(self, name: str, identity: str) -> None:
        """Record the identity of what the run uses as `name`, once. Raises StoreError if it has changed since."""
        pinned = self.recorded(f"pinned {name}")
        if pinned is None:
            self.record(f"pinned {name}", identity=identity)
        elif pinned["identity"] != identity:
            raise StoreError(
                f"{self.folder} was started with another {name} ({pinned['identity'][:160]}, now {identity[:160]}). "
                f"Restore it, or give the run another name="
            )

    @property
    def is_computed(self) -> bool:
        """Whether anything was computed yet: tables other than the input, and all that follows from them."""
        return any(record["kind"] == "shard" and record["of"] != "input" for record in self._index.values())

    def start_over(self) -> None:
        """Void every record of a folder in which nothing was computed. Its files are removed when it is opened next."""
        for key, record in list(self._index.items()):
            self._manifest.add(**{**record, "void": True})
            del self._index[key]

    def complete(self, iteration: int) -> None:
        """Record that the iteration is done, with the shards that belong to it and to the version that it learned."""
        shards = [
            key[1:]
            for key, record in self._index.items()
            if key[0] == "shard" and (key[1] == iteration or (key[1] == iteration + 1 and record["of"] == "version"))
        ]
        self.record(f"iteration {iteration}", shards=sorted(shards))

    def open_iterations(self, iterations: int) -> Iterator[int]:
        """Iterations that are not complete or no longer intact, in order, each checked when the one before is done."""
        for t in range(iterations):
            done = self.recorded(f"iteration {t}")
            intact = [self.has(*shard) for shard in done["shards"]] if done else [False]  # sets all damaged ones aside
            if not (all(intact) and self.policy(t + 1)):
                yield t

    # Inside

    def _add(self, **record: Any) -> Record:
        self._manifest.add(**record)
        self._index[key_of(record)] = record
        return record

    def _fresh(self, path: Path) -> Path:
        """An empty temporary folder for `path`. Removes what a crash left at either name, which no record names."""
        part = path.with_name(path.name + TEMPORARY)
        for leftover in (part, path):
            if leftover.exists():
                self.disk.remove(leftover)
        part.mkdir(parents=True)
        return part

    def _damaged(self, path: Path, record: Record) -> None:
        """Move what a hash does not confirm to quarantine/, never over another file, and void its record."""
        self._note(f"{path} is not what was committed; it is moved to quarantine/ and will be computed again")
        if path.exists():
            target = self.folder / "quarantine" / f"{len(self._manifest.records):05d}-{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.move(path, target)
        self._manifest.add(**{**record, "void": True})
        del self._index[key_of(record)]

    def _forget_from(self, version: int) -> None:
        """Void what the former weights of this version made: their answers would train the new policy wrongly."""
        self._note(
            f"version {version} has other weights than when it was first trained; everything made with the former ones "
            f"will be computed again"
        )
        for key, record in list(self._index.items()):
            kind, number = key[:2]
            computed = kind in ("weights", "checkpoint") or (kind == "shard" and record["of"] != "input")
            if computed and number >= version:
                self._manifest.add(**{**record, "void": True})
                del self._index[key]

    def _sweep(self) -> None:
        """Remove what a crash left: temporary names, and tables that no record names."""
        recorded = {r["file"] for r in self._index.values() if r["kind"] == "shard"}
        for path in sorted((self.folder / "tables").rglob("*")) + sorted(self.folder.rglob("*" + TEMPORARY)):
            inside = path.relative_to(self.folder).as_posix()
            if path.exists() and (path.name.endswith(TEMPORARY) or (path.is_file() and inside not in recorded)):
                self.disk.remove(path)
