"""The request to an OpenAI-compatible server for a Question, and the reading of its answer's body.

Pure functions. A server is not trusted: a body is either read exactly or raises Unreadable, nothing is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.scorers.judge.judge import Question
from engine.config.judge import OpenAIServer

TOP_LOGPROBS = 20
"""Alternatives requested per token; the maximum of OpenAI, and of vLLM by default."""
CHOICE_ROOM = {"top_logprobs": 1, "guided": 16, "json_schema": 32}
"""Limit on the tokens of a choice, by choice_mode: its first token, the whole choice, or the choice within JSON."""

Alternatives = list[tuple[str, float]]
"""Possible tokens at one position, with their log-probabilities in nats."""


class Unreadable(ValueError):
    """A body that does not follow the protocol. The message says why, without quoting it."""


@dataclass(frozen=True)
class Received:
    """The content of one answer of the server."""

    texts: tuple[str | None, ...]
    """One per sample; None where the server withheld it, or where it is none of the choices."""
    cut: tuple[bool, ...]
    """One per sample: whether free text reached the limit on its tokens."""
    choice_logps: dict[str, float] | None
    """Nats, normalised over the choices; None where the server gave no log-probabilities."""
    usage: tuple[int, int] | None
    """Tokens of the prompt and of the replies, as counted by the server; None where it reports none."""


def request_for(question: Question, server: OpenAIServer, max_new_tokens: int, done: int = 0) -> dict[str, Any]:
    """Arguments of the openai client's chat.completions.create for the samples after the first `done`.

    max_new_tokens: of a free reply, if the question does not say.
    """
    request: dict[str, Any] = {
        "model": server.model,
        "messages": [dict(message) for message in question.messages],
        "temperature": question.temperature,
        "seed": question.seed + done,
    }
    if not question.choices:
        samples, limit = question.num_samples - done, question.max_new_tokens or max_new_tokens
        return request | {server.length_key: limit} | ({"n": samples} if samples > 1 else {})
    request |= {server.length_key: CHOICE_ROOM[server.choice_mode], "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if server.choice_mode == "guided":
        request["extra_body"] = {"structured_outputs": {"choice": list(question.choices)}}
    elif server.choice_mode == "json_schema":
        request["response_format"] = {"type": "json_schema", "json_schema": _verdict_schema(question.choices)}
    return request


def _verdict_schema(choices: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(choices)}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return {"name": "verdict", "strict": True, "schema": schema}


def read_body(text: str, question: Question, server: OpenAIServer) -> Received:
    """Read the body of a successful answer, independently of its Content-Type. Raises Unreadable."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("the body is not JSON") from error
    try:
        samples = [(sample["message"], sample) for sample in body["choices"]]
        texts = tuple(None if message.get("refusal") else message["content"] for message, _ in samples)
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable("the JSON holds no choices[].message.content") from error
    if not texts or not all(isinstance(content, str | None) for content in texts):
        raise Unreadable("choices[].message.content is not text")
    usage = _usage(body.get("usage"))
    if not question.choices:
        cut = tuple(sample.get("finish_reason") == "length" for _, sample in samples)
        return Received(texts[: question.num_samples], cut[: question.num_samples], None, usage)
    content = texts[0] or ""
    logps = choice_logps(question.choices, _alternatives(samples[0][1], content, server.choice_mode))
    chosen = max(logps, key=logps.__getitem__) if logps else _chosen(content, question.choices, server.choice_mode)
    return Received((chosen,), (False,), logps, usage)  # a choice has room for little more than itself


def _usage(usage: Any) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    return counts if all(isinstance(n, int) and n >= 0 for n in counts) else None  # type: ignore[return-value]


def _chosen(content: str, choices: Sequence[str], mode: str) -> str | None:
    """The choice that a reply spells; None where it spells none."""
    if mode == "json_schema":
        try:
            content = json.loads(content)["choice"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    return _spellings(choices).get(_spelt(content, choices)) if isinstance(content, str) else None


def _spelt(text: str, choices: Sequence[str]) -> str:
    """`text` without space around it, and in lower case unless case alone distinguishes the choices."""
    folded = {choice.strip().casefold() for choice in choices}
    return text.strip().casefold() if len(folded) == len(choices) else text.strip()


def _spellings(choices: Sequence[str]) -> dict[str, str]:
    return {_spelt(choice, choices): choice for choice in choices}


def choice_logps(choices: Sequence[str], alternatives: Alternatives) -> dict[str, float] | None:
    """Log-probabilities, in nats, of `choices` by the listed tokens, normalised; None if none of them is listed.

    Variants of a choice in case and space are summed. A choice that is not listed is at most as probable as the least
    listed token, and as what the listed tokens leave to 1: it gets the smaller of the two bounds, never exactly 0.
    """
    spellings = _spellings(choices)
    mass = dict.fromkeys(choices, 0.0)
    for token, logp in alternatives:
        if choice := spellings.get(_spelt(token, choices)):
            mass[choice] += math.exp(logp)
    if not any(mass.values()):
        return None
    listed = [math.exp(logp) for _, logp in alternatives]
    bound = min(min(listed), max(0.0, 1.0 - math.fsum(listed)))
    mass = {choice: p or bound for choice, p in mass.items()}
    total = math.fsum(mass.values())
    return {choice: math.log(p / total) if p / total else -math.inf for choice, p in mass.items()}


def _alternatives(sample: dict[str, Any], content: str, mode: str) -> Alternatives:
    """The possible tokens where the choice begins; empty where the server gives none, or invalid ones."""
    try:
        positions = [(item["token"], _listed(item)) for item in sample["logprobs"]["content"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        return []
    if not positions:
        return []
    return _within_json(positions, content) if mode == "json_schema" else positions[0][1]


def _listed(item: dict[str, Any]) -> Alternatives:
    """The likeliest tokens of one position and the actual one, which need not be among them."""
    listed = [(top["token"], float(top["logprob"])) for top in item["top_logprobs"]]
    if item["token"] not in (token for token, _ in listed):
        listed.append((item["token"], float(item["logprob"])))
    # Servers round, so a little above 0 is 0; -9999 stands for "impossible" at OpenAI and vLLM.
    if not all(isinstance(token, str) and logp <= 1e-3 for token, logp in listed):
        raise ValueError("not log-probabilities")
    return [(token, min(0.0, logp)) for token, logp in listed]


def _within_json(positions: list[tuple[str, Alternatives]], content: str) -> Alternatives:
    """The alternatives at the token in which the value of {"choice": "..."} begins, without the JSON around it."""
    colon = content.find(":", content.find('"choice"'))
    start, end = content.find('"', colon + 1) + 1, 0
    if colon < 0 or start < 1:
        return []
    for token, listed in positions:
        begin, end = end, end + len(token)
        if begin <= start < end:
            before = token[: start - begin]
            return [(other[len(before) :].rstrip('"} \n'), p) for other, p in listed if other.startswith(before)]
    return []
