"""The configuration of an LLM judge: what it is asked, how often, and which server runs the model.

docs/judges.md and docs/judge_server.md explain the keys together.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from engine.config.base import WITHOUT_EFFECT, Arguments, EnvironmentVariable, ReplicasConfig, Section

NULL_MODEL = "Thank you for your question. I have considered it carefully, and this is the complete answer to it."
"""Fits every question and answers none, as the null models of arXiv 2410.07137."""


Price = Annotated[float, Field(ge=0.0)]
"""US dollars per million tokens."""


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_server_url(url: str) -> str:
    """Return `url` without a slash at its end. Messages do not repeat it: it may hold a secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise ValueError("expected a URL such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "remove user name, password and ?query from the URL; api_key_env names the variable with the key"
        )
    return url.rstrip("/")


class OpenAIServer(Section):
    """A model behind a server that speaks OpenAI's chat-completions protocol: OpenAI, vLLM, and many others."""

    kind: Literal["openai"] = "openai"
    """A model behind OpenAI's chat-completions protocol."""
    base_url: Annotated[str, AfterValidator(_check_server_url)]
    """URL up to and including the version, e.g. https://api.openai.com/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the server; prefer one with a date, which stays the same model."""
    api_key_env: Annotated[EnvironmentVariable | None, WITHOUT_EFFECT] = None
    """NAME of the environment variable that holds the API key where the judge runs; null: no key is sent."""
    allow_insecure_http: Annotated[bool, WITHOUT_EFFECT] = False
    """Send prompts, answers and the key unencrypted to a http:// address that is not this machine."""
    choice_mode: Literal["top_logprobs", "json_schema", "guided"] = "top_logprobs"
    """How the judge chooses. top_logprobs: one token and its likeliest alternatives; json_schema: a JSON schema;
    guided: vLLM's structured outputs."""
    length_key: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """The server's name for the limit of a reply's length; older servers accept only max_tokens."""
    timeout_s: Annotated[PositiveFloat, WITHOUT_EFFECT] = 120.0
    """Seconds for one request, up to the last byte of its reply."""
    max_retries: Annotated[int, Field(ge=0, le=20), WITHOUT_EFFECT] = 5
    """How often a failed request is sent again; a question without a reply after that counts as missing."""
    max_concurrency: Annotated[int, Field(ge=1, le=1024), WITHOUT_EFFECT] = 8
    """Requests in flight at the same time."""
    max_requests: Annotated[PositiveInt | None, WITHOUT_EFFECT] = None
    """Stop the run after this many requests since its start, retries included; null: no limit."""
    max_tokens_total: Annotated[PositiveInt | None, WITHOUT_EFFECT] = None
    """Stop the run after this many tokens since its start, input and output; null: no limit."""
    max_cost_usd: Annotated[PositiveFloat | None, WITHOUT_EFFECT] = None
    """Stop the run at this cost since its start; null: no limit."""
    usd_per_million_input_tokens: Annotated[Price | None, WITHOUT_EFFECT] = None
    """The server's price for input tokens; max_cost_usd needs it."""
    usd_per_million_output_tokens: Annotated[Price | None, WITHOUT_EFFECT] = None
    """The server's price for output tokens; max_cost_usd needs it."""
    cache: Annotated[str | None, WITHOUT_EFFECT] = None
    """Folder for replies, by a hash of server, model and request; null: replies are not kept."""

    @property
    def host(self) -> str:
        """Host and port that requests go to."""
        return urlsplit(self.base_url).netloc

    def usd(self, input_tokens: float, output_tokens: float) -> float | None:
        """US dollars for these numbers of tokens; None without both prices."""
        price_in, price_out = self.usd_per_million_input_tokens, self.usd_per_million_output_tokens
        if price_in is None or price_out is None:
            return None
        return (input_tokens * price_in + output_tokens * price_out) / 1e6

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    @model_validator(mode="after")
    def _check_encryption(self) -> OpenAIServer:
        if self.base_url.startswith("http:") and not (self.is_local or self.allow_insecure_http):
            raise ValueError(
                f"base_url = {self.base_url}: prompts and answers, and the key if there is one, would travel "
                f"unencrypted; use https, or set allow_insecure_http = true in a network that you trust"
            )
        return self

    @model_validator(mode="after")
    def _check_cost_has_prices(self) -> OpenAIServer:
        prices = ("usd_per_million_input_tokens", "usd_per_million_output_tokens")
        missing = [name for name in prices if getattr(self, name) is None]
        if self.max_cost_usd is not None and missing:
            raise ValueError(f"max_cost_usd = {self.max_cost_usd:g} needs {' and '.join(missing)}")
        return self


