"""A judge's model behind a remote server that speaks OpenAI's chat-completions protocol.

Asks with bounded concurrency, retries with growing pauses, keeps limits on requests, tokens and cost, and caches
replies. The key is read from the environment and sent in one header, to the configured host only.
actors/scorers/judge/openai_protocol.py builds the requests and reads the bodies.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import logging
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.openai_protocol import Received, Unreadable, read_body, request_for
from engine.config.judge import OpenAIServer
from engine.errors import ConfigError, RoleError
from engine.text import printable

if TYPE_CHECKING:
    from openai import AsyncOpenAI


log = logging.getLogger(__name__)

SENT_HEADERS = frozenset(
    {"host", "accept", "accept-encoding", "connection", "content-type", "content-length"}
    | {"x-stainless-raw-response"}  # by which the client knows later that it was asked for the body itself
)
"""All but these and the key's are taken out of requests: the client adds telemetry and OPENAI_* of the environment."""
NO_KEY = "not-the-key"
"""What the client itself is told, so that nothing it logs or raises can hold the key."""


class OpenAIModel:
    """A ServedModel. `counts` says what became of the questions since the start."""

    def __init__(
        self,
        server: OpenAIServer,
        max_new_tokens: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ):
        """Cheap. `max_new_tokens` bounds free replies; `sleep` (seconds) and `draw` (in [0, 1)) make the pauses."""
        self._server, self._max_new_tokens, self._sleep, self._draw = server, max_new_tokens, sleep, draw
        self.spending = Spending(server, f"judge {self.id}")
        self._cache = ReplyCache(server.cache, server.base_url)
        self._key: str | None = None
        self._started = False
        self.counts: Counter[str] = Counter()
        self._lost_in_a_row = 0

    @property
    def id(self) -> str:
        return f"openai:{self._server.host}:{self._server.model}"

    def start(self) -> None:
        """Read the key. Raises ConfigError where the named variable is missing; sends nothing yet."""
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

    def reply(self, questions: list[Question]) -> list[Reply]:
        """Ask all; a question that stays without a readable reply is missing and counted.

        Raises RoleError where asking on makes no sense: the server refuses, a limit is reached, or nothing answers.
        """
        if not self._started:
            raise RoleError("judge: no server is connected; call start() first, also after sleep()")
        before = Counter(self.counts)
        replies = asyncio.run(self._reply(questions))
        if lost := {name: n for name, n in (self.counts - before).items() if name.startswith("lost/")}:
            told = ", ".join(f"{n} {name.removeprefix('lost/')}" for name, n in lost.items())
            log.warning("judge %s: questions without a reply: %s", self.id, told)
        return replies

    async def _reply(self, questions: list[Question]) -> list[Reply]:
        """All replies; after a fatal failure nothing more is sent, but what is under way is awaited and kept."""
        failures: list[RoleError] = []
        slots = asyncio.Semaphore(self._server.max_concurrency)

        async def one(question: Question) -> Reply:
            async with slots:
                try:
                    return Reply(()) if failures else await self._ask(client, question, failures)
                except RoleError as error:
                    failures.append(error)
                    return Reply(())

        async with self._client() as client:
            replies = await asyncio.gather(*(one(question) for question in questions))
        if failures:
            raise failures[0]
        return replies

    def _client(self) -> AsyncOpenAI:
        import openai

        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # the host that was configured gets the prompts and the key, and no other
            trust_env=not self._server.is_local,  # a proxy is not asked for this machine
            event_hooks={"request": [self._only_declared_headers]},
        )
        return openai.AsyncOpenAI(
            api_key=NO_KEY,
            base_url=self._server.base_url,
            timeout=self._server.timeout_s,
            max_retries=0,  # ours are counted and held to the limits
            http_client=http,
        )

    async def _only_declared_headers(self, request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in SENT_HEADERS]:
            del request.headers[name]
        request.headers["User-Agent"] = "kumite"
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    async def _ask(self, client: AsyncOpenAI, question: Question, failures: list[RoleError]) -> Reply:
        """The samples of one question, in several requests where the server gives fewer than it is asked for."""
        samples: list[tuple[str | None, bool]] = []
        logps = None
        while len(samples) < question.num_samples:
            request = request_for(question, self._server, self._max_new_tokens, done=len(samples))
            try:
                received = await self._received(client, request, question, failures)
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

    async def _received(
        self, client: AsyncOpenAI, request: dict[str, Any], question: Question, failures: list[RoleError]
    ) -> Received:
        """A readable answer, from the cache or after some tries. Raises Lost, or RoleError for good."""
        if (body := self._cache.get(request)) is not None:
            try:
                received = read_body(body, question, self._server)
            except Unreadable:
                log.warning("judge %s: a cached reply cannot be read; it is asked for again", self.id)
            else:
                self.counts["cached"] += 1
                return received
        lost = Lost("unanswered", "")
        for attempt in range(self._server.max_retries + 1):
            if attempt:
                await self._sleep(pause_before(attempt, lost, self._draw(), f"judge {self.id}"))
                self.counts["retries"] += 1
            if failures:  # of another question, meanwhile
                break
            try:
                return await self._try(client, request, question)
            except Lost as error:
                lost = error
                if not lost.try_again:
                    break
        raise lost

    async def _try(self, client: AsyncOpenAI, request: dict[str, Any], question: Question) -> Received:
        """One request. Raises Lost where this one came to nothing, RoleError where every one would."""
        import openai

        create = client.chat.completions.with_raw_response.create  # imports a lot, once: not the server's time
        self.spending.count_request()
        try:
            # The client's own timeout is for each piece of the answer; this one is for all of it.
            async with asyncio.timeout(self._server.timeout_s):
                answer = await create(**request)
                body = self._without_key(answer.text)
        except (TimeoutError, openai.OpenAIError) as error:
            failure = judge_failure(error, self._server, f"judge {self.id}", self._without_key)
        else:
            try:
                received = read_body(body, question, self._server)
            except Unreadable as error:
                failure = Lost("unreadable", str(error), try_again=True)
            else:
                self._cache.put(request, body)
                self.spending.count_tokens(received.usage)
                return received
        raise failure  # outside the except: a traceback shall not show the request

    def _without_key(self, text: str) -> str:
        """`text` as the server wrote it, but without the key, should it repeat it."""
        return text.replace(self._key, "[key]") if self._key else text

    def _note_loss(self, lost: Lost) -> None:
        """Stop where questions are lost one after the other: a server that is down would take hours to say so."""
        if not lost.try_again:
            return
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= (most := max(8, 2 * self._server.max_concurrency)):
            raise RoleError(
                f"judge {self.id}: {most} questions in a row got no reply from {self._server.base_url}, each after "
                f"{self._server.max_retries} retries. Last: {lost}. Spent since the start: {self.spending}"
            )


