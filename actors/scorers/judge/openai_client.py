"""A judge's model behind a remote server that speaks OpenAI's chat-completions protocol.

The openai client retries: failed connections, timeouts, 408, 409, 429 and 5xx, with growing pauses or the server's
Retry-After of up to two minutes. Here are the limits on requests, tokens and cost, bounded concurrency, a cache of
replies, and what each failure means for the run. The key is read from the environment and sent in one header, to the
configured host only. actors/scorers/judge/openai_protocol.py builds the requests and reads the bodies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai

from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.openai_protocol import Received, Unreadable, read_body, request_for
from engine.config.judge import OpenAIServer
from engine.errors import ConfigError, RoleError
from engine.loop.spending import PAID
from engine.text import printable

log = logging.getLogger(__name__)

SENT_HEADERS = frozenset(
    {"host", "accept", "accept-encoding", "connection", "content-type", "content-length"}
    | {"x-stainless-raw-response"}  # by which the client recognises later that it was asked for the body itself
)
"""All but these and the key's are removed from requests: the client adds telemetry and OPENAI_* of the environment."""
NO_KEY = "not-the-key"
"""Given to the client in place of the key, so that nothing it logs or raises can hold the key."""
FILTERED = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
"""Error codes of a server that refuses one prompt for its content."""
EXCERPT = 200
"""Characters of the server's own words in a message."""


