"""Factories of the roles: they are sent to the process of a replica and build the role there.

`Engines` makes the real roles; tests use `actors.fakes.FakeEngines` instead. A class is imported where it is built, so
this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.algorithms import AlgorithmConfig
from engine.config.judge import JudgeConfig
from engine.config.learner import LearnerConfig
from engine.config.run import GeneratorConfig, ModelConfig, RunConfig, SamplingConfig, Setup
from engine.config.scorer import ScorerConfig
from engine.data.ingest import Renderer

if TYPE_CHECKING:
    from actors.scorers.builtin import BuiltinConfig
    from actors.scorers.judge.judge import Judge
    from engine.loop.roles import Generator, Learner, Scorer

Role_co = TypeVar("Role_co", covariant=True)

TINY = "tiny"
"""Value of `model.path` for an untrained policy of actors/tiny_policy.py, made in the run folder."""


class Factory(Protocol[Role_co]):
    """Builds replica (or rank) `index` of a role. Cheap; the role loads with its first call."""

    def build(self, index: int) -> Role_co: ...


class Chat(Renderer, Protocol):
    """The policy's tokenizer and chat template."""

    @property
    def digest(self) -> str:
        """Digest of everything that changes how a conversation is rendered."""

    @property
    def vocabulary(self) -> Collection[int]:
        """Ids of ordinary tokens."""


@dataclass(frozen=True)
class GeneratorFactory:
    config: GeneratorConfig
    model: ModelConfig
    sampling: SamplingConfig
    seed: int
    judge: Judge | None
    lora_rank: int
    room: int

    def build(self, index: int) -> Generator:
        from actors.generator import Generator

        return Generator(self.config, self.model, self.sampling, self.seed, self.judge, self.lora_rank, self.room)


@dataclass(frozen=True)
class LearnerFactory:
    config: LearnerConfig
    model: ModelConfig
    algorithm: AlgorithmConfig
    seed: int

    def build(self, index: int) -> Learner:
        from actors.learner.learner import Learner

        return Learner(self.config, self.model, self.algorithm, index, self.config.num_ranks, self.seed)


@dataclass(frozen=True)
class ScorerFactory:
    config: BuiltinConfig

    def build(self, index: int) -> Scorer:
        from actors.scorers.builtin import build_scorer

        return build_scorer(self.config)


@dataclass(frozen=True)
class JudgeFactory:
    judge: Judge

    def build(self, index: int) -> Scorer:
        from actors.scorers.judge.scorer import JudgeScorer

        return JudgeScorer(self.judge)


class Engines:
    """The real engines: vLLM, DeepSpeed, and the scorers of the config."""

    def start_model(self, config: Setup, run_folder: Path) -> Path:
        """Return the start model's folder; it is downloaded from the hub if it is not on this machine."""
        from actors.hub import local_folder
        from actors.tiny_policy import make_tiny_policy
        from engine.store.weights import refuse_adapter

        if config.model.path == TINY:
            return make_tiny_policy(run_folder / "start", config.seed)
        folder = local_folder(
            config.model.path,
            key="model.path",
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
            cache_dir=Path(config.output).resolve() / "hub",  # on storage that every node can read, unlike ~/.cache
        )
        refuse_adapter(folder, "model.path")
        return folder

    def chat(self, model: ModelConfig) -> Chat:
        from actors.chat import Chat

        return Chat(model)

    def generator(self, config: Setup) -> Factory[Generator]:
        return GeneratorFactory(
            config.generator,
            config.model,
            config.sampling,
            config.seed,
            policy_judge(config),
            config.served_rank,
            config.benchmarks.room,
        )

    def learner(self, config: RunConfig) -> Factory[Learner]:
        return LearnerFactory(config.learner, config.model, config.algorithm, config.seed)

    def scorer(self, config: ScorerConfig, seed: int) -> Factory[Scorer]:
        """Return the factory of the training scorer or of the evaluator. `seed`: that of the run, for judges."""
        return JudgeFactory(make_judge(config, seed)) if isinstance(config, JudgeConfig) else ScorerFactory(config)


def make_judge(config: JudgeConfig, seed: int) -> Judge:
    """Return a judge with the current content of its prompt file, so that all replicas, later ones too, use it."""
    from actors.scorers.judge.judge import Judge
    from actors.scorers.judge.prompt_file import read_judge_prompt

    return Judge(config, read_judge_prompt(config), seed)


def policy_judge(config: Setup) -> Judge | None:
    """Return the judge that the policy itself serves; None if the policy does not judge."""
    scorer = config.scorer if isinstance(config, RunConfig) else None
    return make_judge(scorer, config.seed) if isinstance(scorer, JudgeConfig) and scorer.by_policy else None
