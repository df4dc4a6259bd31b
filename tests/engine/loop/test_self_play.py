"""The loop over fake roles: it learns, it can be killed anywhere, and it ends with the same digest."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from actors.fakes import FakeGenerator, FakeLearner, letter_logps
from engine.errors import DataError, NonFiniteError, RunLockedError, StoreError, WeightsError
from engine.metrics.trackers import read_metrics
from engine.schema import COMPLETIONS, HELDOUT_WIN_RATES, REF_LOGPS
from engine.store import inspection
from engine.store.run import RunStore
from tests.runs import DyingDisk, Killed, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    return play(fake_config(tmp_path_factory.mktemp("undisturbed")))


def test_the_policy_gets_better_at_what_the_scorer_likes(undisturbed: Path) -> None:
    likes = [np.exp(letter_logps(undisturbed / p))[0] for p in ("start", "weights/001", "weights/002")]
    assert likes[0] == pytest.approx(1 / 8)
    assert likes[0] < likes[1] < likes[2]


def test_each_iteration_answers_with_the_weights_that_the_one_before_learned(undisturbed: Path) -> None:
    with RunStore(undisturbed) as store:
        for t in (0, 1):
            stamps = {w for table in store.tables(t, "completions", COMPLETIONS) for w in table["weights"].to_pylist()}
            assert stamps == {store.recorded_digest(t)}
        assert len({store.recorded_digest(v) for v in (0, 1, 2)}) == 3


def test_the_reference_is_the_policy_of_the_iteration(undisturbed: Path) -> None:
    with RunStore(undisturbed) as store:
        logps = letter_logps(undisturbed / "weights/001")
        row = next(row for table in store.tables(1, "ref_logps", REF_LOGPS) for row in table.to_pylist())
        expected = [sum(logps[i] for i in answer if i < 8) for answer in row["completion_token_ids"]]
        assert row["ref_logps"] == pytest.approx(expected, abs=1e-12)


def test_held_out_answers_of_all_versions_share_their_noise(undisturbed: Path) -> None:
    with RunStore(undisturbed) as store:
        seeds = [
            [t["seeds"].to_pylist() for t in store.tables(v, "heldout_completions", COMPLETIONS)] for v in (0, 1, 2)
        ]
        assert seeds[0] == seeds[1] == seeds[2]
        assert not list(store.tables(0, "heldout_win_rates", HELDOUT_WIN_RATES)), (
            "version 0 has no other version to be compared with"
        )
        assert len(list(store.tables(2, "heldout_win_rates", HELDOUT_WIN_RATES))) == 4


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = inspection.run_digest(undisturbed), len((undisturbed / "manifest.jsonl").read_text())
    play(fake_config(undisturbed.parent))
    assert (inspection.run_digest(undisturbed), len((undisturbed / "manifest.jsonl").read_text())) == before


def test_another_config_on_the_same_folder_is_refused_with_the_difference(undisturbed: Path) -> None:
    with pytest.raises(StoreError, match=r"algorithm\.eta: 1000\.0 -> 10\.0"):
        play(fake_config(undisturbed.parent, algorithm={"name": "sppo", "eta": 10.0}))


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": {"backend": "local", "placement": "colocated"}},
        {"generator": {"num_replicas": 1}},
        {"generator": {"num_replicas": 4}},
    ],
)
def test_where_and_how_many_roles_run_changes_nothing(undisturbed: Path, tmp_path: Path, changes: dict) -> None:
    assert inspection.run_digest(play(fake_config(tmp_path, **changes))) == inspection.run_digest(undisturbed)


def test_a_learning_rate_of_zero_leaves_every_version_the_same_and_the_run_goes_on(tmp_path: Path) -> None:
    still = {"batch_size": 2, "zero_stage": 0, "optimizer": {"lr": 0.0}}
    with RunStore(play(fake_config(tmp_path, learner=still))) as store:
        assert len({store.recorded_digest(version) for version in (0, 1, 2)}) == 1


def crash_points(config_folder: Path) -> int:
    """How many file operations an undisturbed run makes."""
    disk = DyingDisk(10**9)
    play(fake_config(config_folder), disk)
    return 10**9 - disk.left


@pytest.mark.parametrize("every", [311, pytest.param(19, marks=pytest.mark.real)])
def test_a_driver_that_dies_at_any_file_operation_loses_nothing(undisturbed: Path, tmp_path: Path, every: int) -> None:
    total = crash_points(tmp_path)
    assert total > 400
    expected = inspection.run_digest(undisturbed)
    for k in range(0, total, every):
        folder = tmp_path / str(k)
        with pytest.raises(Killed):
            play(fake_config(folder), DyingDisk(k))
        run = play(fake_config(folder))
        assert inspection.run_digest(run) == expected, f"killed at operation {k}"
        assert inspection.damages(run) == []
        assert not list(run.rglob("*.tmp")), f"killed at operation {k}"
        shutil.rmtree(folder)


def test_a_driver_that_dies_again_and_again_still_finishes(undisturbed: Path, tmp_path: Path) -> None:
    for deaths in range(20):  # noqa: B007 - counted on purpose
        try:
            run = play(fake_config(tmp_path), DyingDisk(97))
            break
        except Killed:
            continue
    assert deaths > 3
    assert inspection.run_digest(run) == inspection.run_digest(undisturbed)


def test_a_disk_that_fills_up_stops_the_run_by_name_and_it_goes_on_later(undisturbed: Path, tmp_path: Path) -> None:
    class Full(DyingDisk):
        def _count(self, operation: str, path: Path) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    for k in (3, 100, 250):
        folder = tmp_path / str(k)
        with pytest.raises(StoreError, match="No space left on device"):
            play(fake_config(folder), Full(k))
        assert inspection.run_digest(play(fake_config(folder))) == inspection.run_digest(undisturbed)


@pytest.mark.parametrize("stage", ["prompts", "completions", "scores", "selected", "ref_logps"])
def test_a_damaged_shard_of_an_unfinished_iteration_is_made_again(
    undisturbed: Path, tmp_path: Path, stage: str
) -> None:
    shutil.copytree(undisturbed.parent, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    _forget_the_end(run)
    victim = sorted((run / "tables" / "001" / stage).iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-9])
    assert inspection.run_digest(play(fake_config(tmp_path))) == inspection.run_digest(undisturbed)


def _forget_the_end(run: Path) -> None:
    """Remove the second iteration's weights and everything after them, as if the run had just reached them."""
    lines = (run / "manifest.jsonl").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if '"kind":"weights"' in line and '"version":2' in line)
    (run / "manifest.jsonl").write_text("".join(lines[:end]))


