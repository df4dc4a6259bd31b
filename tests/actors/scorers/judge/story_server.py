"""An OpenAI-compatible server on this machine that answers by a script and records what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """One answer."""

    body: str | dict[str, Any] = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the body."""
    hang: bool = False
    """Say nothing until the test is over."""
    drip: bool = False
    """Send a byte now and then, without end: every read succeeds, the answer is never complete."""


Story = Callable[[dict[str, Any]], Say]
"""From a request's body to its answer; called under a lock."""


def completion(*texts: str | None, logprobs: list | None = None, usage: tuple[int, int] | None = (10, 2)) -> dict:
    """A chat completion; `logprobs` is [(token, logp, {alternative: logp}), ...] of the first text."""
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    if logprobs is not None:
        content = [
            {"token": token, "logprob": logp, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}
            for token, logp, top in logprobs
        ]
        choices[0]["logprobs"] = {"content": content}
    body: dict[str, Any] = {"object": "chat.completion", "choices": choices}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return body


class StoryServer:
    """Answers every request by `story`; `requests` holds (headers, body) of everything that was sent."""

    def __init__(self, story: Story):
        self.story = story
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.most_at_once = 0
        self.over = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(story_server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with story_server._one_more():
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    with story_server._lock:
                        story_server.requests.append((dict(self.headers), body))
                        say = story_server.story(body)
                    story_server._tell(self, say)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _tell(self, handler: BaseHTTPRequestHandler, say: Say) -> None:
        if say.hang:
            self.over.wait()
            return
        data = (say.body if isinstance(say.body, str) else json.dumps(say.body)).encode()
        handler.send_response(say.status)
        for name, value in ({"Content-Type": "application/json"} | say.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(10**9 if say.drip else len(data) + 100 * say.cut))
        handler.end_headers()
        try:
            handler.wfile.write(data)
            while say.drip and not self.over.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:  # the client has gone, as it should
            pass
        handler.close_connection = say.cut or say.drip
