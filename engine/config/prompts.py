"""Where prompts come from, and what is done with rows that cannot be used."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from engine.config.base import Section


class PromptsConfig(Section):
    """Where prompts come from and what is done with rows that cannot be used."""

    source: str | list[str]
    """Hub id, or a JSONL, JSON, CSV, Parquet or Arrow file; a list gives one source per iteration."""
    split: str = "train"
    """Split of a hub data set."""
    column: str | None = None
    """Column with the prompt (text or chat messages); null: prompt, messages, instruction or question."""
    format: Literal["pair", "arena", "labelled", "completion", "conversation", "kumite"] | None = None
    """How the source brings answers along, where an algorithm wants them; null: as its columns say."""
    use: Literal["parts", "all"] = "parts"
    """parts: disjoint parts, one per iteration, as in the paper; all: every prompt in every iteration."""
    limit: PositiveInt | None = None
    """Use only the first so many prompts of each source."""
    expected: PositiveInt | None = None
    """Prompts per source, for the plan alone, where they cannot be counted before they are read (hub data sets)."""
    shuffle: bool = True
    """Shuffle (by the run's seed) before the prompts are divided."""
    on_malformed: Literal["error", "drop"] = "error"
    """Rows that hold no usable prompt."""
    on_duplicate: Literal["keep", "drop", "error"] = "keep"
    """The same prompt again; kept ones get ids and seeds of their own."""
    on_overlong: Literal["error", "drop"] = "error"
    """Prompts of more than sampling.max_prompt_tokens tokens."""
    on_identical: Literal["drop", "error"] = "drop"
    """Preference pairs whose two answers are the same."""
    on_long_answer: Literal["truncate", "drop", "error"] = "truncate"
    """Rows with an answer of more than sampling.max_new_tokens tokens; truncate keeps its start, without EOS."""
