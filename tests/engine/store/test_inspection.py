"""Inspection of run folders: valid records, damages, and one digest over everything."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.errors import StoreError
from engine.schema import AGREEMENT
from engine.store import inspection
from engine.store.run import RunStore


def commit(folder: Path, *shards: tuple[int, float]) -> None:
    with RunStore(folder) as store:
        for shard, value in shards:
            row = {"prompt_id": [str(shard)], "agreements": [value], "comparable": pa.array([1], pa.int32())}
            store.commit(0, "agreement", shard, pa.table(row), AGREEMENT)


def test_the_digest_does_not_depend_on_the_order_of_commits(tmp_path):
    commit(tmp_path / "a", (0, 1.0), (1, 2.0))
    commit(tmp_path / "b", (1, 2.0), (0, 1.0))
    assert inspection.run_digest(tmp_path / "a") == inspection.run_digest(tmp_path / "b")


def test_the_digest_leaves_out_what_was_replaced(tmp_path):
    commit(tmp_path / "a", (0, 1.0))
    commit(tmp_path / "b", (0, 7.0), (0, 1.0))
    assert inspection.run_digest(tmp_path / "a") == inspection.run_digest(tmp_path / "b")


@pytest.mark.parametrize("other", [[(0, 1.5)], [(1, 1.0)], [(0, 1.0), (1, 1.0)]])
def test_the_digest_depends_on_every_value_its_place_and_its_absence(tmp_path, other):
    commit(tmp_path / "a", (0, 1.0))
    commit(tmp_path / "b", *other)
    assert inspection.run_digest(tmp_path / "a") != inspection.run_digest(tmp_path / "b")


def test_iterations_are_listed_in_the_order_of_their_numbers(tmp_path):
    with RunStore(tmp_path) as store:
        for t in (10, 1, 9):
            store.commit(t, "agreement", 0, AGREEMENT.empty_table(), AGREEMENT)
    assert list(inspection.state(tmp_path)["stages"]) == ["iteration 2", "iteration 10", "iteration 11"]


def test_a_run_that_was_only_begun_has_nothing_and_is_not_finished(tmp_path):
    with RunStore(tmp_path) as store:
        store.record("prompts", shards=[])
    expected = {"finished": False, "weights": {}, "stages": {}, "checkpoints": {}}
    assert inspection.state(tmp_path) == expected
    assert inspection.damages(tmp_path) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"is not a run folder: it has no manifest\.jsonl"):
        inspection.state(tmp_path)
