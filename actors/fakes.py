"""Fakes of the roles for fast tests: deterministic, small, and strict about their arguments.

The fake policy samples the letters of an answer independently from softmax(logits), eight numbers in a safetensors
file. It has real log-probabilities and a real gradient, so the tests run the real loop, store and algorithms; only
models and engines are replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from actors.factories import Chat, Engines, Factory, policy_judge
from actors.scorers.base import scored, scorer_rows
from actors.scorers.judge.judge import Judge, Question, Reply
from engine.algorithms.base import Algorithm
from engine.config.learner import LearnerConfig
from engine.config.run import ModelConfig, RunConfig, SamplingConfig, Setup
from engine.errors import NonFiniteError, RoleError, WeightsError
from engine.loop.roles import Generator, Learner
from engine.loop.weight_probe import compare_probe
from engine.schema import COMPLETIONS, PROMPTS, REF_LOGPS, REQUESTS, RESPONSES, SELECTED, VALIDATION, append, conform
from engine.seeds import derive_seed
from engine.store.weights import verify_weights

LETTERS = "abcdefgh"
END = len(LETTERS)
"""Token id that ends an answer."""


class FakeEngines(Engines):
    """The fake policy, generator and learner in place of the real ones; scorers are those of the config."""

    def start_model(self, config: Setup, run_folder: Path) -> Path:
        return make_fake_policy(run_folder / "start")

    def chat(self, model: ModelConfig) -> Chat:
        return FakeChat()

    def generator(self, config: Setup) -> Factory[Generator]:
        return FakeGeneratorFactory(config.sampling, config.seed, policy_judge(config))

    def learner(self, config: RunConfig) -> Factory[Learner]:
        return FakeLearnerFactory(config.learner, config.algorithm, config.seed)


@dataclass(frozen=True)
class FakeGeneratorFactory:
    sampling: SamplingConfig
    seed: int
    judge: Judge | None

    def build(self, index: int) -> FakeGenerator:
        return FakeGenerator(self.sampling, self.seed, self.judge)


@dataclass(frozen=True)
class FakeLearnerFactory:
    config: LearnerConfig
    algorithm: Algorithm
    seed: int

    def build(self, index: int) -> FakeLearner:
        return FakeLearner(self.config, self.algorithm, self.seed)


def utility(messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """A rule for the fake policy: every letter "a" is worth one nat."""
    return [float(answer.count("a")) for answer in answers]


def make_fake_policy(folder: Path, logits: list[float] | None = None) -> Path:
    """Write a fake policy's weights; without `logits` all letters are equally likely."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.array(logits if logits is not None else [0.0] * len(LETTERS))
    save_file({"logits": values}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "fake", "vocab_size": END + 1}))
    return folder


def letter_logps(folder: Path) -> np.ndarray:
    """[8] log-probabilities of the letters under the policy in `folder`."""
    logits = load_file(folder / "model.safetensors")["logits"]
    return logits - np.logaddexp.reduce(logits)


class FakeChat:
    """Renders the last message as bytes."""

    digest = "fake"
    vocabulary = range(len(LETTERS))

    def render(self, messages: list[dict[str, str]]) -> tuple[str, list[int]]:
        text = messages[-1]["content"]
        return text, list(text.encode())

    def answer_ids(self, messages: list[dict[str, str]], answer: str) -> list[int]:
        """The letters a to h as 0 to 7, any other character as one of them, and END."""
        return [*((ord(character) - ord("a")) % len(LETTERS) for character in answer), END]


class FakeJudge:
    """A JudgeModel that counts the letter "a" between the marked lines, and ignores all other text."""

    id = "fake"
    _SHOWN = re.compile(r"^<<< begin (answer(?: [AB])?) (\w+) >>>\n(.*?)\n<<< end \1 \2 >>>$", re.DOTALL | re.MULTILINE)

    def reply(self, questions: list[Question]) -> list[Reply]:
        return [self._reply(question) for question in questions]

    def _reply(self, question: Question) -> Reply:
        values = [text.count("a") for _, _, text in self._SHOWN.findall(question.messages[-1]["content"])]
        if not question.choices:
            return Reply(
                tuple(f"It counts {values[0]}.\nScore: {min(values[0], 5)}" for _ in range(question.num_samples))
            )
        logps = [-float(np.logaddexp(0.0, sign * (values[1] - values[0]))) for sign in (1, -1)]
        best = question.choices[int(np.argmax(logps))]
        return Reply((best,), dict(zip(question.choices, logps, strict=True)))


