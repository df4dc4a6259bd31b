"""The update of an iteration: optimizer steps over its rows, from the policy it began with to the next version."""

from __future__ import annotations

import pyarrow as pa

from engine.config.run import RunConfig
from engine.errors import DataError
from engine.loop.roles import Learner, Roles
from engine.loop.validation import Validator
from engine.loop.weight_probe import ProbeBatch
from engine.metrics.monitor import LEARNER_STAGE, Monitor
from engine.schema import REF_LOGPS
from engine.store.reader import Policy
from engine.store.run import RunStore


class Update:
    """Trains one version after the other; each `learn` continues after the last checkpoint, if there is one."""

    def __init__(self, config: RunConfig, roles: Roles, store: RunStore, monitor: Monitor, probe: ProbeBatch):
        self._config, self._roles, self._store, self._monitor, self._probe = config, roles, store, monitor, probe
        self._validator = Validator(config, roles, store, monitor)

    def made(self, t: int) -> Policy | None:
        """The version that iteration t made, if it and its validations are there."""
        return self._store.policy(t + 1) if self._validator.is_intact(t) else None

    def learn(self, t: int, policy: Policy) -> Policy:
        """Run the optimizer steps of iteration t, starting with `policy`. Returns the committed version t + 1."""
        learner, shards = self._roles.learner, self._rows(t)
        with self._monitor.timed("prepare"):
            self._roles.prepare({"learner": policy})
            num_steps = learner.broadcast(Learner.begin, shards, t)[0]["num_steps"]
        step = self._continue(t)
        self._monitor.expect(LEARNER_STAGE, num_steps, step, unit="steps")
        while step < num_steps and not self._validator.is_over(t, step):
            step = self._advance(t, step, num_steps)
        best = self._validator.best_step(t, step) or step
        if step < num_steps:
            self._monitor.note(f"iteration {t + 1}: training stopped early, after step {step} of {num_steps}")
            self._monitor.end_early(LEARNER_STAGE)
        if best < step:
            self._monitor.note(f"iteration {t + 1}: the weights of step {best} are kept, the best validated one")
            learner.broadcast(Learner.load_checkpoint, str(self._store.checkpoints(t)[best]))
        made = self._store.policy(t + 1) or self._publish(t, best)
        self._roles.invalidate("learner")  # it was opened as version t, which may be the next reference again
        self._store.drop_checkpoints(t)
        return made

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

    def _continue(self, t: int) -> int:
        """Load the newest checkpoint from which the undisturbed run's result can be reached; its step, or 0.

        That needs the validations before it, and the checkpoint of the step that was best until then.
        """
        checkpoints = self._store.checkpoints(t)
        for step in sorted(checkpoints, reverse=True):
            best = self._validator.best_step(t, step)
            if self._validator.is_complete(t, step) and (best is None or best in checkpoints):
                self._roles.learner.broadcast(Learner.load_checkpoint, str(checkpoints[step]))
                self._monitor.note(f"iteration {t + 1}: the learner continues after step {step}")
                return step
        return 0

    def _advance(self, t: int, step: int, num_steps: int) -> int:
        """Run a few optimizer steps; validate and save a checkpoint where they are due. Returns the step reached."""
        learner, every = self._roles.learner, self._config.learner.checkpoint_every
        due = (step // every + 1) * every
        validated = self._validator.next_due(step, num_steps)
        until = min(step + self._config.tracking.log_every, due, validated)
        result = learner.submit(Learner.advance, until).result()
        seconds = (result.end - result.start) / max(1, len(result.value))
        figures = self._validator.validate(t, until, num_steps)
        for n, metrics in enumerate(result.value, 1):
            of_step = {name: value for name, value in metrics.items() if name != "step"}
            if metrics["step"] == until:
                of_step |= figures
            end = result.start + n * seconds
            self._monitor.step(int(metrics["step"]), num_steps, of_step, seconds, end)
        best = self._validator.best_step(t, until)
        is_best = best == until and bool(figures)
        if (until == due or is_best) and until < num_steps:
            learner.submit(Learner.save_checkpoint, str(self._store.new_checkpoint(t, until)), until).result()
            learner.replay(Learner.load_checkpoint, str(self._store.commit_checkpoint(t, until, keep=best)))
        return until

    def _publish(self, t: int, step: int) -> Policy:
        """Commit the weights after `step` steps as version t + 1."""
        folder = self._store.new_weights(t + 1)
        with self._monitor.timed("save"):
            probe = (self._probe.prompt_token_ids, self._probe.completion_token_ids)
            logprobs = self._roles.learner.submit(Learner.save_weights, str(folder), step, *probe).result().value
            return self._store.commit_weights(t + 1, logprobs, step)
