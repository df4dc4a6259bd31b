"""What asking a remote server has cost since its start, and the limits on it.

Counts requests, retries included, and the tokens that the server reports. Safe to use from several threads. Knows
nothing of requests or replies.
"""

from __future__ import annotations

import threading

from engine.config.judge_server import OpenAIServer
from engine.errors import RoleError


class Spending:
    """Requests, tokens and their cost, held to the limits of `server`.

    max_requests is exact. Tokens are known only after a reply, so the requests under way when the limit is reached,
    at most max_concurrency, still come in on top.
    """

    def __init__(self, server: OpenAIServer, name: str):
        self._server, self._name = server, name
        self._lock = threading.Lock()
        self.requests = self.input_tokens = self.output_tokens = 0

    @property
    def cost_usd(self) -> float | None:
        """US dollars by the configured prices; None where there are none."""
        price_in, price_out = self._server.usd_per_million_input_tokens, self._server.usd_per_million_output_tokens
        if price_in is None or price_out is None:
            return None
        return (self.input_tokens * price_in + self.output_tokens * price_out) / 1e6

    def count_request(self) -> None:
        """Count one more request before it is sent. Raises RoleError where a limit forbids it."""
        with self._lock:
            if reached := self._reached():
                raise RoleError(
                    f"{self._name}: {reached} is reached. Spent since the start: {self}. Nothing is lost: what was "
                    f"committed stays, {self._kept()}; raise the limit and run the same command again"
                )
            self.requests += 1

    def count_tokens(self, usage: tuple[int, int] | None) -> None:
        """Count what the server reports for a reply. Raises RoleError where a limit needs it and it is not there."""
        server = self._server
        if usage is None and (server.max_tokens_total or server.max_cost_usd):
            raise RoleError(
                f"{self._name}: the server reports no token usage, so max_tokens_total and max_cost_usd cannot be "
                f"held; use max_requests. Spent since the start: {self}"
            )
        with self._lock:
            self.input_tokens += usage[0] if usage else 0
            self.output_tokens += usage[1] if usage else 0

    def _reached(self) -> str | None:
        server, cost = self._server, self.cost_usd
        if server.max_requests is not None and self.requests >= server.max_requests:
            return f"max_requests = {server.max_requests:,}"
        if server.max_tokens_total is not None and self.input_tokens + self.output_tokens >= server.max_tokens_total:
            return f"max_tokens_total = {server.max_tokens_total:,}"
        if server.max_cost_usd is not None and cost is not None and cost >= server.max_cost_usd:
            return f"max_cost_usd = {server.max_cost_usd:g}"
        return None

    def _kept(self) -> str:
        cache = self._server.cache
        return f"replies so far are kept in {cache}" if cache else "replies are kept shard by shard (cache keeps each)"

    def __str__(self) -> str:
        cost = "" if self.cost_usd is None else f", {self.cost_usd:.4f} USD"
        return f"{self.requests:,} requests, {self.input_tokens:,} tokens in, {self.output_tokens:,} out{cost}"
