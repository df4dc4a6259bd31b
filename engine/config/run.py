"""The configuration of a run, and what an evaluation shares with it: every key, its range, default and meaning.

Frozen pydantic models that forbid unknown keys; engine/config/load.py reads them from files and command lines.
Nothing heavy is imported, so that `--help`, `--dry-run` and error messages answer at once.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from engine.algorithms import SPPO, AlgorithmConfig
from engine.config.base import WITHOUT_EFFECT, Arguments, Count, ReplicasConfig, Section
from engine.config.benchmarks import BenchmarksConfig
from engine.config.evaluation import EvaluationConfig, GateConfig
from engine.config.judge import JudgeConfig, OpenAIServer
from engine.config.learner import SERVED_RANKS, LearnerConfig
from engine.config.preferences import PreferencesConfig
from engine.config.prompts import PromptsConfig
from engine.config.scorer import ScorerConfig

RoleName = Literal["generator", "scorer", "evaluator", "annotator", "learner"]


class ModelConfig(Section):
    """The model that the run starts from."""

    path: str
    """Folder or hub id of a causal language model with safetensors weights; "tiny": make an untrained one of
    0.1 million parameters in the run's folder, to try the engines."""
    revision: str | None = None
    """Revision on the hub; pin it when trust_remote_code is on."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of the generator, of the learner's forward pass, and of the saved weights."""
    chat_template: str | None = None
    """File with a Jinja chat template; null: the model's own; "none": the last user message, unchanged."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models whose code you have read."""
    num_parameters: Annotated[PositiveFloat | None, WITHOUT_EFFECT] = None
    """Size of a model that is not on this machine, for the plan; null: counted from its files."""
    attn_implementation: str | None = None
    """The learner's attention, as transformers names it (sdpa, flash_attention_2, eager); null: its default."""


class SamplingConfig(Section):
    """How answers are sampled from the policy."""

    num_samples: Annotated[int, Field(ge=1, le=256)] = 5
    """K, the answers per prompt ("pairs", "num_generations" or "n_samples_per_prompt" elsewhere)."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Sampling temperature; 1.0 in the SPPO paper, 0.7 in its released scripts."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the likeliest tokens that together have this probability; 1.0 in the paper, 0.9 in the scripts."""
    top_k: Count = 0
    """Sample from the k likeliest tokens; 0: from all."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of an answer; one that reaches this length counts as truncated."""
    max_prompt_tokens: PositiveInt = 512
    """Most tokens of a prompt; prompts.on_overlong decides about longer ones, which are never cut."""


class GeneratorConfig(ReplicasConfig):
    """The pool of vLLM engines."""

    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine is split over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of a GPU's memory that vLLM may take."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] = 1.0
    """Size of the key-value cache on CPU machines, in GiB."""
    engine_args: Arguments = Field(default_factory=dict)
    """More arguments of vllm.LLM, by its own names."""
    probe_tolerance: Annotated[PositiveFloat | None, WITHOUT_EFFECT] = None
    """Largest mean |difference| per token, in nats, between generator and learner on the probe batch after new weights
    were loaded; null: 1e-3 in float32, 0.1 in bfloat16."""

    @model_validator(mode="after")
    def _check_gpus_fit_tensor_parallel_size(self) -> GeneratorConfig:
        if self.gpus and self.tensor_parallel_size > 1 and self.gpus != self.tensor_parallel_size:
            raise ValueError(
                f"gpus = {self.gpus:g} does not go with tensor_parallel_size = {self.tensor_parallel_size}: an engine "
                f"that is split over GPUs needs exactly as many"
            )
        return self


class StatedCluster(Section):
    """A cluster that --dry-run plans for, without connecting to it."""

    nodes: PositiveInt = 1
    """Machines."""
    cpus: PositiveInt
    """CPU cores per node."""
    gpus: Count = 0
    """GPUs per node."""
    gpu_gib: Annotated[float, Field(ge=0.0)] = 0.0
    """Memory of one GPU, in GiB."""
    memory_gib: PositiveFloat
    """Host memory of one node, in GiB."""
    disk_gib: PositiveFloat
    """Free space on the storage of `output`, in GiB."""


