"""The configuration of an LLM judge: what it is asked, how often, and what serves the model.

docs/judges.md and docs/judge_server.md explain the keys together.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from engine.config.base import Arguments, EnvironmentVariable, ReplicasConfig, Section

CANARY = "Thank you for your question. I have considered it carefully, and this is the complete answer to it."
"""Fits every question and answers none, in the manner of the null models of arXiv 2410.07137."""


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _server_url(url: str) -> str:
    """`url` without a slash at its end. Messages repeat no part in which people put secrets."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise ValueError("expected a URL such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("user names, passwords and ?queries do not belong into the URL; name the key by api_key_env")
    return url.rstrip("/")


class OpenAIServer(Section):
    """A model behind a server that speaks OpenAI's chat-completions protocol: OpenAI, vLLM, and many others."""

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(_server_url)]
    """Up to and including the version, e.g. https://api.openai.com/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the server; one with a date in it keeps its meaning."""
    api_key_env: EnvironmentVariable | None = None
    """NAME of the environment variable that holds the key, where the judge runs; null: no key is sent."""
    allow_insecure_http: bool = False
    """Send prompts, answers and the key unencrypted to a http:// address other than this machine."""
    choice_mode: Literal["top_logprobs", "json_schema", "guided"] = "top_logprobs"
    """How a choice is asked for: one token and its likeliest alternatives; a JSON schema; vLLM's structured outputs."""
    length_key: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the server calls the longest reply; older servers know max_tokens alone."""
    timeout_s: PositiveFloat = 120.0
    """For one request, from its sending to the reply's last byte."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """How often a request is sent again; a question that then has no reply is missing."""
    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests under way at one time."""
    max_requests: PositiveInt | None = None
    """Stop the run at this many requests, retries included, since its start; null: no limit."""
    max_tokens_total: PositiveInt | None = None
    """Stop the run at this many tokens, in and out, since its start; null: no limit."""
    max_cost_usd: PositiveFloat | None = None
    """Stop the run at this cost since its start; null: no limit."""
    usd_per_million_input_tokens: Annotated[float, Field(ge=0.0)] | None = None
    """The server's price for prompts."""
    usd_per_million_output_tokens: Annotated[float, Field(ge=0.0)] | None = None
    """The server's price for replies."""
    cache: str | None = None
    """Folder in which replies are kept by a hash of server, model and request; null: none are kept."""

    @property
    def host(self) -> str:
        """Where requests go, without scheme or path."""
        return urlsplit(self.base_url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    @model_validator(mode="after")
    def _is_encrypted(self) -> OpenAIServer:
        if self.base_url.startswith("http:") and not (self.is_local or self.allow_insecure_http):
            raise ValueError(
                f"base_url = {self.base_url}: prompts and answers, and the key if there is one, would travel "
                f"unencrypted; use https, or allow_insecure_http = true in a network that you trust"
            )
        return self

    @model_validator(mode="after")
    def _cost_has_prices(self) -> OpenAIServer:
        prices = ("usd_per_million_input_tokens", "usd_per_million_output_tokens")
        missing = [name for name in prices if getattr(self, name) is None]
        if self.max_cost_usd is not None and missing:
            raise ValueError(f"max_cost_usd = {self.max_cost_usd:g} needs {' and '.join(missing)}: what tokens cost")
        return self


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
