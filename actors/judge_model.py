"""What an LLM judge needs of a language model, whoever serves it: replies to chats, or one of some choices.

Served by vLLM in this process (the policy's own engine or another model) or by a remote server. Knows
nothing of answers, rubrics or verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]
"""{"role": ..., "content": ...}"""


@dataclass(frozen=True)
class Question:
    """One chat that a judge is to reply to."""

    messages: tuple[Message, ...]
    seed: int
    """Of the first reply; reply n draws with seed + n, where the server takes seeds."""
    choices: tuple[str, ...] = ()
    """If there are any, the reply is exactly one of them; else it is free text."""
    num_samples: int = 1
    """Replies wanted; 1 with choices."""
    temperature: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What came back for one Question."""

    texts: tuple[str, ...]
    """[num_samples]; fewer where the model gave none in spite of retries."""
    choice_logps: dict[str, float] | None = None
    """Log-probability, in nats, of each choice, normalised over the choices; None where unknown or not asked."""
    cut: frozenset[int] = frozenset()
    """Indices of the texts that ran into the limit on their tokens, so that their end is missing; free text only."""
    overlong: bool = False
    """Whether the chat had more tokens than the model has room for, so that it was not asked."""


class JudgeModel(Protocol):
    """A language model behind one call."""

    @property
    def id(self) -> str:
        """Names the model by what changes its replies, e.g. "vllm:" and a digest of its weights."""

    def reply(self, questions: list[Question]) -> list[Reply]:
        """One Reply per Question, in order. Raises RoleError where the model cannot be asked at all."""


class ServedModel(JudgeModel, Protocol):
    """A model with a life of its own; `id` is known once it is started."""

    def start(self) -> None:
        """Load it or connect; harmless if that is done. Raises ConfigError, ModelError or RoleError."""

    def sleep(self) -> None:
        """Give back memory and connections; `start` brings it back."""
