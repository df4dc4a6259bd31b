"""`ray job submit` against a cluster with token authentication, from a shell, as the documentation says."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.store import inspection
from tests.cluster.runtime.drivers import Driver, running, until
from tests.runs import fake_config, play

RAY = str(Path(sys.executable).with_name("ray"))
SMOKE = "recipes/configs/smoke_sppo.yaml"


@dataclass(frozen=True)
class Head:
    """A head node of this test's own."""

    driver: Driver
    dashboard: str
    token: str


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder, token = tmp_path_factory.mktemp("head"), secrets.token_hex(32)
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with running(folder / "log", *command, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as driver:
        alive = lambda: driver.process.poll() is None  # noqa: E731
        until(lambda: "Ray runtime started" in driver.output, "the head node", alive)
        yield Head(driver, f"http://127.0.0.1:{ports['dashboard-port']}", token)


def submit(head: Head, log: Path, *arguments: str, token: str | None) -> tuple[int, str]:
    """Exit code and output of `ray job submit`, which waits for the job's end."""
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"]
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    # The interpreter of the tests stands in for a cluster on which Kumite's libraries are installed.
    with running(log, *command, sys.executable, "recipes/sppo.py", *arguments, **secret) as driver:
        return driver.wait(), driver.output


@pytest.mark.real
def test_a_submitted_job_succeeds_and_leaves_its_run_where_output_says(head: Head, tmp_path: Path) -> None:
    code, output = submit(
        head, tmp_path / "log", "--config", SMOKE, f"output={tmp_path}", "iterations=1", token=head.token
    )
    assert code == 0, output
    assert "succeeded" in output
    assert f"run folder {tmp_path}/smoke-sppo" in output
    assert inspection.state(tmp_path / "smoke-sppo")["finished"]
    assert inspection.damages(tmp_path / "smoke-sppo") == []


@pytest.mark.real
def test_a_wrong_config_fails_the_job_with_the_reason_in_its_log(head: Head, tmp_path: Path) -> None:
    code, output = submit(head, tmp_path / "log", "--config", SMOKE, "learner.speed=9", token=head.token)
    assert code == 1
    assert "failed" in output
    assert "learner.speed" in output


@pytest.mark.real
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_client_without_the_token_is_refused(head: Head, tmp_path: Path, token: str | None) -> None:
    code, output = submit(head, tmp_path / "log", "--config", SMOKE, f"output={tmp_path}", token=token)
    assert code != 0
    assert "uthenticat" in output
    assert not (tmp_path / "smoke-sppo").exists()


def test_all_that_a_recipe_reads_is_uploaded_with_the_job_and_runs_are_not() -> None:
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    root = Path(__file__).parents[3]
    rules = get_excludes_from_ignore_files(root, include_gitignore=True)
    needed = [path for layer in ("engine", "actors", "cluster", "recipes") for path in (root / layer).rglob("*.*")]
    needed = [path for path in needed if path.is_file() and "__pycache__" not in path.parts]
    assert {".py", ".yaml", ".jsonl", ".txt"} <= {path.suffix for path in needed}
    assert [str(path) for path in needed if any(rule(path) for rule in rules)] == []
    left = (root / name for name in (".git/config", ".venv/bin/python", "runs/demo/config.yaml"))
    assert all(any(rule(path) for rule in rules) for path in left)


def test_a_run_inside_the_uploaded_copy_warns_that_it_will_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0"
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    run = play(fake_config(Path("runs")))
    assert "is deleted with it; set output= to a full path" in (run / "metrics.jsonl").read_text(encoding="utf-8")
