"""The configuration of a judge's model behind a remote server that speaks OpenAI's chat-completions protocol.

docs/judge_server.md explains the keys together. Knows nothing of what is asked. Imports nothing heavy.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from engine.config.secrets import EnvironmentVariable
from engine.config.section import Section


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
