"""The configuration of `kumite eval`: benchmarks on policies that no run of its own makes."""

from __future__ import annotations

from pydantic import model_validator

from engine.config.base import Count
from engine.config.evaluation import EvaluationConfig
from engine.config.run import Setup


class EvaluateConfig(Setup):
    """Benchmarks on policies that share a tokenizer: the versions of a run, a model folder, an adapter."""

    evaluation: EvaluationConfig
    lora_rank: Count = 0
    """Largest rank of the adapters among the policies, found in their folders; 0: all are whole models."""

    @property
    def served_rank(self) -> int:
        return self.lora_rank

    @model_validator(mode="after")
    def _check_there_is_something_to_measure(self) -> EvaluateConfig:
        if self.evaluation.prompts is not None:
            raise ValueError("evaluation.prompts: held-out prompts belong to a run; kumite eval runs benchmarks")
        if self.evaluation.benchmarks is None:
            raise ValueError(
                "evaluation.benchmarks is missing: name at least one benchmark, as in recipes/benchmarks/demo.yaml"
            )
        return self
