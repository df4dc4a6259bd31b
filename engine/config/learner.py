"""The configuration of the learner: ranks, optimizer, schedule, LoRA adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from engine.config.base import WITHOUT_EFFECT, Count, Fraction, Section

ValidationMetric = Literal["loss", "accuracy"]
"""Of held-out preferences."""


class OptimizerConfig(Section):
    """Every iteration starts with a new optimizer."""

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSprop in SPPO's released runs."""
    lr: Annotated[float, Field(ge=0.0)] = 5e-7
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """rmsprop: L2 penalty; adamw: decoupled decay."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, for numerical stability."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """rmsprop: decay of the mean squared gradient."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    """adamw: decays of the mean gradient and of the mean squared gradient."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this global norm; null: no clipping."""


class ScheduleConfig(Section):
    """The learning rate over one iteration."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up; linear and cosine fall to 0."""
    warmup_ratio: Fraction = 0.1
    """Share of the *scheduled* steps in which the learning rate rises from 0."""
    warmup_steps: Count | None = None
    """The same as a number of steps, in place of warmup_ratio."""
    max_steps: PositiveInt | None = None
    """Optimizer steps of each iteration, scheduled and trained, in place of the two keys of epochs; rows repeat where
    there are too few (transformers' max_steps)."""
    scheduler_total_epochs: PositiveFloat = 1.0
    """Epochs over which the schedule stretches: 18 in the SPPO paper, 6 on its model cards, 1 in its scripts."""
    stop_after_epochs: PositiveFloat = 1.0
    """Epochs that are trained; 1 in all three."""

    def warmup(self, scheduled_steps: int) -> float:
        """Steps in which the learning rate rises; a ratio is not rounded."""
        return self.warmup_ratio * scheduled_steps if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="before")
    @classmethod
    def _let_steps_replace_the_default_ratio(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("warmup_steps") is not None and "warmup_ratio" not in data:
            return data | {"warmup_ratio": 0.0}
        return data

    @model_validator(mode="after")
    def _check_one_key_for_each(self) -> ScheduleConfig:
        if self.warmup_steps is not None and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} and warmup_ratio = {self.warmup_ratio} both say how long the "
                f"learning rate rises; remove one of them"
            )
        epochs = {"scheduler_total_epochs": self.scheduler_total_epochs, "stop_after_epochs": self.stop_after_epochs}
        others = [f"{name} = {value:g}" for name, value in epochs.items() if value != 1.0]
        if self.max_steps is not None and others:
            raise ValueError(
                f"max_steps = {self.max_steps} takes the place of {' and '.join(others)}; remove the one or the other"
            )
        return self

    @model_validator(mode="after")
    def _check_stops_within_schedule(self) -> ScheduleConfig:
        if self.stop_after_epochs > self.scheduler_total_epochs:
            raise ValueError(
                f"stop_after_epochs = {self.stop_after_epochs} is beyond scheduler_total_epochs = "
                f"{self.scheduler_total_epochs}: the learning rate would be 0 after that"
            )
        return self


