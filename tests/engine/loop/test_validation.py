"""Validation in the loop over fake roles: what is measured, when training ends, what is kept, what a crash costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.fakes import letter_logps
from engine.config.run import RunConfig
from engine.errors import DataError
from engine.evaluation.preferences import Validation
from engine.metrics.trackers import read_metrics
from engine.schema import REF_LOGPS, VALIDATION
from engine.store import inspection
from engine.store.disk import Disk
from engine.store.run import RunStore
from tests.runs import DyingDisk, Killed, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

TRAINING = [("aab" if i % 4 else "bbc", "bcc" if i % 3 else "abd") for i in range(12)]
HELD_OUT = [("aad" if i % 3 else "bd", "bb" if i % 2 else "cca") for i in range(6)]
IPO = {"name": "dpo", "data": "dataset", "losses": {"ipo": 1}}


SOURCES: dict[str, str] = {}
"""The two preference sets, by name; written once, because a run pins the path of its sources."""


@pytest.fixture(scope="module", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sources")
    for name, start, pairs in (("training", "", TRAINING), ("held out", "h", HELD_OUT)):
        rows = [{"prompt": f"{start}{i}?", "chosen": a, "rejected": b} for i, (a, b) in enumerate(pairs)]
        SOURCES[name] = str(folder / f"{name}.jsonl")
        Path(SOURCES[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: Path, learner: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """Ten steps per iteration, validated after every second one. The loss is best after step 8, and after 4 it is
    worse than after 2. Checkpoints are due after 3, 6 and 9."""
    values = {
        "batch_size": 2,
        "checkpoint_every": 3,
        "evaluate_every": 2,
        "zero_stage": 0,
        "optimizer": {"name": "adamw", "lr": 0.3},
        "schedule": {"max_steps": 10},
    }
    whole = {
        "prompts": {"source": SOURCES["training"], "use": "all"},
        "evaluation": {"preferences": {"source": SOURCES["held out"]}},
        "algorithm": IPO,
        "scorer": None,
        "learner": values | (learner or {}),
    }
    return fake_config(folder, **(whole | changes))


def losses(run: Path, iteration: int = 1) -> dict[int, float]:
    """{step: validation loss} as metrics.jsonl has it."""
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "step" and r["iteration"] == iteration]
    return {r["step"]: r["eval/loss"] for r in records if "eval/loss" in r}


def end_of(run: Path) -> dict[str, Any]:
    """The metrics of the first iteration."""
    return next(r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "iteration")


def notes(run: Path) -> str:
    return "\n".join(r["text"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "note")


@pytest.fixture(scope="module")
def watched(sources: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(config(tmp_path_factory.mktemp("watched") / "runs"))


@pytest.fixture(scope="module")
def kept(sources: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(config(tmp_path_factory.mktemp("kept") / "runs", {"keep_best_step": "loss"}))


def test_the_learner_is_validated_every_n_steps_and_after_the_last(watched: Path, tmp_path: Path) -> None:
    assert list(losses(watched)) == [2, 4, 6, 8, 10]
    assert list(losses(play(config(tmp_path / "a", {"evaluate_every": 4})))) == [4, 8, 10]
    assert list(losses(play(config(tmp_path / "b", {"evaluate_every": None})))) == [10]


def test_a_validation_is_the_loss_of_the_weights_at_that_step(watched: Path) -> None:
    """Recomputed from the published weights with the loss itself."""
    import torch

    from actors.learner.forward import batches_of

    with RunStore(watched) as store:
        rows = [row for table in store.tables(0, "validation_ref_logps", REF_LOGPS) for row in table.to_pylist()]
        logps = letter_logps(watched / "weights/001")
        answers = [ids for row in rows for ids in row["completion_token_ids"]]
        values = torch.tensor([float(sum(logps[i] for i in ids if i < 8)) for ids in answers])
        (batch,) = batches_of(rows, values)
        expected = config(watched.parent).algorithm.loss(batch).mean().item()
        table = store.read(0, "validation", 10, VALIDATION)
    assert Validation(table).loss == pytest.approx(expected, rel=1e-6)
    end = end_of(watched)
    assert end["eval/loss"] == losses(watched)[10]
    assert end["eval/rewards/accuracies_low"] <= end["eval/rewards/accuracies"] <= end["eval/rewards/accuracies_high"]


def test_watching_changes_nothing_that_is_learned(watched: Path, tmp_path: Path) -> None:
    unwatched = play(config(tmp_path / "runs", {"evaluate_every": None}, evaluation=None))
    weights = [inspection.state(run)["weights"] for run in (watched, unwatched)]
    assert weights[0] == weights[1]


def test_an_offline_run_that_only_validates_needs_no_generator(watched: Path) -> None:
    assert list(config(watched.parent).pools) == []


def test_early_stopping_ends_the_iteration_and_the_next_one_begins(tmp_path: Path) -> None:
    run = play(config(tmp_path / "runs", {"early_stopping": {"patience": 1}}))
    assert list(losses(run)) == [2, 4] and losses(run)[4] > losses(run)[2]
    assert "iteration 1: training stopped early, after step 4 of 10" in notes(run)
    with RunStore(run) as store:
        assert store.trained_steps(1) == 4 and store.policy(2) is not None
    patient = play(config(tmp_path / "patient", {"early_stopping": {"patience": 2}}))
    assert list(losses(patient)) == [2, 4, 6, 8, 10], "6 is better than 2 again"


def test_the_best_validated_step_is_published_instead_of_the_last(kept: Path, watched: Path) -> None:
    assert losses(kept) == losses(watched)
    best = min(losses(kept), key=losses(kept).__getitem__)
    assert best == 8
    assert "iteration 1: the weights of step 8 are kept" in notes(kept)
    shorter = play(config(kept.parent / "shorter", {"schedule": {"max_steps": 8}}))
    assert letter_logps(kept / "weights/001").tolist() == letter_logps(shorter / "weights/001").tolist()
    end = end_of(kept)
    assert (end["eval/step"], end["eval/loss"]) == (8, losses(kept)[8])
    assert not list((kept / "checkpoints").iterdir())


BOTH = {"keep_best_step": "accuracy", "early_stopping": {"patience": 2, "min_delta": 0.3}}


@pytest.mark.parametrize(
    ("learner", "every"),
    [
        (BOTH, 211),
        pytest.param(BOTH, 29, marks=pytest.mark.real),
        pytest.param({"keep_best_step": "loss"}, 29, marks=pytest.mark.real),
        pytest.param({"early_stopping": {"patience": 1}, "checkpoint_every": 2}, 29, marks=pytest.mark.real),
    ],
)
def test_a_driver_that_dies_at_any_file_operation_keeps_and_stops_as_if_it_had_not(
    tmp_path: Path, learner: dict[str, Any], every: int
) -> None:
    disk = DyingDisk(10**9)
    expected = inspection.run_digest(play(config(tmp_path / "undisturbed", learner), disk))
    for k in range(every - 1, 10**9 - disk.left, every):
        folder = tmp_path / str(k)
        with pytest.raises(Killed):
            play(config(folder, learner), DyingDisk(k))
        run = play(config(folder, learner))
        assert inspection.run_digest(run) == expected, f"killed at operation {k}"
        assert inspection.damages(run) == []
        assert not list(run.rglob("*.tmp")), f"killed at operation {k}"
        shutil.rmtree(folder)


def test_a_driver_that_dies_again_and_again_keeps_the_same_step(kept: Path, tmp_path: Path) -> None:
    for deaths in range(20):  # noqa: B007 - counted on purpose
        try:
            run = play(config(tmp_path / "runs", {"keep_best_step": "loss"}), DyingDisk(97))
            break
        except Killed:
            continue
    assert deaths > 3
    assert inspection.run_digest(run) == inspection.run_digest(kept)


class DiesBeforeTheWeights(Disk):
    """The process dies when the first iteration's weights would be made durable."""

    def __init__(self) -> None:
        super().__init__(self._look)

    def _look(self, operation: str, path: Path) -> None:
        if "weights/001" in str(path):
            raise Killed(operation, path)


