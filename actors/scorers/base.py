"""What a scorer is: from K answers per prompt to pair logits, scores and verdicts, whoever decides.

Each turns engine.schema.COMPLETIONS into SCORED. Constructing one is cheap; `start()` loads. Knows nothing
of any particular scorer, of how logits become win rates, or of who trains on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.schema import COMPLETIONS, SCORED, append, conform

Logits = NDArray[np.float64]


class Verdict(NamedTuple):
    """What a scorer found for one prompt."""

    logits: Logits
    """[K, K], M[i, j] > 0: answer i, shown first, beats answer j; NaN: no verdict; the diagonal is 0."""
    num_truncated: int
    """Comparisons in which a text could not be read to its end."""
    scores: Sequence[float] = ()
    """[K] of a scorer that judges answers one by one, NaN where it has none; else empty."""
    replies: Sequence[dict[str, Any]] = ()
    """What an LLM judge said, as engine.schema.VERDICT."""


class Scorer(ABC):
    """Compares the answers of each prompt. Used by one caller at a time."""

    id: str
    """Names what decided, e.g. "pairrm:" and a digest of all that changes its scores. Known once started."""

    @abstractmethod
    def start(self) -> None:
        """Load what scoring needs. Raises ConfigError or ModelError where that is impossible."""

    def identify(self) -> str:
        """Load, and tell the id under which the scores will be kept."""
        self.start()
        return self.id

    def sleep(self) -> None:  # noqa: B027 - rules hold nothing
        """Free the memory that `start` took; `start` brings the scorer back."""

    @abstractmethod
    def _verdicts(self, rows: list[dict[str, Any]]) -> list[Verdict]:
        """One verdict per row of prompt_id, messages, prompt_text and answers."""

    def score(self, completions: pa.Table) -> pa.Table:
        """Return engine.schema.SCORED: `completions` with what `_verdicts` found.

        Raises SchemaError for another table and RoleError, naming prompts, for answers that cannot be scored.
        """
        completions = conform(completions, COMPLETIONS, f"completions for scorer {self.id}")
        return scored(completions, self._verdicts(rows_of(completions)), self.id)


def rows_of(completions: pa.Table) -> list[dict[str, Any]]:
    """What scorers read of COMPLETIONS: prompt_id, messages, prompt_text and answers."""
    return completions.select(["prompt_id", "messages", "prompt_text", "answers"]).to_pylist()


def scored(completions: pa.Table, verdicts: Sequence[Verdict], scorer_id: str) -> pa.Table:
    """COMPLETIONS and one verdict per row as SCORED."""
    return append(
        completions,
        SCORED,
        f"verdicts of {scorer_id}",
        pair_logits=[verdict.logits.tolist() for verdict in verdicts],
        scores=[list(verdict.scores) for verdict in verdicts],
        num_truncated=[verdict.num_truncated for verdict in verdicts],
        verdicts=[list(verdict.replies) for verdict in verdicts],
        scorer=[scorer_id] * len(verdicts),
    )


def plain_text(messages: list[dict[str, str]]) -> str:
    """The words of a conversation: a lone message's content, else one "role: content" line per message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
