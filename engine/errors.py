"""Every error that a user can meet, by name.

Each message says what was given, what was expected and what to do. Nothing here knows
who raises it; `exit_code` is what a recipe's process ends with.
"""

from __future__ import annotations


class KumiteError(Exception):
    """Base of all errors with a message meant for people; anything else is a bug in Kumite."""

    exit_code = 1


class ConfigError(KumiteError):
    """The configuration is wrong. Carries every problem found, not just the first."""

    exit_code = 2

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)  # by default pickle would hand the text back as the list


class PlanError(KumiteError):
    """The plan does not fit the machines, the memory or the disk."""

    exit_code = 2


class DataError(KumiteError):
    """Prompts or tables that cannot be used, named by file and row."""

    exit_code = 2


class ModelError(KumiteError):
    """A model folder that lacks something the run needs (weights, tokenizer, chat template)."""

    exit_code = 2


class SchemaError(KumiteError):
    """A stage produced a table with other columns than declared."""


class StoreError(KumiteError):
    """The run folder is damaged, full, or belongs to another configuration."""


class RunLockedError(StoreError):
    """Another live driver owns the run folder."""


class RoleError(KumiteError):
    """A role (generator, scorer, learner) failed for good, after its retries."""


class DeadlineError(RoleError):
    """A call to a role took longer than its declared deadline."""


class WeightsError(KumiteError):
    """Weights that are incomplete, altered, or not the ones a replica serves."""


class NonFiniteError(KumiteError):
    """A loss or a gradient became NaN or infinite; the weights were not updated by it."""
