"""The run folder keeps exactly what was committed."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from actors.fakes import make_fake_policy
from engine.errors import RunLockedError, SchemaError, StoreError, WeightsError
from engine.schema import AGREEMENT
from engine.store import inspection, manifest
from engine.store.disk import Disk, owner_of
from engine.store.reader import RunReader
from engine.store.run import RunStore


def agreement_table(count: int) -> pa.Table:
    columns = [[f"p{i}" for i in range(count)], [0.5] * count, [1] * count]
    return pa.table(columns, schema=AGREEMENT)


def commit(store: RunStore, shard: int, count: int = 3) -> Path:
    store.commit(0, "agreement", shard, agreement_table(count), AGREEMENT)
    return store.folder / next(r["file"] for r in store._index.values() if r.get("shard") == shard)


def test_a_committed_shard_is_there_after_reopening(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        commit(store, 4)
    with RunStore(tmp_path) as store:
        assert store.has(0, "agreement", 4)
        assert not store.has(0, "agreement", 5)
        assert store.read(0, "agreement", 4, AGREEMENT).equals(agreement_table(3))
        assert store.shards(0, "agreement") == [4]


def test_a_table_with_another_shape_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        with pytest.raises(SchemaError, match=r"agreement, shard 0: missing columns \['comparable'\]"):
            store.commit(0, "agreement", 0, agreement_table(3).drop_columns(["comparable"]), AGREEMENT)
        assert not list(tmp_path.rglob("*.parquet"))


def test_reading_what_was_never_committed_says_what_to_do(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store, pytest.raises(StoreError, match="shard 2 is not committed; run the same command"):
        store.read(0, "agreement", 2, AGREEMENT)


def test_a_reader_refuses_a_damaged_shard_and_leaves_it_where_it_is(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.commit(0, "agreement", 0, agreement_table(3), AGREEMENT)
    (path,) = (tmp_path / "tables/000/agreement").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="shard 0 is not what was committed"):
        RunReader(tmp_path).read(0, "agreement", 0, AGREEMENT)
    assert path.exists()


def test_a_reader_lists_the_stages_of_iterations_and_of_versions(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.commit(1, "b", 0, agreement_table(3), AGREEMENT)
        store.commit(0, "a", 0, agreement_table(3), AGREEMENT, of="version")
        store.commit(1, "a", 0, agreement_table(3), AGREEMENT, of="version")
    reader = RunReader(tmp_path)
    assert (reader.stages("iteration"), reader.stages("version"), reader.stages("input")) == (["b"], ["a"], [])


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_truncated_shard_is_set_aside_and_made_again(tmp_path: Path, keep: int) -> None:
    with RunStore(tmp_path) as store:
        path = commit(store, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    notes: list[str] = []
    with RunStore(tmp_path, note=notes.append) as store:
        assert not store.has(0, "agreement", 0)
        assert "is not what was committed" in notes[0]
        commit(store, 0)
        assert store.has(0, "agreement", 0)
    assert path.read_bytes() == whole
    assert next((tmp_path / "quarantine").iterdir()).read_bytes() == whole[:keep]


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        path = commit(store, 0)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert inspection.damages(tmp_path) == [
            f"{path.relative_to(tmp_path)} is not what was committed ({len(whole):,} bytes then)"
        ]
    path.write_bytes(whole)
    assert inspection.damages(tmp_path) == []


def test_leftovers_of_a_crash_are_removed_and_recorded_files_stay(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        kept = commit(store, 0)
    orphan = kept.with_name("00001-0123456789ab.parquet")
    orphan.write_bytes(b"renamed, but never named")
    half = kept.with_name("00002-0123456789ab.parquet.tmp")
    half.write_bytes(b"half")
    (tmp_path / "weights" / "001.tmp").mkdir(parents=True)
    with RunStore(tmp_path):
        assert kept.exists()
        assert not orphan.exists() and not half.exists() and not (tmp_path / "weights" / "001.tmp").exists()


def test_an_incomplete_last_line_of_the_manifest_is_dropped_as_the_leftover_of_a_crash(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        commit(store, 0)
        commit(store, 1)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])
    with RunStore(tmp_path) as store:
        assert store.has(0, "agreement", 0)
        assert not store.has(0, "agreement", 1)
        commit(store, 1)
    with RunStore(tmp_path) as store:
        assert store.shards(0, "agreement") == [0, 1]


def test_damage_inside_the_manifest_stops_the_run_and_names_the_line(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        commit(store, 0)
        commit(store, 1)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"rows":3', '"rows":4', 1))
    with pytest.raises(StoreError, match=r"manifest.jsonl:1: this line was altered"):
        RunStore(tmp_path)


def test_two_drivers_cannot_share_a_folder(tmp_path: Path) -> None:
    with RunStore(tmp_path), pytest.raises(RunLockedError, match=r"in use by process \d+ on .*, for \d+ s"):
        RunStore(tmp_path)
    RunStore(tmp_path).close()


class FullDisk(Disk):
    """A disk that is full from its k-th operation on."""

    def __init__(self, k: int):
        super().__init__(self._count)
        self.left = k

    def _count(self, operation: str, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_costs_only_the_current_shard(tmp_path: Path) -> None:
    operations = 0
    for k in range(100):
        folder = tmp_path / str(k)
        with RunStore(folder) as store:
            commit(store, 0)
        try:
            with RunStore(folder, disk=FullDisk(k)) as store:
                commit(store, 1)
        except StoreError as error:
            operations += 1
            assert "No space left on device" in str(error) and "bytes)" in str(error)
        else:
            break
        with RunStore(folder) as store:
            assert store.has(0, "agreement", 0)
            commit(store, 1)
            assert inspection.damages(folder) == []
    assert operations == 7, "write, fsync, rename, fsync of the folder; append, fsync, fsync of the folder"


def test_weights_become_a_version_once_and_keep_their_digest(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        make_fake_policy(store.new_weights(1), [1.0] * 8)
        assert store.policy(1) is None, "a folder counts only once it is committed"
        policy = store.commit_weights(1, [[-1.0]])
        assert policy.folder == tmp_path / "weights" / "001" and policy.probe_logps == [[-1.0]]
    with RunStore(tmp_path) as store:
        assert store.policy(1) == policy


def test_damaged_weights_that_the_run_trained_are_set_aside(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        make_fake_policy(store.new_weights(1))
        policy = store.commit_weights(1, [])
    (policy.folder / "model.safetensors").write_bytes(b"half-written")
    notes: list[str] = []
    with RunStore(tmp_path, note=notes.append) as store:
        assert store.policy(1) is None
        assert "is not what was committed" in notes[0]
        make_fake_policy(store.new_weights(1))
        assert store.commit_weights(1, []) == policy


def test_a_start_model_that_changed_is_refused_and_left_alone(tmp_path: Path) -> None:
    start = make_fake_policy(tmp_path / "start")
    with RunStore(tmp_path / "run") as store:
        first = store.register_start(start, lambda folder, digest: [[-2.0]])
        assert store.register_start(start, lambda folder, digest: [[0.0]]) == first, "the probe is taken once"
    save_file({"logits": np.ones(8)}, start / "model.safetensors")
    with RunStore(tmp_path / "run") as store, pytest.raises(WeightsError, match=r"model\.safetensors"):
        store.register_start(start, lambda folder, digest: [])


def test_a_checkpoint_replaces_its_predecessor_and_is_used_only_if_all_files_are_intact(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        for step in (10, 20):
            (store.new_checkpoint(0, step) / "state").write_bytes(b"x" * step)
            store.commit_checkpoint(0, step)
        assert store.checkpoints(0) == {20: tmp_path / "checkpoints/000/000020"}
        assert not (tmp_path / "checkpoints/000/000010").exists()
    (tmp_path / "checkpoints/000/000020/state").write_bytes(b"x")
    with RunStore(tmp_path) as store:
        assert store.checkpoints(0) == {}


def test_the_checkpoint_of_the_best_step_is_kept_beside_the_newest(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        for step in (10, 20, 30):
            (store.new_checkpoint(0, step) / "state").write_bytes(b"x" * step)
            store.commit_checkpoint(0, step, keep=10)
        assert sorted(store.checkpoints(0)) == [10, 30]
    assert inspection.state(tmp_path)["checkpoints"] == {1: 30}
    with RunStore(tmp_path) as store:
        store.drop_checkpoints(0)
        assert store.checkpoints(0) == {}


def test_the_digest_depends_on_content_and_not_on_the_order_of_commits(tmp_path: Path) -> None:
    for name, order in (("a", [0, 1]), ("b", [1, 0])):
        with RunStore(tmp_path / name) as store:
            for shard in order:
                commit(store, shard, count=shard + 1)
    assert inspection.run_digest(tmp_path / "a") == inspection.run_digest(tmp_path / "b")
    with RunStore(tmp_path / "b") as store:
        commit(store, 2)
    assert inspection.run_digest(tmp_path / "a") != inspection.run_digest(tmp_path / "b")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a run folder"):
        inspection.run_digest(tmp_path)


def test_the_lock_file_names_the_owner(tmp_path: Path) -> None:
    with RunStore(tmp_path):
        assert set(json.loads((tmp_path / "LOCK").read_text())) == {"host", "pid", "since"}
        assert "process" in (owner_of(tmp_path) or "")
    assert owner_of(tmp_path) is None


@pytest.mark.parametrize(
    "record", [{"kind": "mark", "name": "prompts"}, {"kind": "shard", "iteration": 0, "stage": "scored", "shard": 0}]
)
def test_a_run_folder_of_an_earlier_version_is_refused_by_name(tmp_path: Path, record: dict) -> None:
    (tmp_path / "manifest.jsonl").write_text(manifest.encode(record) + "\n")
    with pytest.raises(StoreError, match="written by an earlier version of Kumite"):
        RunStore(tmp_path)
