"""From a config to running pools: which class plays each role, where it runs, with how much patience.

The only place that knows all roles at once. Each role gets its own sections of the config, never the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from actors import fakes
from actors.generator import Generator
from actors.learner.learner import Learner
from actors.scorers.builtin import build_scorer
from actors.scorers.judge.judge import Judge
from actors.scorers.judge.prompt_file import read_judge_prompt
from actors.scorers.judge.scorer import JudgeScorer
from cluster.plan.plan import needs
from cluster.runtime.placement import Placement
from cluster.runtime.pool import Group, Limits, Pool, Spawn
from cluster.runtime.replica import Factory, LocalReplica, RayReplica, Replica
from cluster.runtime.roles import ClusterRoles
from cluster.runtime.session import ray_session
from engine.config.judge import JudgeConfig
from engine.config.run import RunConfig
from engine.config.scorer import ScorerConfig
from engine.loop.weight_probe import ProbeBatch

Note = Callable[[str], None]
Pin = Callable[[str, str], None]
"""(role, identity) -> nothing, or StoreError if the run began with another one."""


@contextmanager
def launched(config: RunConfig, probe: ProbeBatch, note: Note, pin: Pin) -> Iterator[ClusterRoles]:
    """Connect, reserve, build the pools (replicas start with their first call), and end it all afterwards."""
    turns = config.cluster.placement == "colocated"
    if config.cluster.backend == "local":
        pools = _pools(config, _local_spawn, note)
        roles = ClusterRoles(pools, turns=turns, probe=probe, note=note, pin=pin, judges=config.policy_judges)
        try:
            yield roles
        finally:
            roles.close()
        return
    with ray_session(config.cluster):
        placement = Placement(needs(config), turns, config.cluster.start_deadline_s)
        spawn = partial(_ray_spawn, placement, config.cluster.start_deadline_s)
        roles = ClusterRoles(
            _pools(config, spawn, note),
            turns=turns,
            probe=probe,
            note=note,
            pin=pin,
            placement=placement,
            judges=config.policy_judges,
        )
        try:
            yield roles
        finally:
            roles.close()


def _pools(config: RunConfig, spawn: Callable[[str, Callable[[int], Factory]], Spawn], note: Note) -> dict:
    cluster, pools = config.cluster, {}
    limits = Limits(cluster.shard_deadline_s, cluster.max_retries, note)
    for role, section in config.pools.items():
        factory = _generator(config) if role == "generator" else _scorer(section, config.seed)
        pools[role] = Pool(role, spawn(role, lambda index, made=factory: made), section.num_replicas, limits)
    ranks = partial(_learner, config)
    patience = Limits(cluster.step_deadline_s, cluster.max_retries, note)
    pools["learner"] = Group("learner", spawn("learner", ranks), config.learner.num_ranks, patience)
    return pools


def _generator(config: RunConfig) -> Factory:
    judge = None
    if isinstance(config.scorer, JudgeConfig) and config.policy_judges:
        judge = _judge(config.scorer, config.seed)
    if config.generator.kind == "fake":
        return partial(fakes.FakeGenerator, config.sampling, config.seed, judge)
    rank = config.served_rank
    return partial(Generator, config.generator, config.model, config.sampling, config.seed, judge=judge, lora_rank=rank)


def _scorer(section: ScorerConfig, seed: int) -> Factory:
    if isinstance(section, JudgeConfig):
        return partial(JudgeScorer, _judge(section, seed))
    return partial(build_scorer, section)


def _judge(section: JudgeConfig, seed: int) -> Judge:
    """The judge with its prompt as it is now and here, so that all replicas, later ones too, ask the same."""
    return Judge(section, read_judge_prompt(section), seed)


def _learner(config: RunConfig, rank: int) -> Factory:
    if config.learner.kind == "fake":
        return partial(fakes.FakeLearner, config.learner, config.algorithm, config.seed)
    return partial(Learner, config.learner, config.model, config.algorithm, rank, config.learner.num_ranks, config.seed)


def _local_spawn(role: str, factory: Callable[[int], Factory]) -> Spawn:
    def spawn(index: int) -> Replica:
        return LocalReplica(f"{role} {index}", factory(index))

    return spawn


def _ray_spawn(placement: Placement, deadline_s: float, role: str, factory: Callable[[int], Factory]) -> Spawn:
    def spawn(index: int) -> Replica:
        replica = RayReplica(f"{role} {index}", factory(index), placement.options(role, index))
        try:
            replica.await_start(deadline_s)
        except BaseException:
            replica.kill()
            raise
        return replica

    return spawn
