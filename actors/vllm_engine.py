"""vLLM behind nine methods: sample, decode, choose, follow, score, reload, adapt, sleep, close. Only this imports vllm.

Written against vLLM 0.32, whose weight and sleep calls change between minor versions; the contract test
in tests/actors/test_generator.py names each call that is used here.
Importing this module is cheap: vLLM (7 s) is imported when an engine is built.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.config.learner import SERVED_RANKS
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ConfigError, RoleError

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.lora.request import LoRARequest

ENVIRONMENT = {
    # The engine core lives in this process: killing the process leaves no orphan, and seeds are reproducible.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Only with tensor parallelism on CPU: pinned workers of two engines would land on the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Set before vLLM is imported unless the user set them (the first one always)."""

RESERVED_ARGS = frozenset(
    {"model", "tokenizer", "skip_tokenizer_init", "dtype", "seed", "runner", "logprobs_mode", "generation_config"}
    | {"max_model_len", "enable_sleep_mode", "trust_remote_code", "tensor_parallel_size"}
    | {"enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras"}
)
"""Arguments of vllm.LLM that Kumite decides, because other sections of the config or its tables depend on them."""


@dataclass(frozen=True)
class SampleRequest:
    """One prompt to answer `num_samples` times; sample i draws with seed + i."""

    prompt_token_ids: list[int]
    num_samples: int
    seed: int
    temperature: float
    """0: greedy, with num_samples 1."""
    max_new_tokens: int | None = None
    """None: as in the sampling section, top_p and top_k included; else sampled from the whole distribution."""
    until: tuple[str, ...] = ()
    """Texts before which the sample ends, besides the model's own stop tokens."""


@dataclass(frozen=True)
class Sample:
    """One finished sample as vLLM returned it."""

    text: str
    """Without special tokens."""
    token_ids: list[int]
    """As generated, including the end-of-sequence token where the model gave one."""
    logp: float | None
    """Nats, summed over `token_ids`, under the model's own distribution (temperature 1, nothing cut off)."""
    finish_reason: str | None


class GivenToken(NamedTuple):
    """How likely a given token was, under the model's own distribution."""

    logp: float
    """Nats."""
    likeliest: bool
    """Whether no token was likelier."""


def check_engine_args(engine_args: dict[str, Any], section: str) -> None:
    """Raise ConfigError for entries of `section`.engine_args that Kumite itself decides."""
    clashes = sorted(RESERVED_ARGS & engine_args.keys())
    if clashes:
        raise ConfigError([f"{section}.engine_args.{name}: decided by other keys; remove it" for name in clashes])