class FakeGenerator:
    """Answers with up to six letters; an answer ends with END unless it reaches max_new_tokens."""

    def __init__(self, sampling: SamplingConfig, seed: int, judge: Judge | None = None):
        self._sampling, self._seed, self._judge = sampling, seed, judge
        self._digest, self._logps = "", np.zeros(0)

    def deliver(
        self,
        folder: str,
        digest: str,
        prompt_token_ids: list[list[int]],
        completion_token_ids: list[list[int]],
        learner_logps: list[list[float]],
        base: str | None = None,
    ) -> float:
        verify_weights(Path(folder), digest)
        self._digest, self._logps = digest, letter_logps(Path(folder))
        if not learner_logps:
            return 0.0
        logps = [[float(self._logps[token % END]) for token in tokens] for tokens in completion_token_ids]
        return compare_probe(learner_logps, logps, 1e-9, replica="fake generator")

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        num_samples: int | None = None,
        temperature: float | None = None,
        purpose: str = "sample",
        max_new_tokens: int | None = None,
    ) -> pa.Table:
        prompts = conform(prompts, PROMPTS, "fake generator")
        longest = max_new_tokens or self._sampling.max_new_tokens
        if not self._digest:
            raise WeightsError("the fake generator has no weights: deliver them before calling generate")
        k = num_samples or self._sampling.num_samples
        seeds = [
            [derive_seed(self._seed, purpose, iteration, prompt, i) for i in range(k)]
            for prompt in prompts["prompt_id"].to_pylist()
        ]
        ids = [[self._answer(seed)[:longest] for seed in row] for row in seeds]
        letters = [[[i for i in answer if i != END] for answer in row] for row in ids]
        return append(
            prompts,
            COMPLETIONS,
            "fake generator",
            completions=[["".join(LETTERS[i] for i in answer) for answer in row] for row in letters],
            completion_token_ids=ids,
            completion_logps=[[float(self._logps[answer].sum()) for answer in row] for row in letters],
            finish_reasons=[["stop" if answer[-1:] == [END] else "length" for answer in row] for row in ids],
            seeds=seeds,
            weights=[self._digest] * prompts.num_rows,
            num_from_policy=[k] * prompts.num_rows,
        )

    def respond(self, requests: pa.Table) -> pa.Table:
        """Every token of a given continuation is a letter; a written one is the likeliest letter, three times."""
        requests = conform(requests, REQUESTS, "fake generator")
        letters = [
            [[token % len(LETTERS) for token in ids] for ids in row]
            for row in requests["continuation_token_ids"].to_pylist()
        ]
        best = int(self._logps.argmax())
        return append(
            requests,
            RESPONSES,
            "fake generator",
            logps=[[float(self._logps[ids].sum()) for ids in row] for row in letters],
            greedy=[[set(ids) == {best} for ids in row] for row in letters],
            texts=[[LETTERS[best] * 3] * n for n in requests["num_samples"].to_pylist()],
            weights=[self._digest] * requests.num_rows,
        )

    def answer_logps(self, completions: pa.Table) -> list[list[float]]:
        answers = conform(completions, COMPLETIONS, "fake generator")["completion_token_ids"].to_pylist()
        return [[float(sum(self._logps[i] for i in answer if i != END)) for answer in row] for row in answers]

    def identify(self) -> str:
        return self._require_judge().id("policy")

    def score(self, completions: pa.Table) -> pa.Table:
        judge = self._require_judge()
        completions = conform(completions, COMPLETIONS, "fake generator")
        return scored(completions, judge.judge(FakeJudge(), scorer_rows(completions)), judge.id("policy"))

    def _require_judge(self) -> Judge:
        if self._judge is None or not self._digest:
            raise RoleError("the fake generator cannot judge: it has no judge, or no weights were delivered")
        return self._judge

    def sleep(self) -> None:
        self._digest, self._logps = "", np.zeros(0)

    def _answer(self, seed: int) -> list[int]:
        draw = np.random.default_rng(seed)
        length = int(draw.integers(0, 7))
        letters = draw.choice(len(LETTERS), size=length, p=np.exp(self._logps)).tolist()
        return [*letters, END]


