"""The processes of a sweep: in parallel where there is room, in turn where they share work; none stops another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from cluster.plan.cost import Prediction
from cluster.sweep import runner
from cluster.sweep.grid import Sweep, SweepRun
from cluster.sweep.runner import Runner, num_parallel
from engine.config.load import load
from tests.conftest import ROOT
from tests.runs import fake_config

CHILD = """
import pathlib, sys, time
_, file, *siblings = map(pathlib.Path, sys.argv[1:])
folder, name = file.parent, file.stem
(folder / f"{name}.started").touch()
print("siblings", *sorted(sibling.name for sibling in siblings))
while "waits" in name and not (folder / "free").exists():
    time.sleep(0.01)
sys.exit(3 if "fails" in name else 0)
"""


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small processes in place of runs, and a look at the waiting ones at once."""
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setattr(runner, "CHECK_EVERY", 0.02)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with room for three runs."""

    @contextmanager
    def session(config: object) -> Iterator[tuple[dict[str, str], dict[str, float]]]:
        yield {}, {"CPU": 15.0}

    monkeypatch.setattr("cluster.runtime.session.shared_session", session)


def sweep(folder: Path, *names: str) -> Sweep:
    runs = [SweepRun(fake_config(folder, name=name, seed=seed), {"seed": seed}) for seed, name in enumerate(names)]
    return Sweep("sweep", folder, tuple(runs), ("seed",))


def test_runs_that_fail_do_not_stop_the_others(tmp_path: Path) -> None:
    outcomes = Runner(sweep(tmp_path, "a", "fails", "c"), Console(quiet=True)).play()
    assert [(outcome.run.name, outcome.exit_code) for outcome in outcomes] == [("a", 0), ("fails", 3), ("c", 0)]
    assert outcomes[1].log.read_text() == "siblings a c\n"
    assert load(tmp_path / "sweep" / "c.yaml").seed == 2


def test_the_number_of_runs_at_a_time_follows_from_the_resources_of_the_largest(tmp_path: Path) -> None:
    runs = sweep(tmp_path, "a", "b")
    assert num_parallel(runs, {"CPU": 15.0, "GPU": 0.0}) == 3  # 2 generators, scorer, evaluator and learner
    assert num_parallel(runs, {}) == 1
    large = SweepRun(fake_config(tmp_path, name="large", generator={"num_replicas": 12}), {"seed": 9})
    assert num_parallel(Sweep("sweep", tmp_path, (*runs.runs, large), ("seed",)), {"CPU": 15.0}) == 1


class Watched(Runner):
    """Keeps what it says; lets the run that waits go when the one that fails has ended, or after three questions."""

    def __init__(self, sweep: Sweep, free: Path):
        super().__init__(sweep, Console(quiet=True))
        self.said, self.free = list[str](), free

    def _note(self, text: str) -> None:
        self.said.append(text.partition(",")[0].partition(";")[0])
        if text.startswith("fails: failed"):
            self.free.touch()


@pytest.mark.usefixtures("room")
def test_runs_are_played_in_parallel(tmp_path: Path) -> None:
    watched = Watched(sweep(tmp_path, "waits", "fails"), tmp_path / "sweep/free")
    assert [outcome.exit_code for outcome in watched.play()] == [0, 3]
    assert watched.said[1:] == ["waits: starts", "fails: starts", "fails: failed with exit code 3", "waits: finished"]


@pytest.mark.usefixtures("room")
def test_a_run_waits_until_another_has_computed_what_both_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(sweep(tmp_path, "waits", "b"), tmp_path / "sweep/free")
    asked: list[Path] = []

    def is_computing(config: object, other: object, folder: Path) -> bool:
        asked.append(folder)
        if len(asked) == 3:
            watched.free.touch()
        return True

    monkeypatch.setattr(runner, "is_computing", is_computing)
    watched.play()
    assert watched.said[1:] == ["waits: starts", "waits: finished", "b: starts", "b: finished"]
    assert set(asked) == {tmp_path / "waits"}


def test_a_run_gets_its_prediction(tmp_path: Path) -> None:
    prediction = Prediction("earlier", 1.0, (2.0,), {"learn": 1.0}, None, None, None, {}, ())
    Runner(sweep(tmp_path, "a", "b"), Console(quiet=True), {"a": prediction}).play()
    assert '"seconds": 3.0' in (tmp_path / "sweep/a.prediction.json").read_text()
    assert not (tmp_path / "sweep/b.prediction.json").exists()


def test_a_run_whose_sweep_is_gone_before_it_begins_plays_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.sweep.runner", "1", str(tmp_path / "no.yaml")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1


def test_an_interrupted_sweep_ends_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Runner):
        def _must_wait(self, each: SweepRun) -> bool:
            if self._runs.working:
                raise KeyboardInterrupt
            return False

    monkeypatch.setattr(runner, "num_parallel", lambda sweep, resources: 2)
    interrupted = Interrupted(sweep(tmp_path, "waits", "b"), Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        interrupted.play()
    (_, process) = interrupted._runs.working["waits"]
    assert process.poll() is not None
