"""Real engines, real SIGKILL: whichever process dies, the run ends with the digest of the undisturbed run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.factories import Engines
from cluster.run.job import Job
from cluster.runtime.session import ray_session
from engine.config.run import ClusterConfig, RunConfig
from engine.metrics.trackers import read_metrics
from engine.store import inspection
from engine.store.run import RunStore
from tests.cluster.runtime.conftest import CalmRun
from tests.cluster.runtime.drivers import committed, sppo, title, until
from tests.cluster.runtime.victims import Victims
from tests.cluster.runtime.worlds import real_values, write_config
from tests.runs import fake_config

pytestmark = pytest.mark.real


def test_a_killed_driver_leaves_no_process_and_the_same_command_finishes_its_run(calm: CalmRun, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["--config", str(write_config(tmp_path / "c.yaml", real_values(calm.world, tmp_path, "run")))]
    with sppo(log, *command) as driver:
        alive = lambda: driver.process.poll() is None  # noqa: E731
        until(lambda: committed(run, kind="shard", stage="scores"), "a shard of scores", alive)
        assert len(driver.descendants()) > 5, "Ray and four roles should be running"
        driver.kill()
        before = committed(run, kind="shard")
        assert not (run / "weights/002").exists()
        with sppo(tmp_path / "second.log", *command) as second:
            assert second.wait() == 0, second.output
            until(lambda: not second.descendants(), "the end of the second driver's processes")
        # Two helpers of Ray try for a minute to report the death to a server that has died too.
        until(lambda: not driver.descendants(), f"the end of {[title(p) for p in driver.descendants()]}")
    assert inspection.run_digest(run) == calm.digest
    assert inspection.damages(run) == []
    assert committed(run, kind="shard")[: len(before)] == before, "nothing that was committed is made again"


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One private Ray for the runs whose driver is this process."""
    with ray_session(ClusterConfig()):
        yield


def play_here(values: dict[str, Any], engines: Engines | None = None) -> Path:
    """Run in this process, in the test's own Ray; return the run folder."""
    config = RunConfig.model_validate(values)
    with Job(config, Console(quiet=True), engines=engines) as job:
        job.play()
        return job.folder


def notes(run: Path) -> list[str]:
    return [record["text"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "note"]


def test_killed_generator_scorer_and_learner_rank_are_replaced_in_one_run(
    calm: CalmRun, ray: None, tmp_path: Path
) -> None:
    graves = tmp_path / "graves"
    graves.mkdir()
    run = play_here(real_values(calm.world, tmp_path, "run"), Victims(graves))
    killed = {grave.name: int(grave.read_text()) for grave in graves.iterdir()}
    assert set(killed) == {"generator 0", "scorer 0", "learner 1"}
    # The learner saves a checkpoint after some steps; it dies during these steps.
    for name, what in (("generator 0", "generate"), ("scorer 0", "score"), ("learner 1", "save_checkpoint")):
        deaths = [note for note in notes(run) if note.startswith(f"{name}: its process ended during {what}")]
        assert len(deaths) == 1 and "(try 1 of 3)" in deaths[0], notes(run)
    assert not [pid for pid in killed.values() if title(pid)]
    assert inspection.run_digest(run) == calm.digest
    assert inspection.damages(run) == []


def test_colocated_roles_compute_what_disaggregated_roles_do(calm: CalmRun, ray: None, tmp_path: Path) -> None:
    values = real_values(calm.world, tmp_path, "run")
    run = play_here({**values, "iterations": 1, "cluster": {**values["cluster"], "placement": "colocated"}})
    made = results(run)
    assert len(made) > 20
    assert made.items() <= results(calm.folder).items()


def results(run: Path) -> dict[tuple[Any, ...], str]:
    """What a run committed: (kind, iteration or version, stage, shard) -> hash."""
    shards = {("shard", r["iteration"], r["stage"], r["shard"]): r["sha256"] for r in committed(run, kind="shard")}
    return shards | {("weights", r["version"]): r["digest"] for r in committed(run, kind="weights")}


def test_a_second_driver_on_the_same_run_leaves_at_once_and_names_the_first(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", fake_config(tmp_path).model_dump(mode="json"))
    with RunStore(tmp_path / "run"), sppo(tmp_path / "log", "--config", str(config)) as second:
        assert second.wait() == 1
        assert f"in use by process {os.getpid()} on {socket.gethostname()}" in second.output
    assert not committed(tmp_path / "run")


def test_a_driver_terminated_while_its_roles_start_exits_cleanly_and_leaves_no_process(tmp_path: Path) -> None:
    with sppo(tmp_path / "log", "--config", "recipes/configs/smoke_sppo.yaml", f"output={tmp_path}") as driver:
        actors = lambda: [pid for pid in driver.descendants() if title(pid).startswith("ray::Host")]  # noqa: E731
        until(actors, "an actor", lambda: driver.process.poll() is None)
        driver.process.terminate()
        assert driver.wait() == 143, driver.output
        until(lambda: not driver.descendants(), "the end of the driver's processes")
    assert "the same command continues" in driver.output
