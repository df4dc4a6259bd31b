"""The configuration of an LLM judge: what it is asked, how often, and who serves the model.

docs/judges.md explains the keys together. Imports nothing heavy.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from engine.config.judge_server import OpenAIServer
from engine.config.secrets import Arguments
from engine.config.section import ReplicasConfig, Section

CANARY = "Thank you for your question. I have considered it carefully, and this is the complete answer to it."
"""Fits every question and answers none, in the manner of the null models of arXiv 2410.07137."""


class PolicyServer(Section):
    """The generators of the policy judge its answers, with the weights that gave them (self-rewarding)."""

    kind: Literal["policy"] = "policy"


class VLLMServer(Section):
    """Another language model, served by vLLM in a pool of its own."""

    kind: Literal["vllm"] = "vllm"
    path: str
    """Folder or hub id of a causal language model with safetensors weights."""
    revision: str | None = None
    """Hub revision; pin it when trust_remote_code is on."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chat_template: str | None = None
    """File with a Jinja chat template; null: the model's own; "none": the user part of the prompt as it is."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    tensor_parallel_size: PositiveInt = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of a GPU's memory that vLLM may take."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] = 1.0
    """Size of the key-value cache on CPU machines, in GiB."""
    engine_args: Arguments = Field(default_factory=dict)
    """Further arguments of vllm.LLM by its own names."""
    num_parameters: PositiveFloat | None = None
    """For the plan, where the model is not on this machine; null: counted from its files."""


JudgeServer = Annotated[PolicyServer | VLLMServer | OpenAIServer, Field(discriminator="kind")]

ONLY_IN = {
    "pairwise": ("orders", "abstain"),
    "pointwise": ("num_judgements", "temperature", "max_new_tokens", "min_score", "max_score"),
}
"""Keys that mean something in one mode alone."""


class JudgeConfig(ReplicasConfig):
    """A language model that compares answers or gives them points."""

    kind: Literal["judge"] = "judge"
    server: JudgeServer
    """Who serves the judge."""
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    """pairwise: which of two answers is better; pointwise: a score for each answer alone."""
    prompt: str
    """File with what the judge is asked; recipes/judges/ has one for each mode."""
    orders: Literal["both", "random", "first"] = "both"
    """pairwise: ask with both orders of the answers, with one drawn per pair, or with the earlier sample first."""
    abstain: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """pairwise: a verdict whose probability is closer to 1/2 than this is a tie."""
    num_judgements: PositiveInt = 3
    """pointwise: sampled judgements per answer, averaged; 3 in Self-Rewarding, 11 in Meta-Rewarding."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.7
    """pointwise: of the sampled judgements."""
    max_new_tokens: PositiveInt = 512
    """pointwise: room for one judgement; one that is cut counts as missing."""
    min_score: float = 0.0
    """pointwise: the lowest score of the prompt's scale; one below it counts as missing."""
    max_score: float = 5.0
    """pointwise: the highest score of the prompt's scale; one above it counts as missing."""
    max_prompt_tokens: PositiveInt = 4096
    """Room for the filled-in prompt; a longer one is not asked, and counts as truncated and missing."""
    canary: str | None = CANARY
    """An answer that says nothing, tried against the policy's; null: no trial."""

    @model_validator(mode="after")
    def _keys_of_one_mode(self) -> JudgeConfig:
        for mode, names in ONLY_IN.items():
            changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if mode != self.mode and changed:
                raise ValueError(f"{', '.join(changed)}: without effect in mode = {self.mode}; only for mode = {mode}")
        if self.mode == "pointwise" and self.temperature == 0 and self.num_judgements > 1:
            raise ValueError(f"num_judgements = {self.num_judgements} at temperature 0 would all be the same; use 1")
        if self.min_score >= self.max_score:
            raise ValueError(f"min_score = {self.min_score:g} is not below max_score = {self.max_score:g}")
        return self

    @model_validator(mode="after")
    def _resources_belong_to_a_pool(self) -> JudgeConfig:
        names = ("num_replicas", "cpus", "gpus")
        changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.by_policy and changed:
            raise ValueError(
                f"{', '.join(changed)}: server.kind = policy has no pool of its own; set them in generator"
            )
        server = self.server
        if isinstance(server, VLLMServer) and self.gpus and server.tensor_parallel_size not in (1, self.gpus):
            raise ValueError(
                f"gpus = {self.gpus:g} does not go with server.tensor_parallel_size = {server.tensor_parallel_size}: "
                f"an engine that is split over GPUs needs exactly as many"
            )
        return self

    @model_validator(mode="after")
    def _a_remote_model_has_its_own_limits(self) -> JudgeConfig:
        if isinstance(self.server, OpenAIServer):
            if self.num_replicas > 1 or self.gpus:
                raise ValueError(
                    "num_replicas, gpus: server.kind = openai computes elsewhere, and its limits count in one process; "
                    "leave them alone and raise server.max_concurrency"
                )
            if self.max_prompt_tokens != type(self).model_fields["max_prompt_tokens"].default:
                raise ValueError("max_prompt_tokens: without effect for server.kind = openai, which has its own limit")
        return self

    @property
    def by_policy(self) -> bool:
        """Whether the policy judges itself."""
        return isinstance(self.server, PolicyServer)

    @property
    def reply_tokens(self) -> int:
        """Tokens that one reply takes at most."""
        return self.max_new_tokens if self.mode == "pointwise" else 1
