"""How versions of the policy are compared on held-out prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from engine.config.base import Section
from engine.config.benchmarks import BenchmarksConfig
from engine.config.prompts import PromptsConfig
from engine.config.scorer import ScorerConfig


class EvaluationConfig(Section):
    """Held-out prompts on which every policy is compared with the start policy and with the previous one."""

    prompts: PromptsConfig
    """The held-out prompts."""
    num_samples: PositiveInt = 1
    """Answers per held-out prompt and policy."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """Of these answers; 0: greedy."""
    scorer: ScorerConfig | None = None
    """The scorer that compares them; null: the training scorer, which favours the policy that it trained."""
    annotator: ScorerConfig | None = None
    """The scorer that annotates the answers to benchmarks, as a rule an LLM judge; null: the one above."""
    benchmarks: BenchmarksConfig | None = None
    """Published benchmarks on which every policy is measured; null: none."""

    @model_validator(mode="after")
    def _check_greedy_samples_once(self) -> EvaluationConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"num_samples = {self.num_samples} at temperature 0 would all be the same; use 1")
        return self
