"""The configuration of held-out preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from engine.config.base import Section
from engine.config.prompts import PromptsConfig


class PreferencesConfig(Section):
    """Held-out preferences: the learner computes its loss on them, and how often it prefers the chosen answer."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the prompts of the run's own preference set that is held out, with all their pairs; null: `source`."""
    source: str | None = None
    """Another preference set: a hub id, or a JSONL, JSON, CSV, Parquet or Arrow file; null: `share`."""
    split: str = "train"
    """Split of a data set on the hub."""
    column: str | None = None
    """Column with the prompt; null: recognized, as in prompts.column."""
    format: Literal["pair", "arena", "labelled", "completion", "conversation", "kumite"] | None = None
    """Layout of the answers; null: recognized by the columns."""
    limit: PositiveInt | None = None
    """Use only this many rows, the first ones."""
    on_malformed: Literal["error", "drop"] = "error"
    """What to do with a row without a usable prompt."""
    on_overlong: Literal["error", "drop"] = "error"
    """What to do with a prompt of more than sampling.max_prompt_tokens tokens."""
    on_identical: Literal["drop", "error"] = "drop"
    """What to do with a pair whose two answers are the same."""
    on_long_answer: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with an answer of more than sampling.max_new_tokens tokens."""

    def prompts(self) -> PromptsConfig:
        """The second set as a source of prompts."""
        return PromptsConfig(use="all", **self.model_dump(exclude={"share"}))

    @model_validator(mode="after")
    def _check_share_or_source(self) -> PreferencesConfig:
        if (self.share is None) == (self.source is None):
            raise ValueError(
                "expected either share, a part of the run's own preference set, or source, a second set"
                + ("; both are given" if self.share else "")
            )
        defaults = type(self).model_construct()
        names = [name for name in type(self).model_fields if name not in ("share", "source")]
        unused = [name for name in names if getattr(self, name) != getattr(defaults, name)]
        if self.share is not None and unused:
            raise ValueError(
                f"{', '.join(unused)}: with share the rows are read as the section prompts says; remove them"
            )
        return self