class OpenAIModel:
    """A ServedModel. `counts` says what became of the questions since the start."""

    def __init__(self, server: OpenAIServer, max_new_tokens: int):
        """Cheap: sends nothing. max_new_tokens: limit on the tokens of a free reply."""
        self._server, self._max_new_tokens = server, max_new_tokens
        self.spending = Spending(server, f"judge {self.id}")
        self._cache = ReplyCache(server.cache, server.base_url)
        self._key: str | None = None
        self._started = False
        self.counts: Counter[str] = Counter()
        self._failures: list[RoleError] = []
        """Of the current call of `reply`: after the first one nothing more is sent."""
        self._lost_in_a_row = 0

    @property
    def id(self) -> str:
        return f"openai:{self._server.host}:{self._server.model}"

    def start(self) -> None:
        """Read the key; nothing is sent yet. Raises ConfigError where the environment variable is missing."""
        name = self._server.api_key_env
        key = os.environ.get(name, "").strip() if name else None
        if name and not key:
            raise ConfigError(
                [f"server.api_key_env = {name}: no such variable in the environment where the judge runs; set it there"]
            )
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError([f"server.api_key_env = {name}: the variable's value cannot be sent in a header"])
        self._key, self._started = key, True

    def sleep(self) -> None:
        """Forget the key."""
        self._key, self._started = None, False

    def spent(self) -> dict[str, int]:
        spending = self.spending
        return dict(zip(PAID, (spending.requests, spending.input_tokens, spending.output_tokens), strict=True))

    def reply(self, questions: list[Question]) -> list[Reply]:
        """Ask all questions; one that stays without a readable reply is missing and counted.

        Raises RoleError where further questions are useless: the server refuses, a limit is reached, or the server
        is down.
        """
        if not self._started:
            raise RoleError("judge: no server is connected; call start() first, also after sleep()")
        before = Counter(self.counts)
        replies = asyncio.run(self._reply(questions))
        if lost := {name: n for name, n in (self.counts - before).items() if name.startswith("lost/")}:
            reasons = ", ".join(f"{n} {name.removeprefix('lost/')}" for name, n in lost.items())
            log.warning("judge %s: questions without a reply: %s", self.id, reasons)
        return replies

    async def _reply(self, questions: list[Question]) -> list[Reply]:
        """All replies. After a fatal failure nothing more is sent, but requests under way are awaited and cached."""
        self._failures = []
        slots = asyncio.Semaphore(self._server.max_concurrency)

        async def one(question: Question) -> Reply:
            async with slots:
                try:
                    return Reply(()) if self._failures else await self._ask(client, question)
                except RoleError as error:
                    self._failures.append(error)
                    return Reply(())

        async with self._client() as client:
            replies = await asyncio.gather(*map(one, questions))
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]
        return replies

    def _client(self) -> openai.AsyncOpenAI:
        server = self._server
        http = TimedClient(
            follow_redirects=False,  # the configured host alone gets the prompts and the key
            trust_env=not server.is_local,  # no proxy for this machine
            event_hooks={"request": [self._before_sending]},
        )
        return openai.AsyncOpenAI(
            api_key=NO_KEY,
            base_url=server.base_url,
            timeout=server.timeout_s,
            max_retries=server.max_retries,
            http_client=http,
        )

    async def _before_sending(self, request: httpx2.Request) -> None:
        """Count a request, be it the first or a retry, and take out all headers that are not declared."""
        if self._failures:
            raise self._failures[0]
        self.spending.count_request()
        retries = request.extensions["retries"] = int(request.headers["x-stainless-retry-count"])
        self.counts["retries"] += retries > 0
        for name in [name for name in request.headers if name.lower() not in SENT_HEADERS]:
            del request.headers[name]
        request.headers["User-Agent"] = "kumite"
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    async def _ask(self, client: openai.AsyncOpenAI, question: Question) -> Reply:
        """The samples of one question, in several requests where the server gives fewer than it is asked for."""
        samples: list[tuple[str | None, bool]] = []
        logps = None
        while len(samples) < question.num_samples:
            request = request_for(question, self._server, self._max_new_tokens, done=len(samples))
            try:
                received = self._cached(request, question) or await self._fetch(client, request, question)
            except Lost as lost:
                self.counts[f"lost/{lost.kind}"] += 1
                self._note_loss(lost)
                return replace(_present(samples), overlong=lost.kind == "overlong")
            self._lost_in_a_row = 0
            samples += zip(received.texts, received.cut, strict=True)
            logps = received.choice_logps
            self.counts["no_logprobs"] += bool(question.choices) and logps is None
        self.counts["withheld"] += sum(text is None for text, _ in samples)
        return replace(_present(samples), choice_logps=logps)

    def _cached(self, request: dict[str, Any], question: Question) -> Received | None:
        body = self._cache.get(request)
        if body is None:
            return None
        try:
            received = read_body(body, question, self._server)
        except Unreadable:
            log.warning("judge %s: a cached reply cannot be read; it is asked for again", self.id)
            return None
        self.counts["cached"] += 1
        return received

    async def _fetch(self, client: openai.AsyncOpenAI, request: dict[str, Any], question: Question) -> Received:
        """A readable answer of the server, kept in the cache. Raises as `_post`.

        The client does not retry a body of status 200 that cannot be read; it is asked for once more, here.
        """
        for last in (not self._server.max_retries, True):
            body = await self._post(client, request)
            try:
                received = read_body(body, question, self._server)
                break
            except Unreadable as error:
                if last:
                    raise Lost("unreadable", str(error)) from None
                self.counts["retries"] += 1
        self._cache.put(request, body)
        self.spending.count_tokens(received.usage)
        return received

    async def _post(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> str:
        """The body of a successful answer, without the key, should the server repeat it.

        Raises Lost where this request has no answer after all retries, RoleError where no request would have one.
        """
        try:
            answer = await client.chat.completions.with_raw_response.create(**request)
            return self._without_key(answer.text)
        except openai.OpenAIError as error:
            failure = judge_failure(error, self._server, f"judge {self.id}", self._without_key)
        raise failure  # outside the except: a traceback shall not show the request

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _note_loss(self, lost: Lost) -> None:
        """Raise RoleError where questions are lost one after the other: trying all of them would take hours."""
        if lost.kind in ("overlong", "filtered"):
            return
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= (most := max(8, 2 * self._server.max_concurrency)):
            raise RoleError(
                f"judge {self.id}: {most} questions in a row got no reply from {self._server.base_url}, each after "
                f"{self._server.max_retries} retries. Last: {lost}. Spent since the start: {self.spending}"
            )


class TimedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client whose read timeout holds for the whole answer; httpx's own holds for each piece of it."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(request.extensions["timeout"]["read"]):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no complete answer in time", request=request) from error


def _present(samples: list[tuple[str | None, bool]]) -> Reply:
    """A reply of those (text, whether it was cut) whose text the server gave."""
    given = [(text, cut) for text, cut in samples if text is not None]
    return Reply(tuple(text for text, _ in given), cut=frozenset(i for i, (_, cut) in enumerate(given) if cut))


class Lost(Exception):
    """A request without a usable answer; `kind` is what it is counted under."""

    def __init__(self, kind: str, why: str):
        super().__init__(why)
        self.kind = kind


def judge_failure(
    error: openai.OpenAIError, server: OpenAIServer, name: str, clean: Callable[[str], str]
) -> Lost | RoleError:
    """What `error`, which the client raises after its retries, means for a run. clean: removes the key from a text."""
    if isinstance(error, openai.APITimeoutError):
        return Lost("timeout", f"no complete answer within timeout_s = {server.timeout_s:g}")
    if not isinstance(error, openai.APIStatusError):
        return Lost("connection", type(error.__cause__ or error).__name__)
    status, code, words = error.status_code, error.code, _words(error, clean)
    if code == "context_length_exceeded" or (status in (400, 413, 422) and "maximum context length" in words.lower()):
        return Lost("overlong", words)
    if status == 400 and code in FILTERED:
        return Lost("filtered", words)
    if (status in (408, 409, 425, 429) or status >= 500) and code != "insufficient_quota":
        if error.request.extensions["retries"] < server.max_retries and "retry-after" in error.response.headers:
            pause = printable(clean(error.response.headers["retry-after"])[:EXCERPT], newlines="show")
            return RoleError(
                f"{name}: the server does not want to be asked again soon (status {status}, Retry-After: {pause}); the "
                f"client waits for two minutes at most. Run the same command again later. It says: {words}"
            )
        return Lost(f"status {status}", f"status {status}: {words}")
    return RoleError(
        f"{name}: {server.base_url} refuses model {server.model} with status {status}{_advice(status, server)}. "
        f"It says: {words}"
    )


def _advice(status: int, server: OpenAIServer) -> str:
    if status in (401, 403):
        key = f"the key in {server.api_key_env}" if server.api_key_env else "api_key_env, which names no key"
        return f"; check {key}"
    if status == 404:
        return "; check server.model, and that base_url ends in the version, as in /v1"
    if 300 <= status < 400:
        return ", which sends clients elsewhere; base_url must be the final address"
    if status in (400, 422):
        return "; check server.choice_mode and server.length_key"
    return ""


def _words(error: openai.APIStatusError, clean: Callable[[str], str]) -> str:
    """The server's own words in one harmless line of at most EXCERPT characters."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    line = printable(" ".join(clean(str(message or error.response.text or "nothing")).split()), newlines="show")
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "..."


class Spending:
    """Requests, tokens and their cost, held to the limits of `server`.

    max_requests is exact. Tokens are known only after a reply, so the requests under way when the limit is reached,
    at most max_concurrency, still come in on top.
    """

    def __init__(self, server: OpenAIServer, name: str):
        self._server, self._name = server, name
        self.requests = self.input_tokens = self.output_tokens = 0

    @property
    def cost_usd(self) -> float | None:
        """US dollars by the configured prices; None where there are none."""
        return self._server.usd(self.input_tokens, self.output_tokens)

    def count_request(self) -> None:
        """Count one more request before it is sent. Raises RoleError where a limit forbids it."""
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


class ReplyCache:
    """Bodies below one folder; without a folder nothing is kept."""

    def __init__(self, folder: str | None, base_url: str):
        self._folder = Path(folder) if folder else None
        self._base_url = base_url

    def get(self, request: dict[str, Any]) -> str | None:
        """The body kept for `request`; None if there is none, or none that is whole."""
        if self._folder is None:
            return None
        try:
            kept = json.loads(self._path(request).read_text(encoding="utf-8"))
            return kept["body"] if hashlib.sha256(kept["body"].encode()).hexdigest() == kept["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, request: dict[str, Any], body: str) -> None:
        """Keep `body`, all at once. Raises RoleError where the folder cannot be written."""
        if self._folder is None:
            return
        path = self._path(request)
        kept = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
        # Not engine.store.disk: several processes may write one name, and a reply that a power cut took is asked again.
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                file.write(json.dumps(kept))
            Path(file.name).replace(path)
        except OSError as error:
            raise RoleError(f"server.cache = {self._folder}: cannot be written: {error.strerror or error}") from error

    def _path(self, request: dict[str, Any]) -> Path:
        assert self._folder is not None
        text = json.dumps({"base_url": self._base_url, "request": request}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"
