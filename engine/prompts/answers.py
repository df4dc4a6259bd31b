"""The answers of a data set as tokens, and the rules for those that cannot train: identical or too long.

Knows one prompt at a time and nothing of files; who turns text into tokens is handed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from engine.config.model import PromptsConfig
from engine.errors import ModelError
from engine.prompts.conversations import Message, Prompt
from engine.schema import NOTHING_GIVEN

Tokens = Callable[[list[Message], str], list[int]]
"""(messages, answer) -> the answer's token ids, the one that ends it included."""


class Refused(Exception):
    """Why a row is left out, and the rule that says so."""

    def __init__(self, rule: str, reason: str):
        super().__init__(reason)
        self.rule = rule


class AnswerRules:
    """Turns answers into columns of PROMPTS and counts what was done to them."""

    def __init__(self, config: PromptsConfig, tokens: Tokens, max_tokens: int):
        self._on_long, self._tokens, self._max_tokens = config.on_long_answer, tokens, max_tokens
        self.counts: Counter[str] = Counter()
        """"truncated_answers": answers that lost their end."""

    def columns(self, prompt: Prompt) -> dict[str, Any]:
        """Return the given_* columns of the prompt. Raises Refused, and ModelError for what no tokens can say."""
        if not prompt.answers:
            return NOTHING_GIVEN
        _differ(prompt.answers, "both answers are the same text")
        token_ids = [self._tokens(prompt.messages, answer) for answer in prompt.answers]
        if not all(token_ids):
            raise ModelError("an answer has no tokens")
        _differ(token_ids, "both answers are the same tokens")
        kept = [self._kept(ids) for ids in token_ids]
        _differ(kept, f"both answers are the same in their first {self._max_tokens} tokens")
        self.counts["truncated_answers"] += sum(len(ids) > self._max_tokens for ids in token_ids)
        return {
            "given_answers": list(prompt.answers),
            "given_token_ids": kept,
            "given_win_rates": list(prompt.win_rates),
        }

    def _kept(self, token_ids: list[int]) -> list[int]:
        """The first tokens; an answer that was cut has no end-of-sequence token, as a sampled one."""
        if len(token_ids) > self._max_tokens and self._on_long != "truncate":
            length = f"an answer of {len(token_ids)} tokens"
            raise Refused("long_answers", f"{length}; sampling.max_new_tokens is {self._max_tokens}")
        return token_ids[: self._max_tokens]


def _differ(answers: Any, reason: str) -> None:
    """Raise Refused if the two answers of a pair are one: nothing can be learnt from preferring it to itself."""
    if len(answers) == 2 and answers[0] == answers[1]:
        raise Refused("identical", reason)
