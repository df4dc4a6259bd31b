"""What a scorer is: it compares the K answers of each prompt and returns pair logits.

A scorer turns engine.schema.COMPLETIONS into SCORES. Constructing one is cheap; `start()` loads what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.schema import COMPLETIONS, SCORES, append, conform

Logits = NDArray[np.float64]


class PairScores(NamedTuple):
    """A scorer's result for the K answers of one prompt."""

    logits: Logits
    """[K, K] in nats. Entry (i, j) > 0: answer i, shown first, beats answer j; NaN: no verdict; the diagonal is 0."""
    num_truncated: int
    """Comparisons in which a text was cut, or was too long to be read at all."""
    scores: Sequence[float] = ()
    """[K] of a scorer that judges answers one by one, NaN where it has none; else empty."""
    replies: Sequence[dict[str, Any]] = ()
    """Replies of an LLM judge, each as engine.schema.VERDICT; else empty."""


class Scorer(ABC):
    """Compares the answers of each prompt. Used by one caller at a time."""

    id: str
    """Names what decides, e.g. "pairrm:" and a digest of all that changes its scores. Known once started."""

    @abstractmethod
    def start(self) -> None:
        """Load what scoring needs. Raises ConfigError or ModelError where that is impossible."""

    def identify(self) -> str:
        """Load, and return the id under which the scores will be stored."""
        self.start()
        return self.id

    def sleep(self) -> None:  # noqa: B027 - a rule holds no memory
        """Free the memory that `start` took; `start` loads again."""

    @abstractmethod
    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        """One result per row of prompt_id, messages, prompt_text and answers."""

    def score(self, completions: pa.Table) -> pa.Table:
        """Return engine.schema.SCORES: `completions` with the results of `_compare`.

        Raises SchemaError for another table and RoleError, naming prompts, for answers that cannot be scored.
        """
        completions = conform(completions, COMPLETIONS, f"completions for scorer {self.id}")
        return scored(completions, self._compare(scorer_rows(completions)), self.id)


def scorer_rows(completions: pa.Table) -> list[dict[str, Any]]:
    """The columns of COMPLETIONS that scorers read: prompt_id, messages, prompt_text and answers."""
    return completions.select(["prompt_id", "messages", "prompt_text", "completions"]).to_pylist()


def scored(completions: pa.Table, results: Sequence[PairScores], scorer_id: str) -> pa.Table:
    """COMPLETIONS and one result per row as SCORES."""
    return append(
        completions,
        SCORES,
        f"scores of {scorer_id}",
        pair_logits=[result.logits.tolist() for result in results],
        scores=[list(result.scores) for result in results],
        num_truncated=[result.num_truncated for result in results],
        verdicts=[list(result.replies) for result in results],
        scorer=[scorer_id] * len(results),
    )


def plain_text(messages: list[dict[str, str]]) -> str:
    """A conversation as text: a single message's content, else one "role: content" line per message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