class ClusterConfig(Section):
    """Where the roles run, and how long they may take."""

    backend: Literal["ray", "local"] = "ray"
    """ray: actors, on this machine or a cluster; local: plain objects in this process."""
    address: str | None = None
    """Ray address; null: the job's own cluster, else RAY_ADDRESS, else a private one on this machine."""
    placement: Literal["disaggregated", "colocated"] = "disaggregated"
    """disaggregated: each role has its own resources; colocated: roles share them and free their memory in turn."""
    start_deadline_s: PositiveFloat = 900.0
    """Seconds to place and start a role."""
    shard_deadline_s: PositiveFloat = 3600.0
    """Seconds for one shard at one role; a slower replica is replaced."""
    step_deadline_s: PositiveFloat = 1800.0
    """Seconds for the learner between two reports of its metrics."""
    max_retries: Count = 3
    """How often a shard, or the group of the learner, is tried again after a replica died."""
    cost_per_hour: Annotated[float, Field(ge=0.0)] | None = None
    """Price of the whole cluster for an hour, in any currency, for predictions; null: none is predicted."""
    stated: StatedCluster | None = None
    """What --dry-run plans for, and a real run ignores; null: the connected cluster or this machine."""


class TrackingConfig(Section):
    """How metrics are reported; metrics.jsonl is always written."""

    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that get the same metrics, each an extra of this package (docs/report.md)."""
    project: str = "kumite"
    """Project or experiment of the run in these trackers."""
    live_report: bool = False
    """Write the report again after each iteration; the page then reloads itself."""
    log_every: PositiveInt = 1
    """Optimizer steps between two lines of learner metrics."""


class Setup(Section):
    """What a run and an evaluation have in common: a folder, a policy, and the roles that serve and judge it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), WITHOUT_EFFECT] = "sppo"
    """Name of the run, and of its folder."""
    output: Annotated[str, WITHOUT_EFFECT] = "runs"
    """Folder that holds the runs, on storage that every node sees."""
    seed: Count = 0
    """All randomness of the run is derived from it."""
    shard_size: PositiveInt = 256
    """Prompts per shard, the unit of work, of commit and of retry."""
    model: ModelConfig
    sampling: SamplingConfig = SamplingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    evaluation: EvaluationConfig | None = None
    cluster: Annotated[ClusterConfig, WITHOUT_EFFECT] = ClusterConfig()
    tracking: Annotated[TrackingConfig, WITHOUT_EFFECT] = TrackingConfig()

    @property
    def evaluator(self) -> ScorerConfig | None:
        """The scorer that only compares policies on held-out prompts; None if the training scorer does, or none."""
        return self.evaluation.scorer if self.evaluation else None

    @property
    def annotator(self) -> ScorerConfig | None:
        """The scorer that annotates the answers to benchmarks; None if the evaluator does, or none."""
        return self.evaluation.annotator if self.evaluation else None

    @property
    def benchmarks(self) -> BenchmarksConfig:
        """The benchmarks on which every policy is measured."""
        return (self.evaluation and self.evaluation.benchmarks) or BenchmarksConfig()

    @property
    def evaluating_role(self) -> RoleName:
        """The role that compares policies on held-out prompts."""
        return "evaluator"

    @property
    def annotating_role(self) -> RoleName:
        """The role that annotates the answers to benchmarks."""
        return "annotator" if self.annotator else self.evaluating_role

    @property
    def annotating_scorer(self) -> ScorerConfig | None:
        """The scorer of that role."""
        return self.annotator or self.evaluator

    @property
    def annotates(self) -> bool:
        """Whether there is a scorer that can annotate the answers to benchmarks."""
        return self.annotating_role in self.pools or self.policy_judges

    @property
    def policy_judges(self) -> bool:
        """Whether the policy compares its own answers, as an LLM judge."""
        return False

    @property
    def pools(self) -> dict[RoleName, ReplicasConfig]:
        """The sections of the pools of replicas that are needed, by role."""
        sections: dict[RoleName, ReplicasConfig | None] = {
            "generator": self.generator,
            "evaluator": self.evaluator,
            "annotator": self.annotator,
        }
        return {role: section for role, section in sections.items() if section is not None}

    @property
    def served_rank(self) -> int:
        """The largest rank of an adapter that the generators will serve; 0 if they serve whole models."""
        return 0

    @model_validator(mode="after")
    def _check_evaluators_are_fixed(self) -> Self:
        """Evaluators compare versions of the policy, so they must not change with the policy."""
        for key, judge in {"scorer": self.evaluator, "annotator": self.annotator}.items():
            if isinstance(judge, JudgeConfig) and judge.by_policy:
                raise ValueError(
                    f"evaluation.{key} may not be the policy itself (server.kind = policy): every version would judge "
                    f"with other weights, and their numbers could not be compared; name a scorer that stays the same"
                )
        return self

    @model_validator(mode="after")
    def _check_annotator_can_be_asked(self) -> Self:
        if self.benchmarks.mt_bench and not isinstance(self.annotating_scorer, JudgeConfig):
            kind = self.annotating_scorer.kind if self.annotating_scorer else "null"
            raise ValueError(
                f"evaluation.benchmarks.mt_bench asks an LLM judge, and evaluation.annotator.kind = {kind} "
                f"compares answers without being asked; expected evaluation.annotator.kind = judge"
            )
        return self


