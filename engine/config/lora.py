"""The configuration of low-rank adapters. Knows nothing of other sections; engine/config/model.py joins them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from engine.config.section import Section

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's max_lora_rank; an adapter may have any rank up to it."""
OUTER = ("lm_head", "embed", "wte", "wpe")
"""Parts of names of layers that turn ids into vectors and back."""


class LoRAConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha / rank * B A, where only A and B are trained."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The product B A counts alpha / rank times."""
    dropout: float = 0.0
    """Only 0: with dropout the log-ratio before the first update would be noise instead of 0."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """all-linear: every linear layer but the language-model head; or names of layers, e.g. [q_proj, v_proj]."""
    between_iterations: Literal["continue", "stack", "merge"] = "continue"
    """continue: one adapter for the whole run; stack: each iteration trains a fresh one on top of the frozen earlier
    ones, saved as one adapter whose rank grows; merge: each adapter is merged and a whole model published."""
    quantize: Literal["nf4"] | None = None
    """nf4: the learner holds the base in 4 bits (QLoRA, arXiv 2305.14314); needs bitsandbytes and a GPU."""

    @field_validator("dropout")
    @classmethod
    def _has_no_dropout(cls, value: float) -> float:
        if value != 0.0:
            raise ValueError(
                "only 0 is possible: with dropout the log-ratio before the first update would not be 0; remove it"
            )
        return value

    @field_validator("target_modules")
    @classmethod
    def _leaves_head_and_embeddings_alone(cls, value: str | list[str]) -> str | list[str]:
        outer = [name for name in value if any(part in name for part in OUTER)] if isinstance(value, list) else []
        if outer:
            raise ValueError(
                f"{', '.join(outer)}: head and embeddings get no adapter, their layers are computed in chunks and may "
                f"be tied; name layers inside the blocks, e.g. [q_proj, v_proj], or use all-linear"
            )
        return value

    @model_validator(mode="after")
    def _merges_whole_weights_only(self) -> LoRAConfig:
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
