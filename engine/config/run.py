"""The configuration of a run: every key, its range, its default and what it means.

Frozen pydantic models that forbid unknown keys. Imports nothing heavy, so that `--help`, `--dry-run`
and error messages answer at once. Reading files and command lines is engine/config/load.py's work.
Each role gets its own section, never the whole.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from engine.algorithms import SPPO, AlgorithmConfig
from engine.config.base import Arguments, Count, ReplicasConfig, Section
from engine.config.evaluation import EvaluationConfig
from engine.config.judge import JudgeConfig
from engine.config.learner import SERVED_RANKS, LearnerConfig
from engine.config.prompts import PromptsConfig
from engine.config.scorer import ScorerConfig

RoleName = Literal["generator", "scorer", "evaluator", "learner"]


class ModelConfig(Section):
    """The policy that the run starts from."""

    path: str
    """Folder or hub id of a causal language model with safetensors weights; "tiny": an untrained one of 0.1 million
    parameters is made in the run's folder, for trying the engines."""
    revision: str | None = None
    """Hub revision; pin it when trust_remote_code is on."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the generator computes in, the learner's forward pass computes in, and the files hold."""
    chat_template: str | None = None
    """File with a Jinja chat template; null: the model's own; "none": the last user message as it is."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    num_parameters: PositiveFloat | None = None
    """For the plan, where the model is not on this machine; null: counted from its files."""
    attn_implementation: str | None = None
    """The learner's attention in transformers' words (sdpa, flash_attention_2, eager); null: its choice."""


class SamplingConfig(Section):
    """How the policy answers."""

    num_samples: Annotated[int, Field(ge=1, le=256)] = 5
    """K, the answers per prompt ("pairs", "num_generations", "n_samples_per_prompt" elsewhere)."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """1.0 in the SPPO paper; the released scripts use 0.7."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """1.0 in the SPPO paper; the released scripts use 0.9."""
    top_k: Count = 0
    """Sample from the k likeliest tokens only; 0: from all."""
    max_new_tokens: PositiveInt = 512
    """An answer that reaches this many tokens counts as truncated."""
    max_prompt_tokens: PositiveInt = 512
    """Longer prompts follow prompts.on_overlong; they are never cut silently."""


class GeneratorConfig(ReplicasConfig):
    """The pool of vLLM engines."""

    tensor_parallel_size: PositiveInt = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of a GPU's memory that vLLM may take."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] = 1.0
    """Size of the key-value cache on CPU machines, in GiB."""
    engine_args: Arguments = Field(default_factory=dict)
    """Further arguments of vllm.LLM by its own names."""
    probe_tolerance: Annotated[float, Field(gt=0.0)] | None = None
    """Largest mean |difference| per token, in nats, between generator and learner on the probe batch
    after each weight delivery; null: 1e-3 in float32, 0.05 in bfloat16."""

    @model_validator(mode="after")
    def _has_a_gpu_for_each_part(self) -> GeneratorConfig:
        if self.gpus and self.tensor_parallel_size > 1 and self.gpus != self.tensor_parallel_size:
            raise ValueError(
                f"gpus = {self.gpus:g} does not go with tensor_parallel_size = {self.tensor_parallel_size}: an engine "
                f"that is split over GPUs needs exactly as many"
            )
        return self


class StatedCluster(Section):
    """A cluster to plan for that is not connected, for --dry-run."""

    nodes: PositiveInt = 1
    cpus: PositiveInt
    """Per node."""
    gpus: Count = 0
    """Per node."""
    gpu_gib: Annotated[float, Field(ge=0.0)] = 0.0
    """Memory of one GPU."""
    memory_gib: PositiveFloat
    """Host memory of one node."""
    disk_gib: PositiveFloat
    """Free on the storage of `output`."""


class ClusterConfig(Section):
    """Where the roles run."""

    backend: Literal["ray", "local"] = "ray"
    """ray: actors, on this machine or a cluster; local: plain objects in this process."""
    address: str | None = None
    """Ray address; null: the job's own cluster, else RAY_ADDRESS, else a private one on this machine."""
    placement: Literal["side_by_side", "turns"] = "side_by_side"
    """side_by_side: all roles resident; turns: each releases its memory before the next one works."""
    start_deadline_s: PositiveFloat = 900.0
    """For placing and starting a role."""
    shard_deadline_s: PositiveFloat = 3600.0
    """For one shard at one role; a replica that is slower is replaced."""
    step_deadline_s: PositiveFloat = 1800.0
    """For the learner's work between two metrics."""
    max_retries: Count = 3
    """How often a shard, or the learner group, is tried again after its replica died."""
    stated: StatedCluster | None = None
    """What --dry-run plans for, and a real run ignores; null: the cluster or machine at hand."""


class TrackingConfig(Section):
    """What is written beside metrics.jsonl, which always is."""

    tensorboard: bool = False
    log_every: PositiveInt = 1
    """Optimizer steps between two lines of learner metrics."""


