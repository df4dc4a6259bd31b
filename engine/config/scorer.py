"""The scorers that compare answers: PairRM, a Python rule, llm_blender; LLM judges are in engine/config/judge.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from engine.config.base import Arguments, DottedPath, ReplicasConfig
from engine.config.judge import JudgeConfig


class PairRMConfig(ReplicasConfig):
    """PairRM (arXiv 2306.02561) by Kumite's own batched module."""

    kind: Literal["pairrm"] = "pairrm"
    path: str
    """Folder or hub id, in the layout of llm-blender/PairRM or llm-blender/PairRM-hf."""
    base_path: str | None = None
    """Folder or hub id of tokenizer and backbone config where the checkpoint lacks them; null: its model_name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    source: Literal["plain", "templated"] = "plain"
    """What PairRM reads as the prompt: the user's words, or the chat template's rendering (SPPO's scripts)."""
    source_max_tokens: PositiveInt | None = None
    """Room for the prompt; null: the checkpoint's own (1224 in PairRM)."""
    answer_max_tokens: PositiveInt | None = None
    """Room for each answer, to which unused prompt room is added; null: the checkpoint's own (412)."""
    batch_tokens: PositiveInt = 16384
    """Tokens, padding included, in one forward pass."""


class RuleConfig(ReplicasConfig):
    """A Python function (messages, answers) -> K scores in nats, or K x K pair logits."""

    kind: Literal["rule"] = "rule"
    function: DottedPath
    """`package.module:function`, importable where the scorers run."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments for the function."""


class BlenderConfig(ReplicasConfig):
    """PairRM through the llm_blender package itself; slower, kept for comparison."""

    kind: Literal["llm_blender"] = "llm_blender"
    path: str
    """Local folder that llm_blender's loadranker accepts."""
    source: Literal["plain", "templated"] = "plain"
    batch_size: PositiveInt = 1
    """Above 1 llm_blender's scores depend on which prompts share a batch."""


ScorerConfig = Annotated[PairRMConfig | RuleConfig | BlenderConfig | JudgeConfig, Field(discriminator="kind")]
