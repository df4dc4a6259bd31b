"""What a failed request to an OpenAI-compatible server means: lost, to be tried again, or the end.

Also how long to wait before the next try. Knows nothing of questions or of who waits.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine.config.judge_server import OpenAIServer
from engine.errors import RoleError
from engine.watch.text import printable

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