class EarlyStoppingConfig(Section):
    """Ends an iteration's training when validation no longer improves (transformers' EarlyStoppingCallback)."""

    patience: PositiveInt = 1
    """Validations in a row without an improvement after which training ends."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """An improvement is by more than this over the best so far, in units of the metric."""
    metric: ValidationMetric = "loss"
    """loss: lower is better; accuracy: higher is better."""


class LearnerConfig(Section):
    """The group of ranks that trains the policy and computes the reference log-probabilities."""

    num_ranks: PositiveInt = 1
    """Processes that train together (the world size)."""
    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """CPU cores per rank."""
    gpus: Literal[0, 1] = 0
    """GPUs per rank."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """DeepSpeed ZeRO stage: ranks share optimizer state (1), gradients too (2), weights too (3)."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory (ZeRO 1 to 3)."""
    batch_size: PositiveInt = 64
    """Prompts per optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 1
    """Prompts per forward pass and rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory and costs time."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters; null: all weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients change the weights."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over one iteration."""
    logits_chunk: PositiveInt = 1024
    """Tokens whose logits are in memory at one time; fewer need less memory."""
    checkpoint_every: Annotated[PositiveInt, WITHOUT_EFFECT] = 50
    """Optimizer steps between two checkpoints from which the learner restarts within an iteration."""
    evaluate_every: PositiveInt | None = None
    """Optimizer steps between two validations on evaluation.preferences; null: one, after an iteration's last step."""
    early_stopping: EarlyStoppingConfig | None = None
    """Ends an iteration's training early; null: never."""
    keep_best_step: ValidationMetric | None = None
    """loss or accuracy: an iteration makes the weights of its validated step that was best in it, which keeps one more
    checkpoint; null: those of its last step."""

    @model_validator(mode="after")
    def _check_batch_divides(self) -> LearnerConfig:
        per_pass = self.micro_batch_size * self.num_ranks
        if self.batch_size % per_pass:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of micro_batch_size x num_ranks = "
                f"{self.micro_batch_size} x {self.num_ranks} = {per_pass}"
            )
        return self

    @model_validator(mode="after")
    def _check_there_are_steps_to_choose_from(self) -> LearnerConfig:
        chosen = {"early_stopping": self.early_stopping, "keep_best_step": self.keep_best_step}
        names = [name for name, value in chosen.items() if value is not None]
        if names and self.evaluate_every is None:
            raise ValueError(
                f"{' and '.join(names)} without evaluate_every: an iteration is validated once, after its last step; "
                f"set evaluate_every, e.g. to 50 steps"
            )
        return self

    @model_validator(mode="after")
    def _check_lora_is_possible(self) -> LearnerConfig:
        if self.lora and self.lora.quantize and (not self.gpus or self.zero_stage > 2):
            raise ValueError(
                f"lora.quantize = {self.lora.quantize} with gpus = {self.gpus} and zero_stage = {self.zero_stage}: "
                f"bitsandbytes computes on GPUs, and ZeRO-3 cannot divide 4-bit weights; set gpus = 1 and "
                f"zero_stage = 2, or quantize = null"
            )
        return self


SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's max_lora_rank accepts; an adapter may have any rank up to it."""
OUTER = ("lm_head", "embed", "wte", "wpe")
"""Parts of the names of embedding and output layers."""


class LoRAConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha / rank * B A, where only A and B are trained."""

    rank: PositiveInt = 16
    """Rank of the matrices A and B."""
    alpha: PositiveFloat = 32.0
    """The product B A is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Only 0 is possible: with dropout the log-ratio before the first update would not be 0."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """all-linear: every linear layer except the language-model head; or names of layers, e.g. [q_proj, v_proj]."""
    between_iterations: Literal["continue", "stack", "merge"] = "continue"
    """continue: one adapter for the whole run; stack: each iteration trains a fresh one on top of the frozen earlier
    ones, saved as one adapter whose rank grows; merge: each adapter is merged and a whole model published."""
    quantize: Literal["nf4"] | None = None
    """nf4: the learner holds the base in 4 bits (QLoRA, arXiv 2305.14314); needs bitsandbytes and a GPU."""

    @field_validator("dropout")
    @classmethod
    def _check_no_dropout(cls, value: float) -> float:
        if value != 0.0:
            raise ValueError(
                "only 0 is possible: with dropout the log-ratio before the first update would not be 0; remove it"
            )
        return value

    @field_validator("target_modules")
    @classmethod
    def _check_targets_are_inside_blocks(cls, value: str | list[str]) -> str | list[str]:
        outer = [name for name in value if any(part in name for part in OUTER)] if isinstance(value, list) else []
        if outer:
            raise ValueError(
                f"{', '.join(outer)}: head and embeddings get no adapter, because they are computed in chunks and may "
                f"be tied; name layers inside the blocks, e.g. [q_proj, v_proj], or use all-linear"
            )
        return value

    @model_validator(mode="after")
    def _check_merge_is_unquantized(self) -> LoRAConfig:
        if self.quantize and self.between_iterations == "merge":
            raise ValueError(
                f"between_iterations = merge does not go with quantize = {self.quantize}: the weights to merge into "
                f"were rounded to 4 bits; use continue or stack, and `kumite merge` at the end"
            )
        return self

    @property
    def saves_adapters(self) -> bool:
        """Whether a version of the policy is an adapter; else it is a whole model."""
        return self.between_iterations != "merge"

    def last_rank(self, iterations: int) -> int:
        """Rank of the adapter that generators serve at the end of the run; 0 where they serve whole models."""
        if not self.saves_adapters:
            return 0
        return self.rank * (iterations if self.between_iterations == "stack" else 1)