def _present(samples: list[tuple[str | None, bool]]) -> Reply:
    """Those of the (text, whether it was cut) that the server gave."""
    given = [(text, cut) for text, cut in samples if text is not None]
    return Reply(tuple(text for text, _ in given), cut=frozenset(i for i, (_, cut) in enumerate(given) if cut))


FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that wants a longer pause ends the run: waiting would look like hanging."""
TRANSIENT = frozenset({408, 409, 425, 429})
"""Besides all from 500 on."""
FILTERED = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
EXCERPT = 200
"""Characters of the server's own words in a message."""


class Lost(Exception):
    """A request without a usable answer."""

    def __init__(self, kind: str, why: str, *, try_again: bool = False, retry_after_s: float | None = None):
        super().__init__(why)
        self.kind, self.try_again, self.retry_after_s = kind, try_again, retry_after_s


def judge_failure(error: Exception, server: OpenAIServer, name: str, clean: Callable[[str], str]) -> Lost | RoleError:
    """What `error` of the openai client means; `clean` takes the key out of the server's words."""
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Lost("timeout", f"no complete answer within timeout_s = {server.timeout_s:g}", try_again=True)
    if not isinstance(error, openai.APIStatusError):
        return Lost("connection", f"{type(error.__cause__ or error).__name__}", try_again=True)
    status, code, words = error.status_code, _field(error.body, "code"), _words(error, clean)
    if code == "context_length_exceeded" or (status in (400, 413, 422) and "maximum context length" in words.lower()):
        return Lost("overlong", words)
    if status == 400 and code in FILTERED:
        return Lost("filtered", words)
    if (status in TRANSIENT or status >= 500) and code != "insufficient_quota":
        after = retry_after_s(error.response.headers)
        return Lost(f"status {status}", f"status {status}: {words}", try_again=True, retry_after_s=after)
    return RoleError(
        f"{name}: {server.base_url} refuses model {server.model} with status {status}{_advice(status, server)}. "
        f"It says: {words}"
    )


def pause_before(attempt: int, lost: Lost, draw: float, name: str) -> float:
    """Seconds to wait before try `attempt` (1 is the first retry); `draw` in [0, 1) spreads those who wait.

    Doubles from try to try, and is never shorter than the server's Retry-After. Raises RoleError where that is
    longer than LONGEST_RETRY_AFTER_S.
    """
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * (0.5 + 0.5 * draw)
    if lost.retry_after_s is None:
        return pause
    if lost.retry_after_s > LONGEST_RETRY_AFTER_S:
        raise RoleError(
            f"{name}: the server asks to wait for {lost.retry_after_s:,.0f} s, more than {LONGEST_RETRY_AFTER_S:g}; "
            f"run the same command again later. {lost}"
        )
    return lost.retry_after_s + pause


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server wants a client to wait, from its headers; None where it does not say, or nonsense."""
    for header, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(header, "")) * unit
        except ValueError:
            continue
        if seconds >= 0:  # NaN is not
            return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


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


def _words(error: Any, clean: Callable[[str], str]) -> str:
    """The server's own words in one harmless line, shortened."""
    said = _field(error.body, "message") or error.response.text or "nothing"
    line = printable(" ".join(clean(str(said)).split()), newlines="show")
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "..."


def _field(body: Any, name: str) -> Any:
    """A field of an error's body, which servers put at the top or under "error"."""
    for part in (body, body.get("error") if isinstance(body, dict) else None):
        if isinstance(part, dict) and part.get(name):
            return part[name]
    return None


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
