"""The update of an iteration: optimizer steps over its rows, from the policy it began with to the next version."""

from __future__ import annotations

import pyarrow as pa

from engine.config.run import RunConfig
from engine.errors import DataError
from engine.loop.roles import Learner, Roles
from engine.loop.weight_probe import ProbeBatch
from engine.metrics.monitor import Monitor
from engine.schema import REF_LOGPS
from engine.store.reader import Policy
from engine.store.run import RunStore


class Update:
    """Trains one version after the other; each `learn` continues after the last checkpoint, if there is one."""

    def __init__(self, config: RunConfig, roles: Roles, store: RunStore, monitor: Monitor, probe: ProbeBatch):
        self._config, self._roles, self._store, self._monitor, self._probe = config, roles, store, monitor, probe

    def learn(self, t: int, policy: Policy) -> Policy:
        """Run the optimizer steps of iteration t, starting with `policy`. Returns the committed version t + 1."""
        learner = self._roles.learner
        shards = self._rows(t)
        with self._monitor.timed("prepare"):
            self._roles.prepare({"learner": policy})
            plan = learner.broadcast(Learner.begin, shards, t)[0]
        step, num_steps = 0, plan["num_steps"]
        if checkpoint := self._store.checkpoint(t):
            step, folder = checkpoint
            learner.broadcast(Learner.load_checkpoint, str(folder))
            self._monitor.note(f"iteration {t + 1}: the learner continues after step {step}")
        self._monitor.expect("learn", num_steps, step, unit="steps")
        while step < num_steps:
            step = self._advance(t, step, num_steps)
        return self._publish(t, num_steps)

    def _rows(self, t: int) -> list[pa.Table]:
        """The iteration's training rows, one table per shard. Raises DataError if there is none."""
        shards = list(self._store.tables(t, "ref_logps", REF_LOGPS))
        if not sum(shard.num_rows for shard in shards):
            counts = ", ".join(f"{name} {count}" for name, count in self._store.counts(t, "selected").items())
            raise DataError(
                f"iteration {t + 1}: no prompt is left to train on; the algorithm's rules left all of them out "
                f"({counts}); check the prompts, sampling.temperature and the scorer"
            )
        return shards

    def _advance(self, t: int, step: int, num_steps: int) -> int:
        """Run a few optimizer steps and save a checkpoint where one is due. Returns the step reached."""
        learner, every = self._roles.learner, self._config.learner.checkpoint_every
        due = (step // every + 1) * every
        until = min(step + self._config.tracking.log_every, due, num_steps)
        result = learner.submit(Learner.advance, until).result()
        seconds = (result.end - result.start) / max(1, len(result.value))
        for metrics in result.value:
            figures = {name: value for name, value in metrics.items() if name != "step"}
            self._monitor.step(int(metrics["step"]), num_steps, figures, seconds)
        if until == due and until < num_steps:
            learner.submit(Learner.save_checkpoint, str(self._store.new_checkpoint(t, until)), until).result()
            learner.replay(Learner.load_checkpoint, str(self._store.commit_checkpoint(t, until)))
        return until

    def _publish(self, t: int, step: int) -> Policy:
        """Commit the weights after `step` steps as version t + 1."""
        folder = self._store.new_weights(t + 1)
        with self._monitor.timed("save"):
            probe = (self._probe.prompt_token_ids, self._probe.completion_token_ids)
            logprobs = self._roles.learner.submit(Learner.save_weights, str(folder), step, *probe).result().value
            policy = self._store.commit_weights(t + 1, logprobs)
        self._roles.invalidate("learner")  # it was opened as version t, which may be the next reference again
        self._store.drop_checkpoints(t)
        return policy