class RunConfig(Setup):
    """One run: a folder, a policy, and some iterations of self-play."""

    iterations: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Rounds of sampling, scoring and training."""
    prompts: PromptsConfig
    scorer: ScorerConfig | None = None
    """What compares the answers; null if the algorithm needs no scorer."""
    algorithm: AlgorithmConfig = SPPO()
    """How scored answers become training rows and a loss."""
    learner: LearnerConfig = LearnerConfig()

    @property
    def audits(self) -> bool:
        """Whether the evaluator checks the training scorer's verdicts."""
        return self.evaluator is not None

    @property
    def scoring_role(self) -> RoleName:
        """The role that scores training answers: the generators if the policy judges itself."""
        return "generator" if self.policy_judges else "scorer"

    @property
    def policy_judges(self) -> bool:
        return isinstance(self.scorer, JudgeConfig) and self.scorer.by_policy

    @property
    def _policy_gives_scores(self) -> bool:
        """Whether the policy scores each of its own answers."""
        return self.policy_judges and isinstance(self.scorer, JudgeConfig) and self.scorer.mode == "pointwise"

    @property
    def evaluating_role(self) -> RoleName:
        return "evaluator" if self.evaluator else self.scoring_role

    @property
    def annotating_scorer(self) -> ScorerConfig | None:
        return self.annotator or self.evaluator or self.scorer

    @property
    def priced_judges(self) -> dict[RoleName, OpenAIServer]:
        """The remote judges whose prices are known, by role."""
        scorers: dict[RoleName, ScorerConfig | None] = {
            "scorer": self.scorer,
            "evaluator": self.evaluator,
            "annotator": self.annotator,
        }
        servers = {role: judge.server for role, judge in scorers.items() if isinstance(judge, JudgeConfig)}
        return {role: s for role, s in servers.items() if isinstance(s, OpenAIServer) and s.usd(0, 0) is not None}

    @property
    def null_model(self) -> str | None:
        """The answer without content that an LLM judge compares with the policy's; None: no such baseline."""
        return self.scorer.null_model if isinstance(self.scorer, JudgeConfig) else None

    @property
    def gate(self) -> GateConfig | None:
        """What decides which versions are promoted; None without held-out prompts."""
        return self.evaluation.gate if self.evaluation and self.evaluation.prompts else None

    @property
    def preferences(self) -> PreferencesConfig | None:
        """The held-out preferences on which the learner is validated."""
        return self.evaluation.preferences if self.evaluation else None

    @property
    def answers_are_evaluated(self) -> bool:
        """Whether versions of the policy answer held-out prompts or benchmarks."""
        evaluation = self.evaluation
        return evaluation is not None and (evaluation.prompts is not None or evaluation.benchmarks is not None)

    @property
    def measures_kl(self) -> bool:
        """Whether the KL divergence from the start policy is measured on held-out answers."""
        if self.evaluation is None or self.evaluation.prompts is None:
            return False
        return self.served_rank == 0 if self.evaluation.kl is None else self.evaluation.kl

    @property
    def pools(self) -> dict[RoleName, ReplicasConfig]:
        generates = self.answers_are_evaluated or self.algorithm.samples
        compares = self.algorithm.needs_scorer or (self.answers_are_evaluated and self.evaluator is None)
        sections: dict[RoleName, ReplicasConfig | None] = {
            "generator": self.generator if generates else None,
            "scorer": self.scorer if compares and not self.policy_judges else None,
            "evaluator": self.evaluator,
            "annotator": self.annotator,
        }
        return {role: section for role, section in sections.items() if section is not None}

    @property
    def served_rank(self) -> int:
        return self.learner.lora.last_rank(self.iterations) if self.learner.lora else 0

    @model_validator(mode="after")
    def _check_adapters_can_be_served(self) -> RunConfig:
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
                f"rounded weights and vLLM with the original ones, so their log-probabilities differ; state by how "
                f"many nats per token they may differ, e.g. 0.3"
            )
        return self

    @model_validator(mode="after")
    def _check_needs_of_algorithm(self) -> RunConfig:
        algorithm = self.algorithm
        if self.scorer is None and algorithm.needs_scorer:
            raise ValueError(f"scorer is missing: algorithm.name = {algorithm.name} learns from its verdicts")
        if algorithm.compares_with_previous_policy and not self._policy_gives_scores:
            raise ValueError(
                f"algorithm.name = {algorithm.name} asks the previous policy to score the same answers; expected "
                f"scorer.kind = judge, scorer.mode = pointwise and scorer.server.kind = policy: any other scorer "
                f"gives the same scores again, or none"
            )
        if self.evaluation and self.evaluation.prompts and self.scorer is None and self.evaluation.scorer is None:
            raise ValueError("evaluation.scorer is missing: the run has no training scorer that could compare policies")
        if algorithm.max_samples is not None and self.sampling.num_samples > algorithm.max_samples:
            raise ValueError(
                f"sampling.num_samples = {self.sampling.num_samples}, but algorithm.name = {algorithm.name} trains on "
                f"{algorithm.max_samples} answer per prompt; the others would be unused"
            )
        if self.learner.micro_batch_size < algorithm.min_micro_batch:
            raise ValueError(
                f"learner.micro_batch_size = {self.learner.micro_batch_size}, but algorithm.name = {algorithm.name} "
                f"compares rows of a micro-batch; expected at least {algorithm.min_micro_batch}"
            )
        if self.sampling.num_samples < algorithm.min_samples:
            raise ValueError(
                f"sampling.num_samples = {self.sampling.num_samples}, but algorithm.name = {algorithm.name} needs at "
                f"least {algorithm.min_samples} answers per prompt"
            )
        return self

    @model_validator(mode="after")
    def _check_evaluator_is_fixed(self) -> RunConfig:
        if self.answers_are_evaluated and self.evaluator is None and self.policy_judges:
            raise ValueError(
                "evaluation.scorer may not be the policy itself (it is missing, and the training scorer has "
                "server.kind = policy): every version would judge with other weights, and their win rates could not "
                "be compared; name a scorer that stays the same"
            )
        return self

    @model_validator(mode="after")
    def _check_validation_is_possible(self) -> RunConfig:
        algorithm, learner, preferences = self.algorithm, self.learner, self.preferences
        if preferences is None:
            if learner.evaluate_every is not None:
                raise ValueError(
                    f"learner.evaluate_every = {learner.evaluate_every} without evaluation.preferences: there is "
                    f"nothing to validate on; name a share of the preference set or a second one"
                )
            return self
        if preferences.share is not None and algorithm.num_dataset_completions != algorithm.num_heldout_completions:
            raise ValueError(
                f"evaluation.preferences.share = {preferences.share:g}: the data set of algorithm.name = "
                f"{algorithm.name} holds no preferences that could be held out; name a second set with pairs in "
                f"evaluation.preferences.source"
            )
        metrics = {"keep_best_step": learner.keep_best_step}
        metrics["early_stopping.metric"] = learner.early_stopping.metric if learner.early_stopping else None
        names = [f"learner.{name}" for name, metric in metrics.items() if metric == "accuracy"]
        if names and algorithm.num_heldout_completions != 2:
            raise ValueError(
                f"{' and '.join(names)} = accuracy: single answers with a label have no preference accuracy; use loss"
            )
        return self

    @model_validator(mode="after")
    def _check_sources_and_ranks(self) -> RunConfig:
        source = self.prompts.source
        if isinstance(source, list) and len(source) != self.iterations:
            raise ValueError(f"prompts.source lists {len(source)} sources for iterations = {self.iterations}")
        if self.cluster.backend == "local" and self.learner.num_ranks > 1:
            raise ValueError(
                f"learner.num_ranks = {self.learner.num_ranks} needs cluster.backend = ray: the local backend is one "
                f"process and holds one rank"
            )
        return self
