"""How versions of the policy are compared on held-out prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from engine.config.base import Section
from engine.config.prompts import PromptsConfig
from engine.config.scorer import ScorerConfig


class EvaluationConfig(Section):
    """Held-out prompts on which every policy is compared with the start and with its predecessor."""

    prompts: PromptsConfig
    num_samples: PositiveInt = 1
    """Answers per held-out prompt and policy."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """0: greedy."""
    scorer: ScorerConfig | None = None
    """Who decides; null: the training scorer, which flatters the policy that it trained."""

    @model_validator(mode="after")
    def _greedy_answers_once(self) -> EvaluationConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"num_samples = {self.num_samples} at temperature 0 would all be the same answer; use 1")
        return self
