"""The scorers that compare answers: PairRM, a Python rule, llm_blender; LLM judges are in engine/config/judge.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from engine.config.base import Arguments, DottedPath, ReplicasConfig
from engine.config.judge import JudgeConfig


class PairRMConfig(ReplicasConfig):
    """PairRM (arXiv 2306.02561) by Kumite's own batched module."""

    kind: Literal["pairrm"] = "pairrm"
    """PairRM by Kumite's own batched module."""
    path: str
    """Folder or hub id of the scorer, in the layout of llm-blender/PairRM or llm-blender/PairRM-hf."""
    base_path: str | None = None
    """Folder or hub id of tokenizer and backbone config if the checkpoint has none; null: the model_name it states."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type that PairRM computes in."""
    source: Literal["plain", "templated"] = "plain"
    """What PairRM reads as the prompt. plain: the user's text; templated: the rendered chat (SPPO's scripts)."""
    source_max_tokens: PositiveInt | None = None
    """Most tokens of the prompt; null: the checkpoint's own limit (1224 in PairRM)."""
    answer_max_tokens: PositiveInt | None = None
    """Most tokens of each answer, plus what the prompt leaves unused; null: the checkpoint's own limit (412)."""
    batch_tokens: PositiveInt = 16384
    """Tokens in one forward pass, padding included."""


class RuleConfig(ReplicasConfig):
    """A Python function (messages, answers) -> K scores in nats, or K x K pair logits."""

    kind: Literal["rule"] = "rule"
    """A Python function."""
    function: DottedPath
    """`package.module:function`, importable where the scorers run."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments for the function."""


class RewardModelConfig(ReplicasConfig):
    """A reward model: a sequence classifier of transformers with one output; logits are differences of rewards."""

    kind: Literal["reward_model"] = "reward_model"
    """A sequence classifier with one output."""
    path: str
    """Folder or hub id of a model with safetensors weights, such as TRL's RewardTrainer writes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type that the model computes in."""
    chat_template: str | None = None
    """File with a Jinja chat template; null: the tokenizer's own. Without one the model reads prompt and answer as a
    pair of texts, as encoders do."""
    max_tokens: PositiveInt | None = None
    """Most tokens of a conversation; a longer one loses its beginning, and is counted. null: what the model can read,
    at most 4096."""
    batch_tokens: PositiveInt = 16384
    """Tokens in one forward pass, padding included."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models whose code you have read."""


class BlenderConfig(ReplicasConfig):
    """PairRM through the llm_blender package; slower, for comparison."""

    kind: Literal["llm_blender"] = "llm_blender"
    """PairRM through the llm_blender package."""
    path: str
    """Local folder that llm_blender's loadranker accepts."""
    source: Literal["plain", "templated"] = "plain"
    """As in pairrm."""
    batch_size: PositiveInt = 1
    """Prompts per batch; above 1 llm_blender's scores depend on which prompts share a batch."""


class IFEvalScorerConfig(ReplicasConfig):
    """The share of instructions that an answer follows, checked by a program (IFEval, arXiv 2311.07911)."""

    kind: Literal["ifeval"] = "ifeval"
    """The share of instructions that an answer follows."""
    prompts: str
    """File or hub data set with `prompt`, `instruction_id_list` and `kwargs`, as google/IFEval's input_data.jsonl;
    train on its prompts."""
    strictness: Literal["strict", "loose"] = "strict"
    """loose: an answer may also follow without its first or last line or its asterisks."""
    scale: PositiveFloat = 5.0
    """Logit, in nats, with which an answer that follows all instructions beats one that follows none."""


ScorerConfig = Annotated[
    PairRMConfig | RewardModelConfig | RuleConfig | BlenderConfig | JudgeConfig | IFEvalScorerConfig,
    Field(discriminator="kind"),
]
