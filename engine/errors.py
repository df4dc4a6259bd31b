"""The errors that a user can meet, one class for each kind.

A message names the value that was given, what was expected and what to do. `exit_code` is the exit code of a recipe's
process that ends with the error.
"""

from __future__ import annotations


class KumiteError(Exception):
    """Base of all errors with a message for the user; any other exception is a bug in Kumite."""

    exit_code = 1


class ConfigError(KumiteError):
    """The configuration is wrong. Holds every problem that was found, not only the first."""

    exit_code = 2

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)  # by default pickle would pass the message instead of the list


class PlanError(KumiteError):
    """The plan does not fit the machines, the memory or the disk."""

    exit_code = 2


class DataError(KumiteError):
    """Prompts or tables that cannot be used; the message names file and row."""

    exit_code = 2


class ModelError(KumiteError):
    """A model folder without something that the run needs (weights, tokenizer, chat template)."""

    exit_code = 2


class SchemaError(KumiteError):
    """A stage produced a table whose columns are not those declared for it."""


class StoreError(KumiteError):
    """The run folder is damaged, full, or belongs to another configuration."""


class RunLockedError(StoreError):
    """Another live driver owns the run folder."""


class RoleError(KumiteError):
    """A role (generator, scorer, learner) failed, and its retries are used up."""


class DeadlineError(RoleError):
    """A call to a role took longer than its declared deadline."""


class WeightsError(KumiteError):
    """Weights that are incomplete, altered, or not the ones a replica serves."""


class NonFiniteError(KumiteError):
    """A loss or a gradient became NaN or infinite; no update was made with it."""


class PublishError(KumiteError):
    """A folder that must not be published, or that the hub did not take."""

    exit_code = 2
