"""The learner: one rank of a DeepSpeed group that computes reference log-probabilities and updates weights.

All ranks call the same methods in the same order. An iteration is a function of the policy folder, the rows and the
config: `open` starts from the folder with a fresh optimizer, and nothing is kept in memory between iterations. The
reference is the policy before its first update, so there is never a second model in memory.

    join -> open -> ref_logps* -> begin -> [load_checkpoint] -> advance* -> save_weights -> open -> ...
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch import distributed as dist

from actors.learner.batches import (
    MicroBatch,
    Step,
    count_steps,
    fingerprint,
    lr_at,
    micro_batches,
    training_order,
)
from actors.learner.deepspeed import deepspeed_config, device, free_address, join_group, make_optimizer
from actors.learner.forward import Ranks, batches_of, ref_logps, rows_of, validate
from actors.learner.policy import collate
from actors.learner.step_metrics import GradientWatch, StepTotals
from actors.learner.versions import Versions
from engine.algorithms.base import Algorithm
from engine.config.run import LearnerConfig, ModelConfig
from engine.errors import DataError, NonFiniteError, RoleError, StoreError
from engine.schema import REF_LOGPS, SELECTED, conform
from engine.seeds import derive_seed

CHECKPOINT = "learner"
"""DeepSpeed's tag: the subfolder of a checkpoint folder."""


