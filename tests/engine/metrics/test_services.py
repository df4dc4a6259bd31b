"""Trackers beside metrics.jsonl: what they get, what a restart does, and that no failure of theirs stops a run."""

from __future__ import annotations

import io
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from engine.errors import ConfigError
from engine.metrics import services
from engine.metrics.monitor import Monitor, read_metrics
from engine.metrics.services import SERVICES, Service, TrackedRun, check_installed, open_services


def track(folder: Path, name: str, iteration: int, steps: int, loss: float = 0.5) -> list[str]:
    """One process of a run: some optimizer steps of an iteration, and its end; return the notes."""
    notes: list[str] = []
    run = TrackedRun(folder, "demo", "demo-1234", "kumite-tests", {"seed": 3, "learner.optimizer.lr": 0.1})
    now = [0.0]
    with Monitor(
        folder,
        console=Console(file=io.StringIO()),
        trackers=open_services([name], run, notes.append),
        clock=lambda: now[0],
    ) as monitor:
        monitor.begin_iteration(iteration, 3)
        for step in range(1, steps + 1):
            now[0] += 1.0
            monitor.step(step, steps, {"loss": loss, "rewards/margins": 0.25, "grad_norm": float("nan")}, 1.0)
        monitor.end_iteration({"evaluate/win_rate_vs_start": 0.75})
    return notes


def test_tensorboard_counts_steps_through_all_iterations_and_restarts(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    assert track(tmp_path, "tensorboard", 1, 9) == []
    assert track(tmp_path, "tensorboard", 2, 2) == []
    events = _events(tmp_path / "tensorboard")
    assert [step for step, name, _ in events if name == "rewards/margins"] == list(range(1, 12))
    assert (11, "evaluate/win_rate_vs_start", 0.75) in events
    assert not [name for _, name, _ in events if name == "grad_norm"], "NaN is no point of a curve"


def test_wandb_offline_keeps_the_run_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track(tmp_path, "wandb", 1, 3) == []
    wandb.teardown()  # its own process writes the rest of the file when ours ends
    rows = _wandb_rows(tmp_path)
    assert [(row["optimizer_step"], row.get("loss")) for row in rows] == [
        ("1", "0.5"),
        ("2", "0.5"),
        ("3", "0.5"),
        ("3", None),
    ]
    assert rows[-1]["evaluate/win_rate_vs_start"] == "0.75"


def _wandb_rows(folder: Path) -> list[dict[str, str]]:
    """What `wandb sync` would send as the history: {name: number as JSON} per call.

    The file is a LevelDB log: blocks of 32 KiB with pieces of records, each behind a checksum, a length and a type.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = (folder / "wandb").glob("offline-run-*-demo-1234/run-demo-1234.wandb")
    data, at, whole, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
    return rows


def test_mlflow_without_a_server_keeps_a_database_in_the_folder_and_continues_it(tmp_path: Path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not in the locked environment")
    assert track(tmp_path, "mlflow", 1, 3) == []
    assert track(tmp_path, "mlflow", 2, 2) == []
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("kumite-tests")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.data.params["seed"], run.info.status) == ("demo", "3", "FINISHED")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5]
    assert client.get_metric_history(run.info.run_id, "evaluate/win_rate_vs_start")[-1].step == 5


def test_trackio_keeps_a_database_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio cannot be installed beside the locked pillow")
    assert track(tmp_path, "trackio", 1, 3) == []
    [file] = (tmp_path / "trackio").glob("kumite-tests*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows][:3] == [1, 2, 3]


class Broken(Service):
    """A tracker whose server does not answer."""

    package = "json"

    def start(self, step: int) -> None:
        raise ConnectionError("no route to host")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        raise AssertionError("it never started")

    def finish(self) -> None:
        raise AssertionError("it never started")


class Stuck(Broken):
    """A tracker whose server takes the connection and then says nothing."""

    release = threading.Event()

    def start(self, step: int) -> None:
        self.release.wait()


@pytest.fixture
def stuck() -> Iterator[type[Stuck]]:
    Stuck.release.clear()
    yield Stuck
    Stuck.release.set()


def test_a_tracker_that_fails_is_noted_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SERVICES, "wandb", Broken)
    [note] = track(tmp_path, "wandb", 1, 5)
    assert note.startswith("warning: wandb failed and gets no more metrics (ConnectionError: no route to host)")
    assert len([r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "step"]) == 5


def test_a_tracker_that_hangs_does_not_hold_up_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: type[Stuck]
):
    monkeypatch.setitem(SERVICES, "wandb", stuck)
    monkeypatch.setattr(services, "CLOSING_SECONDS", 0.0)
    [note] = track(tmp_path, "wandb", 1, 5)
    assert note.startswith("warning: wandb did not finish")


def test_packages_that_are_missing_are_all_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(services, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        check_installed(["tensorboard", "wandb"])
    assert [problem.split(";")[0] for problem in error.value.problems] == [
        "tracking.report_to: tensorboard needs the package tensorboardX",
        "tracking.report_to: wandb needs the package wandb",
    ]


def _events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every scalar in the event files, read as records of length, check, data, check."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return sorted(scalars)