class VLLMEngine:
    """One in-process vllm.LLM with a policy loaded from a folder."""

    def __init__(
        self,
        folder: str,
        config: GeneratorConfig,
        model: ModelConfig,
        sampling: SamplingConfig,
        seed: int,
        room: int = 0,
        lora_rank: int = 0,
    ) -> None:
        """Start vLLM from `folder`; raises RoleError with vLLM's own message where it cannot.

        room: tokens of the longest sequence for any use besides `sampling`. lora_rank: the largest rank of an adapter
        that `adapt` will be given; 0: no adapters.
        """
        self.folder, self.sampling = folder, sampling
        # `score` reads a sequence of full length as a prompt, and vLLM wants room for one more token after it.
        self.room = max(room, sampling.max_prompt_tokens + sampling.max_new_tokens + 1)
        self.lora_rank = lora_rank
        self._adapter: LoRARequest | None = None
        self._num_adapters = 0
        self._asleep = False
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            _limit_threads(config.cpus)
        self.can_sleep = current_platform.is_cuda_alike() and current_platform.is_sleep_mode_available()
        arguments = self._arguments(config, model, seed, on_cpu=current_platform.is_cpu())
        try:
            self.llm = vllm.LLM(folder, **arguments)
        except Exception as error:
            raise RoleError(
                f"generator: vLLM {vllm.__version__} could not start from {folder} with {arguments}: {error}"
            ) from error

    def _arguments(self, config: GeneratorConfig, model: ModelConfig, seed: int, *, on_cpu: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "skip_tokenizer_init": False,
            "dtype": model.dtype,
            "seed": seed,
            "trust_remote_code": model.trust_remote_code,
            "tensor_parallel_size": config.tensor_parallel_size,
            "max_model_len": self.room,
            "logprobs_mode": "raw_logprobs",
            "enable_sleep_mode": self.can_sleep,
            "use_tqdm_on_load": False,
        }
        if on_cpu:
            # Compiling costs minutes there; an explicit cache size also spares the warm-up pass.
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
            # A seeded request whose prompt is read in chunks kills the engine: vLLM rewinds its random
            # generator by an offset that CPU generators do not have (gpu_model_runner.py, _bookkeeping_sync).
            arguments["enable_chunked_prefill"] = False
        else:
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        if self.lora_rank:
            served = next(rank for rank in SERVED_RANKS if rank >= self.lora_rank)
            arguments |= {"enable_lora": True, "max_lora_rank": served, "max_loras": 1, "max_cpu_loras": 1}
        if config.tensor_parallel_size > 1:
            # Inside a Ray actor vLLM would choose its Ray executor, which refuses a bundle of several GPUs.
            arguments["distributed_executor_backend"] = "mp"
        return arguments | config.engine_args

    def sample(self, requests: list[SampleRequest]) -> list[list[Sample]]:
        """Return the samples of each request, in the order of requests and of sample numbers."""
        return [
            [
                Sample(o.text, list(o.token_ids), o.cumulative_logprob, o.finish_reason)
                for o in sorted(output.outputs, key=lambda o: o.index)
            ]
            for output in self._run(
                [request.prompt_token_ids for request in requests], [self._parameters(request) for request in requests]
            )
        ]

    def _parameters(self, request: SampleRequest) -> Any:
        from vllm import SamplingParams

        unrestricted = request.temperature == 0.0 or request.max_new_tokens is not None
        return SamplingParams(
            n=request.num_samples,
            temperature=request.temperature,
            top_p=1.0 if unrestricted else self.sampling.top_p,
            top_k=0 if unrestricted else self.sampling.top_k,
            max_tokens=request.max_new_tokens or self.sampling.max_new_tokens,
            seed=request.seed,
            stop=list(request.until),
            logprobs=0,  # of the sampled tokens only
            flat_logprobs=True,
        )

    def decode(self, token_ids: list[int]) -> str:
        """The text of generated tokens, without special ones; unlike a sample's, also of an incomplete character."""
        return str(self.llm.get_tokenizer().decode(token_ids, skip_special_tokens=True))

    def choose(self, prompts: list[list[int]], token_ids: list[int]) -> list[list[float]]:
        """Return log p(token | prompt), in nats, of each of `token_ids` right behind each prompt."""
        return [[token.logp for token in row] for row in self.follow(prompts, [token_ids] * len(prompts))]

    def follow(self, prompts: list[list[int]], token_ids: list[list[int]]) -> list[list[GivenToken]]:
        """How likely each of a prompt's `token_ids` is right behind it, by one request per prompt.

        The tokens are requested by id, under the model's own distribution: they need not be among the likeliest few.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=ids, detokenize=False) for ids in token_ids
        ]
        followed = []
        for ids, output in zip(token_ids, self._run(prompts, parameters), strict=True):
            (likeliest,), logprobs = output.outputs[0].token_ids, _requested(output.outputs[0].logprobs)[0]
            followed.append([GivenToken(logprobs[token].logprob, token == likeliest) for token in ids])
        return followed

    def score(self, prompts: list[list[int]], answers: list[list[int]]) -> list[list[GivenToken]]:
        """How likely each token of each prompt's given answer is after all before it."""
        pairs = list(zip(prompts, answers, strict=True))
        if self.lora_rank:
            return self._score_by_steps(pairs)
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run([prompt + answer for prompt, answer in pairs], [parameters] * len(pairs))
        return [_answer_tokens(prompt, answer, output) for (prompt, answer), output in zip(pairs, outputs, strict=True)]

    def _score_by_steps(self, pairs: list[tuple[list[int], list[int]]]) -> list[list[GivenToken]]:
        """The same by one request per answer token, because prompt_logprobs with enable_lora ends the engine on CPU."""
        begun = [prompt + answer[:i] for prompt, answer in pairs for i in range(len(answer))]
        followed = iter(self.follow(begun, [[token] for _, answer in pairs for token in answer]))
        return [[token for _ in answer for token in next(followed)] for _, answer in pairs]

    def _run(self, token_ids: list[list[int]], parameters: list[Any]) -> list[RequestOutput]:
        from vllm import TokensPrompt

        if not token_ids:
            return []
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in token_ids]
        return self.llm.generate(prompts, parameters, use_tqdm=False, lora_request=self._adapter)

    def reload(self, folder: str) -> None:
        """Replace the weights in place by those of `folder`, which holds the same tensors; also wakes."""
        # Wake in two parts: the key-value cache comes back only after the new weights have their room.
        if self.can_sleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if not self.can_sleep:
            self.llm.apply_model(_repack_tied_head)
        if self.can_sleep:
            self.llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        self._forget_cache()

    def adapt(self, folder: str | None) -> None:
        """Answer with the adapter in `folder` from now on, or with the base alone (None); also wakes.

        Raises vLLM's own error where the adapter does not fit; the engine must not be used then.
        """
        from vllm.lora.request import LoRARequest

        if self._asleep:
            self.llm.wake_up()
            self._asleep = False
        if self._adapter is not None:
            self.llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None
        if folder is not None:
            # vLLM identifies an adapter by its number alone: a number used before would bring old weights back.
            self._num_adapters += 1
            self._adapter = LoRARequest(f"adapter-{self._num_adapters}", self._num_adapters, folder)
            if not self.llm.llm_engine.add_lora(self._adapter):
                raise RoleError(f"generator: vLLM did not load the adapter in {folder}")
        self._forget_cache()

    def _forget_cache(self) -> None:
        """Drop cached keys and values: those of the old weights would silently be used with the new ones."""
        if not self.llm.reset_prefix_cache():
            raise RoleError("generator: vLLM did not reset its prefix cache; requests are still running")

    def sleep(self) -> None:
        """Give back GPU memory, weights included; only where `can_sleep`; `reload` or `adapt` wakes it."""
        # Level 2 drops the weights instead of copying them to host memory, which the learner may need. A base with
        # adapters is copied all the same: vLLM cannot reload weights below its adapter layers.
        self.llm.sleep(level=1 if self.lora_rank else 2)
        self._asleep = True

    def close(self) -> None:
        """Stop the engine and free its memory; another engine can be built in this process."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()  # also collects the engine's reference cycles


def _repack_tied_head(model: Any) -> None:
    """On CPU vLLM multiplies with a packed copy of the LM head, made when the head's own tensor is loaded.

    With tied embeddings only the embedding has one, so reload_weights leaves the old head in use.
    """
    head = getattr(model, "lm_head", None)
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    if tied and head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def _limit_threads(cpus: float) -> None:
    """Use this replica's share of the cores, unless OMP_NUM_THREADS says otherwise (Ray sets it per actor).

    By default each engine uses all cores, and waiting OpenMP threads spin: two such engines on two busy cores gave a
    tenth of the tokens that they give with one thread each.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, int(cpus)))


def _requested(value: Any) -> Any:
    """A field of vLLM's output that is None only where it was not requested."""
    assert value is not None
    return value


def _answer_tokens(prompt: list[int], answer: list[int], output: RequestOutput) -> list[GivenToken]:
    entries = zip(answer, _requested(output.prompt_logprobs)[len(prompt) :], strict=True)
    return [GivenToken(entry[token].logprob, entry[token].rank == 1) for token, entry in entries if entry]