class RunConfig(Section):
    """One run: one folder, one policy, some iterations of self-play."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "sppo"
    """Name of the run's folder."""
    output: str = "runs"
    """Folder of run folders, on storage that every node sees."""
    seed: Count = 0
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 3
    shard_size: PositiveInt = 256
    """Prompts per shard: the unit of work, of commit and of retry."""
    model: ModelConfig
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    scorer: ScorerConfig | None = None
    """Who compares the answers; null where the algorithm asks nobody."""
    algorithm: AlgorithmConfig = SPPO()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def evaluator(self) -> ScorerConfig | None:
        """The scorer that only compares policies on held-out prompts; None: the training scorer does, or nobody."""
        return self.evaluation.scorer if self.evaluation else None

    @property
    def audits(self) -> bool:
        """Whether a second opinion on the training scorer's verdicts is to be had."""
        return self.evaluator is not None

    @property
    def scoring_role(self) -> RoleName:
        """Who compares the answers that train: the policy's own generators where the policy judges itself."""
        return "generator" if self.policy_judges else "scorer"

    @property
    def policy_judges(self) -> bool:
        """Whether the policy compares its own answers, as an LLM judge."""
        return isinstance(self.scorer, JudgeConfig) and self.scorer.by_policy

    @property
    def _rates_itself(self) -> bool:
        """Whether the policy gives each of its answers a score."""
        return self.policy_judges and isinstance(self.scorer, JudgeConfig) and self.scorer.mode == "pointwise"

    @property
    def evaluating_role(self) -> RoleName:
        """Who compares policies on held-out prompts."""
        return "evaluator" if self.evaluator else self.scoring_role

    @property
    def canary(self) -> str | None:
        """The answer that says nothing, with which an LLM judge is tried; None: no trial."""
        return self.scorer.canary if isinstance(self.scorer, JudgeConfig) else None

    @property
    def pools(self) -> dict[RoleName, ReplicasConfig]:
        """The sections of the pools that this run needs, by role."""
        stages = self.algorithm.stages(0)
        generates = self.evaluation is not None or "completions" in stages
        compares = "scored" in stages or (self.evaluation is not None and self.evaluator is None)
        sections: dict[RoleName, ReplicasConfig | None] = {
            "generator": self.generator if generates else None,
            "scorer": self.scorer if compares and not self.policy_judges else None,
            "evaluator": self.evaluator,
        }
        return {role: section for role, section in sections.items() if section is not None}

    @property
    def served_rank(self) -> int:
        """The largest rank of an adapter that the generators will serve; 0: they serve whole models."""
        return self.learner.lora.last_rank(self.iterations) if self.learner.lora else 0

    @model_validator(mode="after")
    def _serves_what_it_trains(self) -> RunConfig:
        lora = self.learner.lora
        if lora is None or "generator" not in self.pools:
            return self
        if self.served_rank > SERVED_RANKS[-1]:
            raise ValueError(
                f"learner.lora.rank = {lora.rank} with between_iterations = {lora.between_iterations} and iterations "
                f"= {self.iterations} ends at rank {self.served_rank}, vLLM serves at most {SERVED_RANKS[-1]}; lower "
                f"the rank, or use between_iterations = continue or merge"
            )
        if lora.quantize and self.generator.probe_tolerance is None:
            raise ValueError(
                f"learner.lora.quantize = {lora.quantize} needs generator.probe_tolerance: the learner computes with "
                f"rounded weights and vLLM with the whole ones, so their log-probabilities differ; state by how many "
                f"nats per token they may, e.g. 0.3"
            )
        return self

    @model_validator(mode="after")
    def _has_what_the_algorithm_needs(self) -> RunConfig:
        algorithm = self.algorithm
        if self.scorer is None and "scored" in algorithm.stages(0):
            raise ValueError(f"scorer is missing: algorithm.name = {algorithm.name} learns from its verdicts")
        if "rescored" in algorithm.stages(1) and not self._rates_itself:
            raise ValueError(
                f"algorithm.name = {algorithm.name} asks the policy before for its scores of the same answers; "
                f"expected a scorer with kind = judge, mode = pointwise and server.kind = policy: another one gives "
                f"the same scores again, or none"
            )
        if self.evaluation is not None and self.scorer is None and self.evaluation.scorer is None:
            raise ValueError("evaluation.scorer is missing: without a training scorer nobody can compare policies")
        if algorithm.max_samples is not None and self.sampling.num_samples > algorithm.max_samples:
            raise ValueError(
                f"sampling.num_samples = {self.sampling.num_samples}, but algorithm.name = {algorithm.name} trains on "
                f"{algorithm.max_samples} answer per prompt; the others would be made for nothing"
            )
        if self.learner.micro_batch_size < algorithm.min_micro_batch:
            raise ValueError(
                f"learner.micro_batch_size = {self.learner.micro_batch_size}, but algorithm.name = {algorithm.name} "
                f"compares rows of a micro-batch; give at least {algorithm.min_micro_batch}"
            )
        if self.sampling.num_samples < algorithm.min_samples:
            raise ValueError(
                f"sampling.num_samples = {self.sampling.num_samples}, but algorithm.name = {algorithm.name} needs at "
                f"least {algorithm.min_samples} answers per prompt"
            )
        return self

    @model_validator(mode="after")
    def _the_yardstick_stays(self) -> RunConfig:
        """Held-out win rates compare versions of the policy, so whoever decides must not change with them."""
        judge = (self.evaluation.scorer or self.scorer) if self.evaluation else None
        if isinstance(judge, JudgeConfig) and judge.by_policy:
            raise ValueError(
                "evaluation.scorer may not be the policy itself (server.kind = policy): every version would judge by "
                "other weights, and their win rates could not be compared; name a scorer that stays the same"
            )
        return self

    @model_validator(mode="after")
    def _one_source_per_iteration(self) -> RunConfig:
        source = self.prompts.source
        if isinstance(source, list) and len(source) != self.iterations:
            raise ValueError(f"prompts.source lists {len(source)} sources for iterations = {self.iterations}")
        if self.cluster.backend == "local" and self.learner.num_ranks > 1:
            raise ValueError("learner.num_ranks > 1 needs cluster.backend = ray: one process holds one rank")
        return self
