"""A judge's model behind a remote server that speaks OpenAI's chat-completions protocol.

Asks with bounded concurrency, tries again with growing pauses, holds limits, keeps replies. The key is read from the
environment by name and leaves this process in one header alone, to one host alone. Knows nothing of what is asked;
actors/openai_wire.py knows what requests and bodies look like.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actors.judge_model import Question, Reply
from actors.openai_failures import Lost, judge_failure, pause_before
from actors.openai_limits import Spending
from actors.openai_wire import Received, Unreadable, read_body, request_for
from actors.reply_cache import ReplyCache
from engine.config.judge_server import OpenAIServer
from engine.errors import ConfigError, RoleError

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
