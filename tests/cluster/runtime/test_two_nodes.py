"""Two Ray nodes on one machine: replicas spread, a node goes away, and the tables stay the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines
from cluster.run.job import Job
from cluster.runtime.replica import RayReplica
from cluster.runtime.roles import ClusterRoles
from engine.config.run import RunConfig
from engine.metrics.trackers import read_metrics
from engine.store import inspection
from tests.cluster.runtime.drivers import committed, until
from tests.runs import fake_config, play

pytestmark = pytest.mark.real

QUARTER = {"cpus": 0.25}
RULE = {"kind": "rule", "function": "actors.fakes:utility", **QUARTER}


class Nodes:
    """A head node and a second one, each with one CPU, and a driver in this process."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._others = [self._cluster.add_node(num_cpus=1)]
        ray.init(address=self._cluster.address, log_to_driver=False)
        self._cluster.wait_for_nodes()

    @property
    def ids(self) -> set[str]:
        return {node.node_id for node in (self._cluster.head_node, *self._others)}

    def add(self) -> None:
        self._others.append(self._cluster.add_node(num_cpus=1))
        self._cluster.wait_for_nodes()

    def lose(self, candidates: set[str | None]) -> None:
        """One of these nodes, not the head, ends without notice."""
        node = next(node for node in self._others if node.node_id in candidates)
        self._others.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


@pytest.fixture(scope="module")
def calm_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the same run without Ray."""
    return inspection.run_digest(play(fake_config(tmp_path_factory.mktemp("calm"))))


def config(folder: Path, generator_cpus: float) -> RunConfig:
    learner = fake_config(folder).learner.model_dump(mode="json")
    return fake_config(
        folder,
        generator={"num_replicas": 2, "cpus": generator_cpus},
        scorer=RULE,
        learner={**learner, **QUARTER},
        evaluation={"prompts": fake_config(folder).evaluation.prompts.model_dump(mode="json"), "scorer": RULE},
        cluster={"backend": "ray", "start_deadline_s": 20.0, "shard_deadline_s": 60.0, "step_deadline_s": 60.0},
    )


@pytest.fixture
def roles(monkeypatch: pytest.MonkeyPatch) -> list[ClusterRoles]:
    """The roles that a run of this process makes."""
    kept: list[ClusterRoles] = []
    original = ClusterRoles.__init__

    def keep(self: ClusterRoles, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        kept.append(self)

    monkeypatch.setattr(ClusterRoles, "__init__", keep)
    return kept


class Watcher(threading.Thread):
    """Does something once the run's first shard of scores is committed; keeps the result."""

    def __init__(self, run: Path, action: Any):
        super().__init__()
        self._run, self._action, self.result = run, action, None
        self.start()

    def run(self) -> None:
        until(lambda: committed(self._run, kind="shard", stage="scores"), "a shard of scores")
        self.result = self._action()


def play_with(settings: RunConfig, action: Any) -> tuple[Path, Any]:
    watcher = Watcher(Path(settings.output) / settings.name, action)
    with Job(settings, Console(quiet=True), engines=FakeEngines()) as job:
        job.play()
    watcher.join()
    return job.folder, watcher.result


def generator_nodes(roles: list[ClusterRoles]) -> set[str | None]:
    return {replica.node_id for replica in roles[0].generator.replicas if isinstance(replica, RayReplica)}


def test_generators_spread_over_both_nodes_and_change_no_byte(
    nodes: Nodes, roles: list[ClusterRoles], calm_digest: str, tmp_path: Path
) -> None:
    run, found = play_with(config(tmp_path, generator_cpus=0.25), lambda: generator_nodes(roles))
    assert found == nodes.ids and len(found) == 2
    assert inspection.run_digest(run) == calm_digest


def test_a_generators_node_goes_away_and_the_other_generator_does_the_work(
    nodes: Nodes, roles: list[ClusterRoles], calm_digest: str, tmp_path: Path
) -> None:
    nodes.add()  # two generators fill a node each, the other roles share the third
    run, _ = play_with(config(tmp_path, generator_cpus=1.0), lambda: nodes.lose(generator_nodes(roles)))
    notes = [record["text"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "note"]
    assert inspection.run_digest(run) == calm_digest
    assert any("going on with 1 of 2 replicas" in note for note in notes), notes


def test_a_node_goes_away_and_its_roles_start_where_there_is_room(
    nodes: Nodes, roles: list[ClusterRoles], calm_digest: str, tmp_path: Path
) -> None:
    nodes.add()
    run, _ = play_with(config(tmp_path, generator_cpus=0.25), lambda: nodes.lose(nodes.ids))
    assert inspection.run_digest(run) == calm_digest
