"""The generator: answers prompts with the policy and states which weights it answered with; may judge answers too.

A plain class, used by one caller at a time in a process of its own. It handles tables, seeds and digests;
actors/vllm_engine.py drives vLLM.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pyarrow as pa

from actors.chat import Chat
from actors.responses import respond
from actors.scorers.base import scored, scorer_rows
from actors.scorers.judge.judge import Judge
from actors.scorers.judge.vllm import VLLMReplies
from actors.vllm_engine import Sample, SampleRequest, VLLMEngine, check_engine_args
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ConfigError, RoleError, WeightsError
from engine.loop.weight_probe import compare_probe, probe_tolerance
from engine.schema import COMPLETIONS, PROMPTS, REQUESTS, RESPONSES, append, arrow_safe, conform
from engine.seeds import derive_seed
from engine.store.weights import (
    check_base,
    check_fits,
    check_same_tensors,
    read_adapter,
    refuse_adapter,
    stop_token_ids,
    tensor_shapes,
    verify_weights,
    weights_digest,
)

log = logging.getLogger(__name__)

POLICY = "policy"
"""The model's name in the id of a judge that the policy serves."""


class Generator:
    """The policy served by vLLM. Cheap to construct; `load` starts the engine."""

    def __init__(
        self,
        config: GeneratorConfig,
        model: ModelConfig,
        sampling: SamplingConfig,
        seed: int,
        judge: Judge | None = None,
        lora_rank: int = 0,
        room: int = 0,
    ) -> None:
        """seed: of the run. judge: given, the policy also judges. lora_rank: largest rank of the adapters that will be
        served, 0 if versions are whole models. room: tokens of the longest prompt and answer of a benchmark, 0 if
        there is none. Raises ConfigError for engine_args that other keys set.
        """
        check_engine_args(config.engine_args, "generator")
        self._config, self._model, self._sampling, self._seed = config, model, sampling, seed
        self._judge, self._lora_rank, self._room = judge, lora_rank, room
        self._replies: VLLMReplies | None = None
        self._base: str | None = None
        self._engine: VLLMEngine | None = None
        self._serving: str | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stops: set[int] = set()

    def load(self, folder: str | Path, digest: str, base: str | Path | None = None) -> None:
        """Serve the weights in `folder`, which must have `digest`; wakes a sleeping generator.

        base: the whole model that the adapter in `folder` belongs to; None: the folder is a whole model.
        The first call starts vLLM; later ones replace its weights or its adapter in place, which takes seconds.
        Use a new folder for each version. Raises WeightsError if the folder was changed, lacks tensors, stops at
        other tokens or belongs to another base; the old weights are still served then. After any other error no
        weights are served.
        """
        if self._serving == digest:
            return
        folder = str(folder)  # vLLM accepts nothing else
        model_folder = str(base or folder)
        verify_weights(folder, digest)
        self._check_base(folder, digest, base)
        self._check_same_model(model_folder)
        if base is not None:
            check_fits(folder, self._shapes)
        self._serving = None
        started = self._engine is None
        if self._engine is None:
            judging = self._judge.config.max_prompt_tokens + self._judge.config.reply_tokens if self._judge else 0
            self._engine = VLLMEngine(
                model_folder,
                self._config,
                self._model,
                self._sampling,
                self._seed,
                room=max(judging, self._room + 1 if self._room else 0),
                lora_rank=self._lora_rank,
            )
        if self._lora_rank or not started:
            self._replace(model_folder, folder if base else None)
        self._serving = digest
        log.info("generator serves %s from %s", digest[:12], folder)

    def deliver(
        self,
        folder: str,
        digest: str,
        prompt_token_ids: list[list[int]],
        completion_token_ids: list[list[int]],
        learner_logps: list[list[float]],
        base: str | None = None,
    ) -> float:
        """`load`, then check that the probe batch has the learner's log-probabilities under these weights.

        Returns the mean |difference| per token in nats. Raises WeightsError if it exceeds the tolerance. Without
        `learner_logps` nothing is checked, and the result is 0.
        """
        self.load(folder, digest, base)
        if not learner_logps:
            return 0.0
        tolerance = probe_tolerance(self._config.probe_tolerance, self._model.dtype)
        logps = self.token_logps(prompt_token_ids, completion_token_ids)
        return compare_probe(learner_logps, logps, tolerance, replica=f"generator in process {os.getpid()}")

    def _check_base(self, folder: str, digest: str, base: str | Path | None) -> None:
        """With adapters the engine keeps the base model that it was started with; every version must belong to it."""
        if base is None:
            refuse_adapter(folder, "the generator's folder")
        if not self._lora_rank:
            if base is not None:
                raise RoleError(
                    f"generator: {folder} is an adapter, but this engine serves whole models (lora_rank = 0)"
                )
            return
        base_digest = self._base or (digest if base is None else weights_digest(base))
        if base is not None:
            check_base(folder, base_digest)
            self._check_rank(folder)
        elif digest != base_digest:
            raise WeightsError(
                f"{folder}: whole model {digest[:12]}, but this generator serves adapters of {base_digest[:12]}; "
                f"deliver an adapter of that model, or start another generator"
            )
        self._base = base_digest

    def _check_rank(self, folder: str) -> None:
        rank = read_adapter(folder).rank
        if rank > self._lora_rank:
            raise WeightsError(
                f"{folder}: an adapter of rank {rank}, but this generator serves ranks up to {self._lora_rank}; "
                f"train with the config with which it was started"
            )

    def _check_same_model(self, folder: str) -> None:
        """Compare with the first folder: vLLM keeps tokenizer and stop tokens, and only warns of missing tensors."""
        stops = stop_token_ids(folder)
        if not self._shapes:
            self._shapes, self._stops = tensor_shapes(folder), stops
            return
        check_same_tensors(folder, self._shapes)
        if stops != self._stops:
            raise WeightsError(
                f"{folder}: answers would stop at token ids {sorted(stops)}, those of the start model stop at "
                f"{sorted(self._stops)}; copy generation_config.json from the start model"
            )

    def _replace(self, whole: str, adapter: str | None) -> None:
        """Replace the weights of the running engine: by an adapter (None: none) of its base, or by a whole model."""
        assert self._engine is not None
        try:
            if self._lora_rank:
                self._engine.adapt(adapter)
            else:
                self._engine.reload(whole)
        except Exception as error:
            self.close()  # some of the tensors may be new and others old
            source = adapter or whole
            raise RoleError(f"generator: vLLM could not load its weights from {source}: {error}") from error

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        num_samples: int | None = None,
        temperature: float | None = None,
        purpose: str = "sample",
        max_new_tokens: int | None = None,
    ) -> pa.Table:
        """Answer each row of PROMPTS; returns COMPLETIONS with the digest of the weights.

        iteration: counted from 0. num_samples, temperature: by default those of the sampling section; temperature 0
        is greedy and needs num_samples 1. max_new_tokens: given, answers are sampled from the whole distribution, and
        a prompt may have any length that leaves room for them; by default the sampling section decides. The seed of a
        row is derived from (run seed, purpose, iteration, prompt id), so its random numbers do not depend on shard,
        order or process. Raises ConfigError, SchemaError, and RoleError naming a prompt that is too long or has not
        all its answers.
        """
        engine, sampling = self._ready(), self._sampling
        count = sampling.num_samples if num_samples is None else num_samples
        heat = sampling.temperature if temperature is None else temperature
        if heat == 0.0 and count != 1:
            raise ConfigError([f"temperature = 0 with {count} samples per prompt: all would be the same; expected 1"])
        where = f"generator, iteration {iteration + 1}, {purpose}"
        prompts = conform(prompts, PROMPTS, where)
        names = prompts["prompt_id"].to_pylist()
        token_ids = prompts["prompt_token_ids"].to_pylist()
        room = sampling.max_prompt_tokens if max_new_tokens is None else engine.room - 1 - max_new_tokens
        _check_lengths(names, token_ids, room)
        seeds = [derive_seed(self._seed, purpose, iteration, name) for name in names]
        requests = [
            SampleRequest(ids, count, seed, heat, max_new_tokens) for ids, seed in zip(token_ids, seeds, strict=True)
        ]
        answers = self._sample(requests)
        for name, of_prompt in zip(names, answers, strict=True):
            _check_answers(name, of_prompt, count)
        return append(
            prompts,
            COMPLETIONS,
            where,
            completions=[[arrow_safe(a.text) for a in row] for row in answers],
            completion_token_ids=[[a.token_ids for a in row] for row in answers],
            completion_logps=[[a.logp for a in row] for row in answers],
            finish_reasons=[[a.finish_reason for a in row] for row in answers],
            # vLLM samples answer i of a request with the seed `seed + i` (v1/engine/parallel_sampling.py).
            seeds=[[seed + i for i in range(count)] for seed in seeds],
            weights=[self._serving] * len(names),
            num_from_policy=[count] * len(names),
        )

    def identify(self) -> str:
        """The scorer id of the policy as judge; its model is "policy", and the table's `weights` name the version."""
        return self._judging()[0].id(POLICY)

    def score(self, completions: pa.Table) -> pa.Table:
        """Judge COMPLETIONS of any policy with the served weights; returns SCORES.

        Raises SchemaError for another table, ModelError if the policy's tokenizer does not fit the judge's prompt,
        RoleError if vLLM fails.
        """
        judge, replies = self._judging()
        completions = conform(completions, COMPLETIONS, f"completions for {judge.id(POLICY)}")
        try:
            verdicts = judge.judge(replies, scorer_rows(completions))
        except Exception as error:
            self.close()
            raise RoleError(f"generator: vLLM failed to judge {completions.num_rows} prompts: {error}") from error
        return scored(completions, verdicts, judge.id(POLICY))

    def _judging(self) -> tuple[Judge, VLLMReplies]:
        """The judge, and the policy as the model that replies to it; built once per engine."""
        engine = self._ready()
        if self._judge is None:
            raise RoleError("generator: it was constructed without a judge, so it can answer but not score")
        if self._replies is None:
            chat = Chat(self._model.model_copy(update={"path": engine.folder, "revision": None}))
            self._replies = VLLMReplies(POLICY, engine, chat, self._judge.config, self._judge.trial())
        return self._judge, self._replies

    def token_logps(
        self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]
    ) -> list[list[float]]:
        """[B][answer tokens] log-probabilities, in nats, of the given answer tokens under the served weights.

        prompt_token_ids: [B][prompt tokens]. Nothing is sampled. Prompt and answer together may have
        max_prompt_tokens + max_new_tokens tokens.
        """
        engine = self._ready()
        limit = self._sampling.max_prompt_tokens + self._sampling.max_new_tokens
        pairs = list(zip(prompt_token_ids, completion_token_ids, strict=True))
        for row, (prompt, answer) in enumerate(pairs):
            if not prompt or len(prompt) + len(answer) > limit:
                raise RoleError(
                    f"generator: row {row} has {len(prompt)} prompt and {len(answer)} answer tokens; "
                    f"expected at least 1 prompt token and at most {limit} tokens together"
                )
        scored = engine.score(prompt_token_ids, completion_token_ids)
        return [[token.logp for token in answer] for answer in scored]

    def answer_logps(self, completions: pa.Table) -> list[list[float]]:
        """[rows][K] log-probabilities, in nats, summed over tokens, of the answers in COMPLETIONS of any policy.

        Raises SchemaError for another table, RoleError where prompt and answer are too long together.
        """
        completions = conform(completions, COMPLETIONS, "generator, log-probabilities of answers")
        rows = completions.select(["prompt_token_ids", "completion_token_ids"]).to_pylist()
        pairs = [(row["prompt_token_ids"], answer) for row in rows for answer in row["completion_token_ids"]]
        logps = iter(self.token_logps([prompt for prompt, _ in pairs], [answer for _, answer in pairs]))
        return [[math.fsum(next(logps)) for _ in row["completion_token_ids"]] for row in rows]

    def respond(self, requests: pa.Table) -> pa.Table:
        """Answer REQUESTS of a benchmark with the served weights; returns RESPONSES.

        Raises SchemaError for another table, RoleError if vLLM fails.
        """
        engine = self._ready()
        requests = conform(requests, REQUESTS, "requests to the generator")
        try:
            columns = respond(engine, requests.to_pylist(), self._seed)
        except Exception as error:
            self.close()
            raise RoleError(f"generator: vLLM failed on a shard of {requests.num_rows} requests: {error}") from error
        weights = [self._serving] * requests.num_rows
        return append(requests, RESPONSES, "responses of the generator", **columns, weights=weights)

    def serving(self) -> str | None:
        """Digest of the weights that are served; None before `load` and while asleep."""
        return self._serving

    def sleep(self) -> None:
        """Free the memory of weights and caches; `load` wakes the generator.

        On CUDA the engine sleeps. Elsewhere vLLM cannot sleep, so the engine is closed and the next `load` starts a
        new one.
        """
        self._serving = None
        if self._engine is not None and self._engine.can_sleep:
            self._engine.sleep()
        else:
            self.close()

    def close(self) -> None:
        """Close the engine and free its memory; does nothing if there is none."""
        self._serving = self._replies = None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _sample(self, requests: list[SampleRequest]) -> list[list[Sample]]:
        try:
            return self._ready().sample(requests)
        except Exception as error:
            self.close()  # a failed engine would return its unfinished requests with the next shard
            raise RoleError(f"generator: vLLM failed on a shard of {len(requests)} prompts: {error}") from error

    def _ready(self) -> VLLMEngine:
        if self._engine is None or self._serving is None:
            raise RoleError("generator: no weights are loaded; call load(folder, digest) first, also after sleep()")
        return self._engine


