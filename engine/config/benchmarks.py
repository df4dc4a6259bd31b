"""The configuration of published benchmarks, `evaluation.benchmarks`: one section per benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PositiveInt, model_validator

from engine.config.base import WITHOUT_EFFECT, Section


class MTBenchConfig(Section):
    """MT-Bench (arXiv 2306.05685): questions of two turns, judged by an LLM with FastChat's prompts."""

    questions: str
    """File in the form of FastChat's question.jsonl."""
    references: str | None = None
    """File in the form of FastChat's reference_answer/gpt-4.jsonl, for questions on math, reasoning and coding."""
    judge_prompts: str | None = None
    """File in the form of FastChat's judge_prompts.jsonl; null: FastChat's own."""
    mode: Literal["single", "pairwise"] = "single"
    """single: each answer gets a rating from 1 to 10; pairwise: it is compared with the baseline's."""
    baseline: str | None = None
    """pairwise: the other answers, in the form of FastChat's model_answer/<model>.jsonl."""
    questions_per_category: PositiveInt | None = None
    """Use the first questions of each category only, for a trial; null: all."""
    max_new_tokens: PositiveInt = 1024
    """Most tokens of an answer of the policy; 1024 in FastChat."""
    max_prompt_tokens: PositiveInt = 2048
    """Most tokens of a prompt of the policy. A second turn with a longer one is not asked, and counted."""
    judge_max_new_tokens: PositiveInt = 2048
    """Most tokens of a judgment; 2048 in FastChat."""
    judge_system: Literal["system", "user"] = "system"
    """Where the judge prompt's system part goes. user: before the question, for models without a system role, as
    FastChat does for Claude."""

    published: Annotated[str | None, WITHOUT_EFFECT] = None
    """single: ratings of other models, in the form of FastChat's model_judgment/gpt-4_single.jsonl, for the radar."""

    @model_validator(mode="after")
    def _check_files_of_mode(self) -> MTBenchConfig:
        if (self.mode == "pairwise") != (self.baseline is not None):
            raise ValueError(
                f"mode = {self.mode} with baseline = {self.baseline}: pairwise needs a baseline, single none"
            )
        if self.mode == "pairwise" and self.published is not None:
            raise ValueError("published: without effect in mode = pairwise; it holds ratings, as mode = single gives")
        return self


class RewardBenchConfig(Section):
    """RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937), which measure the annotator, not the policy."""

    source: str
    """File or hub id with the columns prompt, chosen, rejected (a text, or a list of texts), subset and id."""
    split: str = "test"
    """Split of a data set of the hub: "filtered" in allenai/reward-bench, "test" in allenai/reward-bench-2."""
    items_per_subset: PositiveInt | None = None
    """Use the first items of each subset only, for a trial; null: all."""


class BenchmarksConfig(Section):
    """Published benchmarks on which every policy is measured."""

    mt_bench: MTBenchConfig | None = None
    """MT-Bench; null: not measured."""
    reward_bench: RewardBenchConfig | None = None
    """RewardBench of the annotator, once for all versions of the policy; null: not measured."""

    @property
    def room(self) -> int:
        """Tokens of the longest prompt and answer of the policy; 0 if no benchmark asks it."""
        return self.mt_bench.max_prompt_tokens + self.mt_bench.max_new_tokens if self.mt_bench else 0