def test_damaged_weights_are_learned_again_from_the_committed_rows(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.parent, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    _forget_the_end(run)
    (run / "weights/001/model.safetensors").write_bytes(b"half")
    assert inspection.run_digest(play(fake_config(tmp_path))) == inspection.run_digest(undisturbed)


@pytest.mark.parametrize(
    "victim", ["weights/002/model.safetensors", "tables/002/heldout_win_rates", "tables/000/scores"]
)
def test_damage_to_a_finished_run_is_mended_by_the_same_command(undisturbed: Path, tmp_path: Path, victim: str) -> None:
    shutil.copytree(undisturbed.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / victim
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:-3])
    assert inspection.damages(tmp_path / "run")
    assert inspection.run_digest(play(fake_config(tmp_path))) == inspection.run_digest(undisturbed)
    assert inspection.damages(tmp_path / "run") == []


def test_a_version_learned_again_with_other_weights_replaces_what_the_former_ones_produced(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs sums are not always bit-equal: a version that is learned again may have other weights."""
    shutil.copytree(undisturbed.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run/weights/001/model.safetensors").write_bytes(b"half")
    original = FakeLearner._update

    def noisy(self: FakeLearner) -> dict[str, float]:
        metrics = original(self)
        self._logits[7] += 1e-9
        return metrics

    monkeypatch.setattr(FakeLearner, "_update", noisy)
    with RunStore(play(fake_config(tmp_path))) as store:
        stamps = {w for table in store.tables(1, "completions", COMPLETIONS) for w in table["weights"].to_pylist()}
        assert stamps == {store.recorded_digest(1)}
    assert inspection.run_digest(tmp_path / "run") != inspection.run_digest(undisturbed)


def test_another_scorer_on_a_started_run_is_refused(undisturbed: Path) -> None:
    with RunStore(undisturbed) as store, pytest.raises(StoreError, match="started with another scorer"):
        store.pin("scorer", "rule:other")


def test_answers_of_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeGenerator.generate

    def stale(self: FakeGenerator, *args: object, **options: object) -> object:
        table = original(self, *args, **options)
        return table.set_column(table.column_names.index("weights"), "weights", [["f" * 64] * table.num_rows])

    monkeypatch.setattr(FakeGenerator, "generate", stale)
    with pytest.raises(WeightsError, match="answered with weights ffffffffffff instead of version 0"):
        play(fake_config(tmp_path))


def test_a_generator_that_computes_something_else_is_refused_before_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.fakes.letter_logps", lambda folder: letter_logps(folder) + 0.5)
    with pytest.raises(WeightsError, match=r"log-probabilities differ from the learner's by 0\.5 nats"):
        play(fake_config(tmp_path))
    assert not list((tmp_path / "run/tables").rglob("completions/*"))


def test_a_loss_that_is_not_a_number_stops_the_run_and_no_weights_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FakeLearner.ref_logps
    monkeypatch.setattr(FakeLearner, "ref_logps", lambda self, rows: [[float("nan")] * 2 for _ in original(self, rows)])
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan; no update was made"):
        play(fake_config(tmp_path))
    assert not (tmp_path / "run/weights/001").exists()


def test_answers_that_are_all_equal_leave_nothing_to_learn_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGenerator, "_answer", lambda self, seed: [1, 2])
    with pytest.raises(DataError, match=r"no prompt is left to train on.*ties 8"):
        play(fake_config(tmp_path))


def test_the_ledger_of_each_stage_adds_up_to_the_iteration(undisturbed: Path) -> None:
    ends = [r for r in read_metrics(undisturbed / "metrics.jsonl") if r["kind"] == "iteration"]
    assert [r["iteration"] for r in ends] == [1, 2]
    for record in ends:
        for stage in ("completions", "scores", "selected", "ref_logps", "learn", "heldout_win_rates"):
            assert record[f"time/{stage}/busy"] + record[f"time/{stage}/waiting"] == record["time/wall"]


def test_a_second_driver_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunStore(tmp_path / "run"), pytest.raises(RunLockedError, match="in use by process"):
        play(fake_config(tmp_path))