def _check_lengths(names: list[str], token_ids: list[list[int]], limit: int) -> None:
    """Raise RoleError, naming prompts, unless each has 1 to `limit` tokens."""
    wrong = [f"{name} ({len(ids)})" for name, ids in zip(names, token_ids, strict=True) if not 0 < len(ids) <= limit]
    if wrong:
        raise RoleError(
            f"generator: expected prompts of 1 to {limit} tokens (sampling.max_prompt_tokens, or what a benchmark "
            f"leaves), not {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )


def _check_answers(name: str, answers: list[Sample], count: int) -> None:
    """Raise RoleError unless the prompt has `count` complete answers with finite log-probabilities."""
    if len(answers) != count:
        raise RoleError(f"generator: prompt {name} has {len(answers)} of {count} answers; try another replica")
    for index, answer in enumerate(answers):
        if answer.finish_reason not in ("stop", "length"):
            raise RoleError(
                f"generator: answer {index} to prompt {name} ended by {answer.finish_reason!r} instead of "
                f"'stop' or 'length'; try another replica"
            )
        if answer.logp is None or not math.isfinite(answer.logp):
            raise RoleError(
                f"generator: answer {index} to prompt {name} has log-probability {answer.logp}; the weights or "
                f"model.dtype do not give finite numbers"
            )
