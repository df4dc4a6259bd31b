"""Self-play: in each iteration the policy answers, its answers are compared, and it learns.

    policy t ── generator ── scorer ── select ── reference ── learner ── policy t + 1
                   │                                                         │
                   └──────── held-out prompts, judged by the evaluator ──────┘

A new and a resumed run take the same path: what is committed is not computed again. Where roles run and which algorithm
is used makes no difference here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from engine.benchmarks import benchmarks
from engine.benchmarks.measure import measure
from engine.config.run import RunConfig
from engine.data.ingest import Renderer
from engine.evaluation.gate import STAGE, best_version, current_version, decide, decisions, to_table
from engine.loop.flow import Flow
from engine.loop.heldout import HeldoutStartLogps, heldout_stages
from engine.loop.roles import Roles
from engine.loop.stages import training_stages
from engine.loop.update import Update
from engine.loop.validation import PAIRS, validation_stages
from engine.loop.weight_probe import ProbeBatch
from engine.metrics.monitor import Monitor
from engine.report.figures import iteration_metrics, judge_warnings
from engine.schema import COMPLETIONS, GATE
from engine.store.reader import Policy, RunReader
from engine.store.run import RunStore


class SelfPlay:
    """One run of `config.iterations` iterations over the prompts that the store holds."""

    def __init__(
        self, config: RunConfig, roles: Roles, store: RunStore, monitor: Monitor, probe: ProbeBatch, chat: Renderer
    ):
        """chat: the policy's chat template, for benchmarks of several turns."""
        self._config, self._store, self._monitor, self._chat = config, store, monitor, chat
        self._flow, self._update = Flow(store, roles, monitor), Update(config, roles, store, monitor, probe)
        self._benchmarks = benchmarks(config)

    def run(self, policy: Policy) -> Policy:
        """Compute what is missing between the start policy and the last one. Returns the policy to take."""
        self._evaluate(policy)
        for t in open_iterations(self._config, self._store):
            self._monitor.begin_iteration(t + 1, self._config.iterations)
            policy = self._iterate(t)
            self._evaluate(policy)
            figures = iteration_metrics(self._store, self._config.algorithm, t)
            for warning in judge_warnings(figures):
                self._monitor.note(f"iteration {t + 1}: {warning}")
            self._decide(policy, figures)
            self._monitor.end_iteration(figures)
            self._store.complete(t)
        return self._version(result_version(self._config, self._store))

    def _iterate(self, t: int) -> Policy:
        """One iteration: every prompt shard through all stages, then the update."""
        self._flow.run(t, training_stages(self._config, self._begun_from, t), (t, "prompts"))
        if self._config.preferences:
            self._flow.run(t, validation_stages(self._config, self._begun_from, t), (0, PAIRS))
        return self._update.made(t) or self._update.learn(t, self._begun_from(t))

    def _begun_from(self, t: int) -> Policy:
        """The policy that iteration t samples from and trains: the newest one, or where the gate rejects versions the
        one that it promoted last."""
        gate = self._config.gate
        return self._version(current_version(self._store, t + 1) if gate and gate.policy == "reject" else t)

    def _evaluate(self, policy: Policy) -> None:
        """Answer the held-out prompts, compare with earlier versions' answers, and run the benchmarks."""
        version = policy.version
        if self._config.evaluation and self._config.evaluation.prompts:
            previous = self._begun_from(version - 1).version if version else 0
            current = current_version(self._store, version)
            stages = heldout_stages(self._config, policy, previous, current, self._heldout_answers)
            self._flow.run(version, stages, (0, "heldout_prompts"))
        measure(self._benchmarks, policy, self._chat, self._store, self._flow, self._monitor.note)
        if self._config.measures_kl and version:  # last, because the generators then serve the start policy
            self._flow.run(version, [HeldoutStartLogps(self._version(0))], (0, "heldout_prompts"))

    def _decide(self, policy: Policy, figures: Mapping[str, float]) -> None:
        """Let the gate decide about a new version."""
        version, gate = policy.version, self._config.gate
        if gate is None or self._store.has(version, STAGE, 0):
            return
        decision = decide(gate, version, current_version(self._store, version), figures)
        self._store.commit(version, STAGE, 0, to_table(decision), GATE, of="version")
        self._monitor.note(f"gate: {decision.in_words()}")

    def _version(self, version: int) -> Policy:
        """The policy of a version, which exists because iterations are done in order."""
        policy = self._store.policy(version)
        assert policy is not None
        return policy

    def _heldout_answers(self, version: int, shard: int) -> pa.Table:
        """A version's answers to a shard of held-out prompts."""
        return self._store.read(version, "heldout_completions", shard, COMPLETIONS)


def open_iterations(config: RunConfig, store: RunStore) -> Iterator[int]:
    """Iterations that are still to be computed, in order; none after a version at which the gate ends the run."""
    for t in store.open_iterations(config.iterations):
        ends = config.gate is not None and config.gate.policy == "stop"
        if ends and any(not decision.promoted and decision.version <= t for decision in decisions(store)):
            return
        yield t


def result_version(config: RunConfig, run: RunReader) -> int:
    """The version that is the run's result: the last one, or where the gate keeps the best the one promoted last."""
    keeps_last = config.gate is None or config.gate.policy == "warn"
    return max(run.versions) if keeps_last else best_version(run)[0]
