"""The generator: answers prompts with the policy and says which weights it answered with.

A plain class, used by one caller at a time in a process of its own. It knows tables, seeds and digests;
how vLLM is driven is actors/vllm_engine.py's work, where the shards come from its caller's.
"""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path

import pyarrow as pa

from actors.vllm_engine import Answer, SampleRequest, VLLMEngine, check_engine_args
from engine.config.model import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ConfigError, RoleError, WeightsError
from engine.maths.probe import compare_probe, probe_tolerance
from engine.schema import COMPLETIONS, PROMPTS, append, conform
from engine.seeds import derive_seed
from engine.store.weights import check_same_tensors, stop_token_ids, tensor_shapes, verify_weights

log = logging.getLogger(__name__)

_SURROGATES = re.compile("[\ud800-\udfff]")


class Generator:
    """A policy that answers; cheap to construct, `load` starts the engine."""

    def __init__(self, config: GeneratorConfig, model: ModelConfig, sampling: SamplingConfig, seed: int) -> None:
        """`seed` is the run's. Raises ConfigError for engine_args that other keys decide."""
        check_engine_args(config)
        self._config, self._model, self._sampling, self._seed = config, model, sampling, seed
        self._engine: VLLMEngine | None = None
        self._serving: str | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stops: set[int] = set()

    def load(self, folder: str | Path, digest: str) -> None:
        """Serve the weights in `folder`, which must have `digest`; wakes a generator that sleeps.

        The first call starts vLLM, later ones replace its weights in place, which takes seconds. Use a
        new folder for each version. Raises WeightsError if the folder was altered, lacks tensors or stops
        at other tokens; the old weights are served on then. After any other error none are served.
        """
        if self._serving == digest:
            return
        folder = str(folder)  # vLLM accepts nothing else
        verify_weights(folder, digest)
        self._check_same_model(folder)
        self._serving = None
        if self._engine is None:
            self._engine = VLLMEngine(folder, self._config, self._model, self._sampling, self._seed)
        else:
            self._reload(folder)
        self._serving = digest
        log.info("generator serves %s from %s", digest[:12], folder)

    def deliver(
        self,
        folder: str,
        digest: str,
        prompt_token_ids: list[list[int]],
        answer_token_ids: list[list[int]],
        learner_logps: list[list[float]],
    ) -> float:
        """`load`, and prove it: the probe batch has the learner's log-probabilities under these weights.

        Returns the mean |difference| per token in nats. Raises WeightsError where it exceeds the tolerance.
        """
        self.load(folder, digest)
        tolerance = probe_tolerance(self._config.probe_tolerance, self._model.dtype)
        logps = self.probe(prompt_token_ids, answer_token_ids)
        return compare_probe(learner_logps, logps, tolerance, replica=f"generator in process {os.getpid()}")

    def _check_same_model(self, folder: str) -> None:
        """Compare with the first folder: vLLM keeps its tokenizer and stop tokens, and only warns of lost tensors."""
        stops = stop_token_ids(folder)
        if not self._shapes:
            self._shapes, self._stops = tensor_shapes(folder), stops
            return
        check_same_tensors(folder, self._shapes)
        if stops != self._stops:
            raise WeightsError(
                f"{folder}: answers would stop at token ids {sorted(stops)}, the run's first policy stops at "
                f"{sorted(self._stops)}; copy generation_config.json from the starting model"
            )

    def _reload(self, folder: str) -> None:
        assert self._engine is not None
        try:
            self._engine.reload(folder)
        except Exception as error:
            self.close()  # half of the tensors may be new: nothing of this engine can be trusted
            raise RoleError(f"generator: vLLM could not reload its weights from {folder}: {error}") from error

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        num_samples: int | None = None,
        temperature: float | None = None,
        purpose: str = "sample",
    ) -> pa.Table:
        """Answer each row of PROMPTS; returns COMPLETIONS stamped with the digest of the weights.

        `num_samples` and `temperature` default to the sampling section; temperature 0 is greedy and needs
        num_samples 1. Row seeds derive from (run seed, purpose, iteration, prompt id), so a row's noise is
        the same in whichever shard, order or process it is answered. Raises ConfigError, SchemaError, and
        RoleError naming the prompt for one that is too long or is not answered in full.
        """
        self._ready()
        count = self._sampling.num_samples if num_samples is None else num_samples
        heat = self._sampling.temperature if temperature is None else temperature
        if heat == 0.0 and count != 1:
            raise ConfigError([f"temperature = 0 with {count} samples per prompt: all would be the same; ask for 1"])
        where = f"generator, iteration {iteration}, {purpose}"
        prompts = conform(prompts, PROMPTS, where)
        names = prompts["prompt_id"].to_pylist()
        token_ids = prompts["prompt_token_ids"].to_pylist()
        self._check_lengths(names, token_ids)
        seeds = [derive_seed(self._seed, purpose, iteration, name) for name in names]
        answers = self._sample([SampleRequest(ids, count, s, heat) for ids, s in zip(token_ids, seeds, strict=True)])
        for name, of_prompt in zip(names, answers, strict=True):
            _check_answers(name, of_prompt, count)
        return append(
            prompts,
            COMPLETIONS,
            where,
            answers=[[arrow_safe(a.text) for a in row] for row in answers],
            answer_token_ids=[[a.token_ids for a in row] for row in answers],
            answer_logps=[[a.logp for a in row] for row in answers],
            finish_reasons=[[a.finish_reason for a in row] for row in answers],
            # vLLM gives sample i of a request the seed `seed + i` (v1/engine/parallel_sampling.py).
            seeds=[[seed + i for i in range(count)] for seed in seeds],
            weights=[self._serving] * len(names),
            num_own=[count] * len(names),
        )

    def probe(self, prompt_token_ids: list[list[int]], answer_token_ids: list[list[int]]) -> list[list[float]]:
        """Return the log-probability, in nats, of each given answer token under the served weights.

        [B][prompt tokens] and [B][answer tokens] give [B][answer tokens]; nothing is sampled. Prompt and
        answer together must be shorter than max_prompt_tokens + max_new_tokens.
        """
        engine = self._ready()
        limit = self._sampling.max_prompt_tokens + self._sampling.max_new_tokens
        pairs = list(zip(prompt_token_ids, answer_token_ids, strict=True))
        for row, (prompt, answer) in enumerate(pairs):
            if not prompt or len(prompt) + len(answer) >= limit:
                raise RoleError(
                    f"generator: probe row {row} has {len(prompt)} prompt and {len(answer)} answer tokens; "
                    f"expected a prompt, and fewer than {limit} tokens in all"
                )
        logps = engine.score([prompt + answer for prompt, answer in pairs])
        return [row[len(row) - len(answer) :] for row, (_, answer) in zip(logps, pairs, strict=True)]

    def serving(self) -> str | None:
        """Return the digest of the weights that answer now; None before `load` and while asleep."""
        return self._serving

    def sleep(self) -> None:
        """Free the memory of weights and caches; `load` brings the generator back.

        On CUDA the engine stays and sleeps. Elsewhere vLLM can not sleep, so the engine is taken down
        and the next `load` starts it again.
        """
        self._serving = None
        if self._engine is not None and self._engine.can_sleep:
            self._engine.sleep()
        else:
            self.close()

    def close(self) -> None:
        """Take the engine down and free its memory; harmless if there is none."""
        self._serving = None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _sample(self, requests: list[SampleRequest]) -> list[list[Answer]]:
        try:
            return self._ready().sample(requests)
        except Exception as error:
            self.close()  # requests left in a failed engine would come back among the next shard's
            raise RoleError(f"generator: vLLM failed on a shard of {len(requests)} prompts: {error}") from error

    def _ready(self) -> VLLMEngine:
        if self._engine is None or self._serving is None:
            raise RoleError("generator: no weights are loaded; call load(folder, digest) first, also after sleep()")
        return self._engine

    def _check_lengths(self, names: list[str], token_ids: list[list[int]]) -> None:
        limit = self._sampling.max_prompt_tokens
        wrong = [
            f"{name} ({len(ids)})" for name, ids in zip(names, token_ids, strict=True) if not 0 < len(ids) <= limit
        ]
        if wrong:
            raise RoleError(
                f"generator: prompts of 1 to {limit} tokens (sampling.max_prompt_tokens) can be answered, "
                f"not {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
            )


def arrow_safe(text: str) -> str:
    """Return `text` with each lone surrogate, which UTF-8 and so Arrow can not hold, as U+FFFD."""
    return _SURROGATES.sub("�", text)


def _check_answers(name: str, answers: list[Answer], count: int) -> None:
    """Raise RoleError unless the prompt has `count` answers that ended properly, with finite numbers."""
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
                f"their dtype give no finite numbers"
            )