class FakeLearner:
    """Gradient steps on the eight logits with the loss of the real algorithm; all ranks compute the same."""

    def __init__(self, config: LearnerConfig, algorithm: Algorithm, seed: int):
        self._config, self._algorithm, self._seed = config, algorithm, seed
        self._folder, self._logits = Path(), np.zeros(0)
        self._rows: list[dict[str, Any]] = []
        self._step = self._num_steps = 0

    def rendezvous(self) -> tuple[str, int]:
        return "localhost", 0

    def join(self, host: str, port: int, timeout_s: float) -> None:
        pass

    def open(self, folder: str, base: str | None = None, version: int = 0) -> None:
        self._folder, self._logits = Path(folder), load_file(Path(folder) / "model.safetensors")["logits"].copy()
        self._step = 0

    def token_logps(self, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
        logps = self._logits - np.logaddexp.reduce(self._logits)  # characters of prompts stand for letters
        return [[float(logps[token % END]) for token in answer] for answer in answers]

    def ref_logps(self, rows: pa.Table) -> list[list[float]]:
        rows = conform(rows, SELECTED, "fake learner")
        if self._step:
            raise RoleError("ref_logps needs the policy as opened, but optimizer steps were run since; open it again")
        return [self._logps(row["completion_token_ids"])[0].tolist() for row in rows.to_pylist()]

    def begin(self, shards: list[pa.Table], iteration: int) -> dict[str, int]:
        rows = [row for shard in shards for row in conform(shard, REF_LOGPS, "fake learner").to_pylist()]
        rows.sort(key=lambda row: derive_seed(self._seed, "order", iteration, row["prompt_id"]))
        self._rows, self._step = rows, 0
        self._num_steps = self._config.schedule.max_steps or -(-len(rows) // self._config.batch_size)
        return {"num_steps": self._num_steps, "num_rows": len(rows)}

    def advance(self, until: int) -> list[dict[str, float]]:
        return [self._update() for _ in range(self._step, until)]

    def validate(self, rows: pa.Table, step: int) -> pa.Table:
        import torch

        from actors.learner.forward import grouped

        self.advance(step)
        columns: dict[str, list[Any]] = {"logps": [], "rewards": [], "loss": []}
        for row in conform(rows, REF_LOGPS, "fake learner").to_pylist():
            logps = self._logps(row["completion_token_ids"])[0]
            (_, batch), *_ = grouped([row], torch.tensor(logps))
            columns["logps"].append(logps.tolist())
            columns["rewards"].append(self._algorithm.rewards(batch)[0].tolist())
            columns["loss"].append(self._algorithm.heldout_loss(batch)[0].item())
        kept = rows.select(["prompt_id", "completion_index", "win_rate", "ref_logps"])
        return append(kept, VALIDATION, "fake learner", **columns)

    def save_checkpoint(self, folder: str, step: int) -> None:
        self.advance(step)
        save_file({"logits": self._logits}, Path(folder) / "state.safetensors")
        (Path(folder) / "step.json").write_text(json.dumps(self._step))

    def load_checkpoint(self, folder: str) -> int:
        self._logits = load_file(Path(folder) / "state.safetensors")["logits"].copy()
        self._step = json.loads((Path(folder) / "step.json").read_text())
        return self._step

    def save_weights(
        self, folder: str, step: int, prompts: list[list[int]], answers: list[list[int]]
    ) -> list[list[float]]:
        self.advance(step)
        shutil.copy(self._folder / "config.json", folder)
        save_file({"logits": self._logits}, Path(folder) / "model.safetensors")
        return self.token_logps(prompts, answers)

    def sleep(self) -> None:
        self._logits, self._rows = np.zeros(0), []

    def _logps(self, answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """[n] summed log-probabilities, and [n, 8] their gradient with respect to the logits."""
        logps = self._logits - np.logaddexp.reduce(self._logits)
        counts = np.array([np.bincount(answer, minlength=END + 1)[:END] for answer in answers], dtype=np.float64)
        return counts @ logps, counts - counts.sum(axis=1, keepdims=True) * np.exp(logps)

    def _update(self) -> dict[str, float]:
        """Do one step of normalised gradient descent on the mean loss of the next batch."""
        import torch

        from actors.learner.forward import batches_of

        size = self._config.batch_size
        start = self._step * size % len(self._rows)
        rows = self._rows[start : start + size]
        values, gradients = zip(*(self._logps(row["completion_token_ids"]) for row in rows), strict=True)
        logps = torch.tensor(np.concatenate(values), requires_grad=True)
        loss = torch.cat([self._algorithm.loss(batch) for batch in batches_of(rows, logps)]).mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"step {self._step + 1}: the loss is {loss.item()}; no update was made")
        loss.backward()
        assert logps.grad is not None
        gradient = logps.grad.numpy() @ np.concatenate(gradients)
        self._logits -= self._config.optimizer.lr * gradient / max(float(np.linalg.norm(gradient)), 1e-12)
        self._step += 1
        return {"step": self._step, "loss": loss.item(), "learning_rate": self._config.optimizer.lr}