class PolicyServer(Section):
    """The policy's generators judge its answers, with the same weights that sampled them (self-rewarding)."""

    kind: Literal["policy"] = "policy"
    """The policy judges its own answers."""


class VLLMServer(Section):
    """Another language model, served by vLLM in a pool of its own."""

    kind: Literal["vllm"] = "vllm"
    """Another language model in vLLM engines of its own."""
    path: str
    """Folder or hub id of the judge: a causal language model with safetensors weights."""
    revision: str | None = None
    """Hub revision; pin it when trust_remote_code is on."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type that the judge computes in."""
    chat_template: str | None = None
    """File with a Jinja chat template; null: the model's own; "none": the user part of the prompt, unchanged."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models whose code you have read."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine is split over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of a GPU's memory that vLLM may take."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] = 1.0
    """Size of the key-value cache on CPU machines, in GiB."""
    engine_args: Arguments = Field(default_factory=dict)
    """More arguments of vllm.LLM, by its own names."""
    num_parameters: Annotated[PositiveFloat | None, WITHOUT_EFFECT] = None
    """Size of a model that is not on this machine, for the plan; null: counted from its files."""


JudgeServer = Annotated[PolicyServer | VLLMServer | OpenAIServer, Field(discriminator="kind")]

KEYS_OF_MODE = {
    "pairwise": ("orders", "abstain"),
    "pointwise": ("num_judgements", "temperature", "max_new_tokens", "min_score", "max_score"),
}
"""Keys that have an effect in one mode only."""


class JudgeConfig(ReplicasConfig):
    """A language model that compares answers or gives them points."""

    kind: Literal["judge"] = "judge"
    """A language model that is asked for a verdict."""
    server: JudgeServer
    """What runs the judge's model."""
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    """pairwise: which of two answers is better; pointwise: a score for each answer on its own."""
    prompt: str
    """File with the text that the judge is asked; recipes/judges/ has one for each mode."""
    orders: Literal["both", "random", "first"] = "both"
    """pairwise: order of the answers. both: ask twice; random: draw one per pair; first: the earlier sample first."""
    abstain: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """pairwise: a verdict whose probability is less than this far from 1/2 is a tie."""
    num_judgements: PositiveInt = 3
    """pointwise: sampled judgements per answer, averaged; 3 in Self-Rewarding, 11 in Meta-Rewarding."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.7
    """pointwise: sampling temperature of the judgements."""
    max_new_tokens: PositiveInt = 512
    """pointwise: most tokens of one judgement; a longer one counts as missing."""
    min_score: float = 0.0
    """pointwise: lowest score that the prompt allows; a lower one counts as missing."""
    max_score: float = 5.0
    """pointwise: highest score that the prompt allows; a higher one counts as missing."""
    max_prompt_tokens: PositiveInt = 4096
    """Most tokens of the filled-in prompt; a longer one is not asked, and counts as truncated and missing."""
    null_model: str | None = NULL_MODEL
    """An answer without content that the judge compares with the policy's answers, as a baseline; null: no baseline."""

    @model_validator(mode="after")
    def _check_keys_of_mode(self) -> JudgeConfig:
        for mode, names in KEYS_OF_MODE.items():
            changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if mode != self.mode and changed:
                raise ValueError(f"{', '.join(changed)}: without effect in mode = {self.mode}; only for mode = {mode}")
        if self.mode == "pointwise" and self.temperature == 0 and self.num_judgements > 1:
            raise ValueError(f"num_judgements = {self.num_judgements} at temperature 0 would all be the same; use 1")
        if self.min_score >= self.max_score:
            raise ValueError(f"min_score = {self.min_score:g} is not below max_score = {self.max_score:g}")
        return self

    @model_validator(mode="after")
    def _check_resources(self) -> JudgeConfig:
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
    def _check_remote_limits(self) -> JudgeConfig:
        if isinstance(self.server, OpenAIServer):
            if self.num_replicas > 1 or self.gpus:
                raise ValueError(
                    "num_replicas, gpus: server.kind = openai computes elsewhere, and one process counts its limits; "
                    "remove them and raise server.max_concurrency"
                )
            if self.max_prompt_tokens != type(self).model_fields["max_prompt_tokens"].default:
                raise ValueError("max_prompt_tokens: without effect for server.kind = openai; the server has a limit")
        return self

    @property
    def by_policy(self) -> bool:
        """Whether the policy judges itself."""
        return isinstance(self.server, PolicyServer)

    @property
    def reply_tokens(self) -> int:
        """Most tokens of one reply."""
        return self.max_new_tokens if self.mode == "pointwise" else 1
