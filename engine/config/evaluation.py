"""How versions of the policy are compared on held-out prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from engine.config.base import Fraction, Section
from engine.config.benchmarks import BenchmarksConfig
from engine.config.preferences import PreferencesConfig
from engine.config.prompts import PromptsConfig
from engine.config.scorer import ScorerConfig


class GateConfig(Section):
    """When a new version of the policy is promoted. On held-out prompts it must win against the version promoted last,
    and no alarm may fire. An alarm that is null never does."""

    policy: Literal["warn", "keep_best", "stop", "reject"] = "warn"
    """What happens if a version is not promoted. warn: a note; keep_best: a note, and the run's result is the version
    promoted last; stop: the run ends; reject: the next iteration starts from the version promoted last."""
    threshold: Fraction = 0.5
    """The 95 % interval of the win rate against the current version must lie above this."""
    max_length_ratio: PositiveFloat | None = 1.5
    """Alarm: mean length of held-out answers, in units of the start's."""
    max_kl: PositiveFloat | None = None
    """Alarm: KL divergence of the policy from the start, in nats per held-out answer."""
    max_truncation_rise: Fraction | None = 0.2
    """Alarm: share of truncated held-out answers, less the start's."""
    min_entropy_ratio: PositiveFloat | None = 0.1
    """Alarm: entropy per token of held-out answers, in units of the start's."""
    min_agreement: Fraction | None = 0.55
    """Alarm: share of answer pairs on which the training scorer and the evaluator agree; 0.5 is chance."""
    max_tie_rate: Fraction | None = 0.9
    """Alarm: share of prompts on which the training scorer does not tell the best answer from the worst."""
    max_null_model_win_rate: Fraction | None = 0.5
    """Alarm: share of prompts on which an LLM judge prefers an answer that says nothing."""


class EvaluationConfig(Section):
    """Held-out prompts on which every policy is compared with the start policy and with the previous one."""

    prompts: PromptsConfig | None = None
    """The held-out prompts; null: none, so that no version is compared with another."""
    preferences: PreferencesConfig | None = None
    """Held-out preferences, on which the learner is validated; null: none."""
    num_samples: PositiveInt = 1
    """Answers per held-out prompt and policy."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """Of these answers; 0: greedy."""
    scorer: ScorerConfig | None = None
    """The scorer that compares them; null: the training scorer, which favours the policy that it trained."""
    gate: GateConfig = GateConfig()
    """Which versions are promoted, and what happens to the others."""
    ladder: bool = True
    """Compare every version with every earlier one: its comparisons grow with the square of the iterations."""
    kl: bool | None = None
    """Measure the KL divergence from the start policy on held-out answers; null: yes, if generators serve whole models.
    With adapters it takes one request per token of each answer."""
    annotator: ScorerConfig | None = None
    """The scorer that annotates the answers to benchmarks, as a rule an LLM judge; null: the one above."""
    benchmarks: BenchmarksConfig | None = None
    """Published benchmarks on which every policy is measured; null: none."""

    @model_validator(mode="after")
    def _check_greedy_samples_once(self) -> EvaluationConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"num_samples = {self.num_samples} at temperature 0 would all be the same; use 1")
        return self