class Learner:
    """One rank; constructing it is cheap."""

    _watch: GradientWatch
    _shards: list[pa.Table]
    _order: list[Step]

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        algorithm: Algorithm,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ):
        self.config = config
        self.model = model
        self.algorithm = algorithm
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self._engine: Any = None
        self._versions = Versions(config, model)
        self._untrained = False
        self._forget_rows()

    # ---- the group ----

    def rendezvous(self) -> tuple[str, int]:
        """Rank 0: host and port where the group meets; pass them to every rank's `join`."""
        return free_address()

    def join(self, host: str, port: int, timeout_s: float = 1800.0) -> None:
        """Join the group; returns when all ranks have joined. timeout_s limits this and each later collective."""
        threads = max(1, int(self.config.cpus))
        join_group(host, port, self.rank, self.world_size, threads, timeout_s)

    def close(self) -> None:
        """Free the memory and leave the group."""
        self.sleep()
        if dist.is_initialized():
            dist.destroy_process_group()

    # ---- the policy ----

    def open(self, policy_folder: str, base: str | None = None, version: int = 0) -> None:
        """Build a fresh engine and optimizer from a version of the policy; frees the previous ones first.

        base: the whole model to which the adapter in policy_folder belongs; None: the folder is a whole model.
        version: seeds a fresh adapter. Raises ModelError or WeightsError if the folder cannot be used.
        """
        import deepspeed

        self.sleep()
        seed = derive_seed(self.seed, "lora", version)
        policy = self._versions.load(Path(policy_folder), Path(base) if base else None, seed)
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=make_optimizer(self.config.optimizer, [p for p in policy.parameters() if p.requires_grad]),
            config=deepspeed_config(self.config, self.model, self.world_size),
            dist_init_required=False,
        )
        self._watch = GradientWatch(policy)
        self._untrained = True

    def sleep(self) -> None:
        """Free the engine's memory. The rank stays in its group; `open` builds a new engine."""
        self._forget_rows()
        if self._engine is None:
            return
        self._engine.destroy()
        self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def ref_logps(self, rows: pa.Table) -> list[list[float]]:
        """[rows][n] log-probabilities of the answers of one shard (engine.schema.SELECTED) under the opened policy.

        In nats, summed over tokens; every rank returns the whole list. Computed in the micro-batches in which the
        shard will train, so that the log-ratio before the first update is exactly 0. Pass one shard per call.
        Raises NonFiniteError naming the prompts whose log-probabilities are not finite.
        """
        self._require_untrained("ref_logps")
        rows = conform(rows, SELECTED, "learner reference")
        return ref_logps(self._engine, rows, self._ranks)

    def token_logps(
        self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]
    ) -> list[list[float]]:
        """[answers][tokens] log-probabilities of a few answers, in nats, under the opened policy.

        Every rank computes all of them, one answer at a time, and returns the same lists.
        """
        self._require_engine()
        logps = []
        for prompt, answer in zip(prompt_token_ids, completion_token_ids, strict=True):
            row = {"prompt_id": "probe", "prompt_token_ids": prompt, "completion_token_ids": [answer]}
            with torch.no_grad():
                values = self._engine(**collate([row], device()), per_token=True)[0].tolist()
            logps.append(values[len(prompt) - 1 : len(prompt) - 1 + len(answer)])
        return logps

    # ---- training ----

    def begin(self, shards: list[pa.Table], iteration: int) -> dict[str, Any]:
        """Take the iteration's rows, one table (engine.schema.REF_LOGPS) per shard in their fixed order.

        iteration: counted from 0. Returns num_rows, num_answers, num_steps (that `advance` will run) and
        scheduled_steps (over which the learning rate falls to its end). Raises DataError if no shard holds a row.
        """
        self._require_untrained("begin")
        tables = [conform(shard, REF_LOGPS, f"learner shard {i}") for i, shard in enumerate(shards)]
        sizes = [table.num_rows for table in tables]
        if not sum(sizes):
            raise DataError(
                f"iteration {iteration + 1}: none of {len(sizes)} shards holds a training row; see the counts of "
                "ties and exclusions, and raise sampling.num_samples or sampling.temperature"
            )
        config, schedule = self.config, self.config.schedule
        self._shards = tables
        self._order = training_order(
            sizes,
            micro_batch_size=config.micro_batch_size,
            batch_size=config.batch_size,
            num_ranks=self.world_size,
            epochs=schedule.stop_after_epochs,
            seed=derive_seed(self.seed, "order", iteration),
            max_steps=schedule.max_steps,
        )
        per_step = config.batch_size // config.micro_batch_size
        pieces = micro_batches(sizes, config.micro_batch_size)
        epochs = schedule.scheduler_total_epochs
        self._scheduled = schedule.max_steps or count_steps(len(pieces), per_step, epochs)
        self._done = 0
        return {
            "num_rows": sum(sizes),
            "num_answers": sum(len(answers) for t in tables for answers in t["completion_index"].to_pylist()),
            "num_steps": len(self._order),
            "scheduled_steps": self._scheduled,
        }

    def advance(self, until: int) -> list[dict[str, float]]:
        """Run optimizer steps until `until` steps of the iteration are done; returns one dict of metrics per step run.

        `until` is counted from the start of the iteration, so that a group that was restored from a checkpoint stops
        at the same step. [] if the steps are done already.
        The metrics are those of the group, the same on every rank: loss (mean over the step's rows), grad_norm
        (before clipping), learning_rate, epoch, step (from 1), rewards/chosen, /rejected, /margins, /accuracies,
        logps/chosen, logps/rejected, log_ratio/max_abs, num_tokens.
        Raises NonFiniteError on every rank, before the weights change; call `open` again then.
        """
        self._require_rows()
        return [self._train_step(step) for step in self._order[self._done : until]]

    def validate(self, rows: pa.Table, step: int) -> pa.Table:
        """Advance to `step`; losses and implicit rewards (engine.schema.VALIDATION) of a shard of held-out rows.

        rows: engine.schema.REF_LOGPS. They do not train. Every rank returns the whole table. Raises NonFiniteError
        naming the prompts whose log-probabilities or losses are not finite.
        """
        self._require_rows()
        self.advance(step)
        rows = conform(rows, REF_LOGPS, "learner validation")
        return validate(self._engine, self.algorithm, rows, self._ranks)

    def _train_step(self, step: Step) -> dict[str, float]:
        self._untrained = False
        rate = self._learning_rate()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        totals = StepTotals(len(step.passes), self.rank, self.world_size, device())
        for index, ranks in enumerate(step.passes):
            self._engine.set_gradient_accumulation_boundary(index == len(step.passes) - 1)
            self._train_micro_batch(ranks[self.rank], step.num_rows, totals, index)
        totals.reduce()
        self._require_finite(step, totals)
        grad_norm = self._update_weights()
        self._done += 1
        return {
            "step": self._done,
            "epoch": step.epoch,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            **totals.metrics(step.num_rows),
        }

    def _train_micro_batch(self, own: MicroBatch, step_rows: int, totals: StepTotals, index: int) -> None:
        """Forward and backward. The engine averages gradients over ranks; scale_wrt_gas=False stops further division.

        With a factor of world_size / step_rows per row, the sum over passes and ranks, divided by world_size, is the
        exact mean over the step's rows for any distribution over ranks.
        """
        rows = rows_of(self._shards[own.shard], own)
        batch = collate(rows, device())
        logps = self._engine(**batch)
        # An empty micro-batch takes part in the backward pass too, with gradient 0.
        loss = self._row_losses(rows, logps, totals) * (self.world_size / step_rows) if rows else logps.sum() * 0.0
        self._engine.backward(loss, scale_wrt_gas=False)
        finite = loss.detach().isfinite()
        totals.mark(index, finite, self._watch.take(default=torch.ones_like(finite)))
        if rows:
            totals.add_tokens(int(batch["attention_mask"].sum()))

    def _row_losses(self, rows: list[dict], logps: Tensor, totals: StepTotals) -> Tensor:
        """Sum of the rows' losses. Rows with equally many answers are one batch, since some losses compare rows."""
        losses = []
        for batch in batches_of(rows, logps):
            losses.append(self.algorithm.loss(batch))
            totals.add(batch, losses[-1], self.algorithm.rewards(batch))
        return torch.cat(losses).sum()

    def _update_weights(self) -> float:
        """Clip and step; returns the gradient's global norm before clipping."""
        plain = not self._engine.zero_optimization() and not self._engine.bfloat16_enabled()
        if plain:  # DeepSpeed clips in this case but does not report the norm
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
        self._engine.step()
        if not plain:
            norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm) or not self._engine.was_step_applied():
            step = self._done + 1
            self._forget_rows()
            raise NonFiniteError(
                f"learner step {step}: the norm of the summed gradient is {norm} although each micro-batch's "
                "gradient is finite; lower algorithm.eta or use model.dtype = float32. The step was not applied"
            )
        return norm

    def _learning_rate(self) -> float:
        schedule = self.config.schedule
        return lr_at(
            self._done,
            peak=self.config.optimizer.lr,
            total_steps=self._scheduled,
            warmup_steps=schedule.warmup(self._scheduled),
            kind=schedule.kind,
        )

    # ---- files ----

    def save_checkpoint(self, folder: str, step: int) -> None:
        """Advance to `step`, then write weights, optimizer and number of steps to a folder that all ranks can see."""
        self._require_rows()
        self.advance(step)
        state = {"kumite_step": self._done, "kumite_order": fingerprint(self._order)}
        # Frozen weights do not change: `open` reads them from the policy's folder.
        frozen = self.config.lora is not None
        self._engine.save_checkpoint(folder, tag=CHECKPOINT, client_state=state, exclude_frozen_parameters=frozen)

    def load_checkpoint(self, folder: str) -> int:
        """Continue from a checkpoint; returns its number of finished steps. Call `begin` first.

        The same rows follow in the same order; on CPUs the weights become bit-equal to those of an uninterrupted run.
        Raises StoreError if the checkpoint is missing or belongs to other rows.
        """
        self._require_rows()
        self._untrained = False
        strict = self.config.lora is None
        path, state = self._engine.load_checkpoint(folder, tag=CHECKPOINT, load_module_strict=strict)
        if path is None or state.get("kumite_order") != fingerprint(self._order):
            raise StoreError(
                f"{folder} holds no learner checkpoint of these rows in this order; remove it to train from the start"
            )
        self._done = state["kumite_step"]
        return self._done

    def save_weights(
        self, folder: str, step: int, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]
    ) -> list[list[float]]:
        """Advance to `step`, write the policy as a whole model or an adapter, and return its log-probabilities.

        Rank 0 writes, all ranks call. safetensors in model.dtype: a whole model with the config, the tokenizer and
        the chat template of the folder that was opened, or an adapter in PEFT's format. Returns on every rank once
        the files are written. The log-probabilities come from the weights in memory, so a generator that reproduces
        them has loaded the right files.
        """
        self._require_engine()
        if self._done < step:
            self.advance(step)
        self._versions.save(self._engine.module, Path(folder), keep=self.rank == 0)
        dist.barrier()
        return self.token_logps(prompt_token_ids, completion_token_ids)

    # ---- checks ----

    @property
    def _ranks(self) -> Ranks:
        return Ranks(self.config.micro_batch_size, self.rank, self.world_size)

    def _forget_rows(self) -> None:
        self._shards = []
        self._order = []
        self._scheduled = 0
        self._done = 0

    def _require_engine(self) -> None:
        if self._engine is None:
            raise RoleError("the learner has no policy; call open(folder) first")

    def _require_untrained(self, call: str) -> None:
        self._require_engine()
        if not self._untrained:
            raise RoleError(
                f"{call} needs the policy as it is in its folder, but steps were run; call open(folder) again"
            )

    def _require_rows(self) -> None:
        self._require_engine()
        if not self._order:
            raise RoleError("the learner has no rows; call open(folder) and begin(shards, iteration) first")

    def _require_finite(self, step: Step, totals: StepTotals) -> None:
        culprits = totals.culprits()
        if not culprits:
            return
        places = []
        for index, rank, kind in culprits:
            piece = step.passes[index][rank]
            ids = [row["prompt_id"] for row in rows_of(self._shards[piece.shard], piece)]
            places.append(f"{kind} of prompts {ids} (shard {piece.shard})")
        number = self._done + 1
        self._forget_rows()
        raise NonFiniteError(
            f"learner step {number}: not finite: {'; '.join(places)}. The weights are those before this step. "
            "Check win_rate and ref_logps of these rows; if they are finite, lower the learning rate"
        )