@pytest.mark.parametrize("victims", [["000008"], ["000009"], ["000008", "000009"]])
def test_a_damaged_checkpoint_costs_time_and_not_the_result(kept: Path, tmp_path: Path, victims: list[str]) -> None:
    """Killed with two checkpoints on disk: that of the best step, 8, and the newest, 9."""
    keeping = config(tmp_path, {"keep_best_step": "loss"})
    with pytest.raises(Killed):
        play(keeping, DiesBeforeTheWeights())
    checkpoints = tmp_path / "run/checkpoints/000"
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["000008", "000009"]
    for victim in victims:
        (checkpoints / victim / "state.safetensors").write_bytes(b"half")
    assert inspection.run_digest(play(keeping)) == inspection.run_digest(kept)


@pytest.mark.parametrize("step", [2, 8, 10])
def test_a_damaged_validation_of_a_finished_run_is_measured_again_and_the_weights_stay(
    kept: Path, tmp_path: Path, step: int
) -> None:
    shutil.copytree(kept.parent, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    (victim,) = (run / "tables/000/validation").glob(f"{step:05d}-*")
    victim.write_bytes(victim.read_bytes()[:-3])
    before = (run / "weights/001/model.safetensors").stat().st_mtime_ns
    again = play(config(tmp_path, {"keep_best_step": "loss"}))
    assert inspection.run_digest(again) == inspection.run_digest(kept)
    assert (run / "weights/001/model.safetensors").stat().st_mtime_ns == before


ALGORITHMS: list[dict[str, Any]] = [
    {"name": "dpo", "data": "dataset", "soft_labels": True},
    {"name": "dpo", "data": "sampled"},
    {"name": "sppo"},
    {"name": "spin"},
    {"name": "spac"},
    {"name": "kto", "data": "pairs"},
    {"name": "kto", "data": "labels"},
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: "-".join(map(str, a.values())))
def test_every_algorithm_is_validated(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"algorithm": algorithm, "iterations": 1}
    labelled = algorithm == {"name": "kto", "data": "labels"}
    if labelled or algorithm["name"] == "spin":
        rows = [{"prompt": f"{i}?", "completion": "aab" if i % 2 else "bc", "label": bool(i % 2)} for i in range(8)]
        (tmp_path / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes["prompts"] = {"source": str(tmp_path / "single.jsonl")}
        if labelled:
            changes["evaluation"] = {"preferences": {"share": 0.5}}
    if algorithm["name"] == "sppo" or algorithm.get("data") == "sampled":
        changes["scorer"] = {"kind": "rule", "function": "actors.fakes:utility"}
    folder = play(config(tmp_path / "runs", {"schedule": {"max_steps": 2}, "micro_batch_size": 2}, **changes))
    end = end_of(folder)
    assert set(losses(folder)) == {2}
    assert ("eval/rewards/accuracies" in end) == (not labelled)
    assert "eval/rewards/margins" in end


def test_a_share_of_the_training_set_is_held_out_and_does_not_train(tmp_path: Path) -> None:
    run = play(config(tmp_path / "runs", evaluation={"preferences": {"share": 0.25}}))
    with RunStore(run) as store:
        trained = [row["prompt_id"] for t in store.tables(0, "ref_logps", REF_LOGPS) for row in t.to_pylist()]
        held = [row["prompt_id"] for t in store.tables(0, "validation_ref_logps", REF_LOGPS) for row in t.to_pylist()]
    assert (len(trained), len(held)) == (9, 3)
    assert not set(trained) & set(held)


def test_held_out_pairs_that_are_trained_on_are_counted_and_noted(tmp_path: Path) -> None:
    preferences = {"source": SOURCES["training"], "limit": 5}
    run = play(config(tmp_path / "runs", evaluation={"preferences": preferences}))
    assert "warning: 5 of 5 held-out preferences are also trained on" in notes(run)


def test_an_empty_a_broken_or_a_tied_validation_set_is_refused_before_anything_trains(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        play(config(tmp_path / "a", evaluation={"preferences": {"source": str(empty)}}))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "q", "chosen": "a", "rejected": 3}\n')
    with pytest.raises(DataError, match=r"leave such rows out with evaluation\.preferences\.on_malformed: drop"):
        play(config(tmp_path / "c", evaluation={"preferences": {"source": str(broken)}}))
    ties = tmp_path / "ties.jsonl"
    tie = {"messages": [{"role": "user", "content": "q"}], "dataset_completions": ["aa", "bb"]}
    ties.write_text(json.dumps(tie | {"dataset_win_rates": [0.5, 0.5]}) + "\n")
    with pytest.raises(DataError, match="none of 1 held-out rows prefers one answer"):
        play(config(tmp_path / "b", evaluation={"preferences": {"source": str(ties)}}))
    assert not (tmp_path / "b/run/weights").exists()
