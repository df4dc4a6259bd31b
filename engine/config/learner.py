"""The configuration of the learner: its ranks, its optimizer and schedule, its adapters.

Knows nothing of other sections; engine/config/model.py joins them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from engine.config.lora import LoRAConfig
from engine.config.section import Fraction, Section


class OptimizerConfig(Section):
    """One optimizer per iteration, fresh at its start."""

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSprop in SPPO's released runs."""
    lr: Annotated[float, Field(ge=0.0)] = 5e-7
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    eps: PositiveFloat = 1e-8
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """RMSprop's decay of the squared gradient."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    """AdamW's decays."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the global gradient norm; null: no clipping."""


class ScheduleConfig(Section):
    """The learning rate over one iteration."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.1
    """Share of the *scheduled* steps that warm up."""
    scheduler_total_epochs: PositiveFloat = 1.0
    """Epochs the schedule is laid out for: 18 in the SPPO paper, 6 on its model cards, 1 in its scripts."""
    stop_after_epochs: PositiveFloat = 1.0
    """Epochs that are run; 1 in all three."""

    @model_validator(mode="after")
    def _stops_within_the_schedule(self) -> ScheduleConfig:
        if self.stop_after_epochs > self.scheduler_total_epochs:
            raise ValueError(
                f"stop_after_epochs = {self.stop_after_epochs} is beyond scheduler_total_epochs = "
                f"{self.scheduler_total_epochs}: the learning rate would be 0 from there on"
            )
        return self


class LearnerConfig(Section):
    """The DeepSpeed group that updates the weights and knows the reference log-probabilities."""

    kind: Literal["deepspeed", "fake"] = "deepspeed"
    num_ranks: PositiveInt = 1
    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """CPU cores per rank."""
    gpus: Literal[0, 1] = 0
    """GPUs per rank; a rank computes on one."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory (ZeRO 1 to 3)."""
    batch_size: PositiveInt = 64
    """Prompts per optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 1
    """Prompts per forward pass and rank."""
    gradient_checkpointing: bool = False
    lora: LoRAConfig | None = None
    """Train low-rank adapters; null: all weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    logits_chunk: PositiveInt = 1024
    """Tokens whose logits exist at one time; bounds memory, never changes the result's meaning."""
    checkpoint_every: PositiveInt = 50
    """Steps between the learner's own checkpoints, from which it restarts within an iteration."""

    @model_validator(mode="after")
    def _batch_divides(self) -> LearnerConfig:
        per_pass = self.micro_batch_size * self.num_ranks
        if self.batch_size % per_pass:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of micro_batch_size x num_ranks = "
                f"{self.micro_batch_size} x {self.num_ranks} = {per_pass}"
            )
        return self

    @model_validator(mode="after")
    def _can_hold_adapters(self) -> LearnerConfig:
        if self.lora and self.kind == "fake":
            raise ValueError("lora needs kind = deepspeed: the fake learner has no layers to adapt; remove lora")
        if self.lora and self.lora.quantize and (not self.gpus or self.zero_stage > 2):
            raise ValueError(
                f"lora.quantize = {self.lora.quantize} with gpus = {self.gpus} and zero_stage = {self.zero_stage}: "
                f"bitsandbytes computes on GPUs, and ZeRO-3 cannot divide 4-bit weights; set gpus = 1 and "
                f"zero_stage = 2, or quantize = null"
            )
        return self
