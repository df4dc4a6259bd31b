"""The configuration of a source of prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PositiveInt

from engine.config.base import WITHOUT_EFFECT, Section


class PromptsConfig(Section):
    """Where prompts come from and what is done with rows that cannot be used."""

    source: str | list[str]
    """Hub id, or a JSONL, JSON, CSV, Parquet or Arrow file; a list gives one source per iteration."""
    split: str = "train"
    """Split of a data set on the hub."""
    column: str | None = None
    """Column with the prompt (text or chat messages); null: the first of prompt, messages, instruction, question."""
    format: Literal["pair", "arena", "labelled", "completion", "conversation", "kumite"] | None = None
    """Layout of the source's answers, for algorithms that learn from them; null: recognized by its columns."""
    use: Literal["parts", "all"] = "parts"
    """parts: disjoint parts, one per iteration, as in the paper; all: every prompt in every iteration."""
    limit: PositiveInt | None = None
    """Use only this many prompts of each source, the first ones."""
    expected: Annotated[PositiveInt | None, WITHOUT_EFFECT] = None
    """Prompts per source, for the plan only; needed where they cannot be counted in advance (data sets on the hub)."""
    shuffle: bool = True
    """Shuffle (by the run's seed) before the prompts are divided."""
    on_malformed: Literal["error", "drop"] = "error"
    """What to do with a row without a usable prompt."""
    on_duplicate: Literal["keep", "drop", "error"] = "keep"
    """What to do with a prompt that repeats an earlier one; a kept one gets its own id and seed."""
    on_overlong: Literal["error", "drop"] = "error"
    """What to do with a prompt of more than sampling.max_prompt_tokens tokens."""
    on_identical: Literal["drop", "error"] = "drop"
    """What to do with a preference pair whose two answers are the same."""
    on_long_answer: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with an answer of more than sampling.max_new_tokens tokens; truncate: keep its start, without EOS."""
