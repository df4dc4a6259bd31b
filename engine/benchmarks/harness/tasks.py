"""The tasks of lm-evaluation-harness that are evaluated, with the files that replace their data sets.

Imports lm_eval: import this module only where that is needed.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind, TaskIndex

from engine.benchmarks.harness.presets import Entry, entries
from engine.benchmarks.ifeval.checks import provide_checker_data
from engine.config.benchmarks import HarnessConfig
from engine.errors import ConfigError, DataError

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
OTHER_SPLITS = ("train", "dev", "validation", "test")
"""Where few-shot examples are taken from, in this order, if the files lack the task's own split."""


@dataclass
class LoadedTasks:
    """Tasks in the form that the harness evaluates."""

    tasks: dict[str, Task] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    """The tasks that each entry of the config stands for."""
    missing: dict[str, str] = field(default_factory=dict)
    """Entries without data, with the reason."""

    def keep(self, names: set[str]) -> None:
        """Keep the entries whose tasks are all in `names`, the tasks whose requests are committed.

        Raises DataError if the data of one of these cannot be had any more.
        """
        if gone := sorted(names - self.tasks.keys()):
            raise DataError(
                f"lm_eval: the answers to {', '.join(gone)} are committed, but its data cannot be read any more "
                f"({'; '.join(self.missing.values())}); restore it, and run the same command again"
            )
        for entry, members in list(self.members.items()):
            if not names.issuperset(members):
                self.missing[entry] = "its requests are not committed"
                del self.members[entry]
        kept = {name for members in self.members.values() for name in members}
        self.tasks = {name: task for name, task in self.tasks.items() if name in kept}
        leaves = {name: {task.task_name for task in group.get_all_tasks()} for name, group in self.groups.items()}
        self.groups = {name: group for name, group in self.groups.items() if kept.issuperset(leaves[name])}

    @property
    def notes(self) -> dict[str, str]:
        """What each entry does differently from the harness's own task."""
        differences = {
            entry: dict.fromkeys(note for name in names for note in getattr(self.tasks[name], "differences", ()))
            for entry, names in self.members.items()
        }
        return {entry: "; ".join(notes) for entry, notes in differences.items() if notes}


def load_tasks(config: HarnessConfig) -> LoadedTasks:
    """Load every task of the config as `simple_evaluate` of the harness would, and its data.

    Raises DataError for unknown tasks, and for tasks of `tasks` without data; those of a preset are `missing` then.
    """
    loaded = LoadedTasks()
    wanted = entries(config)
    manager = _manager(config.include_path, not all(entry.name.endswith(".yaml") for entry in wanted))
    problems = []
    for entry in wanted:
        try:
            _add(loaded, entry, _load(manager, entry))
        except (OSError, ImportError, datasets.exceptions.DatasetsError) as error:
            reason = named(error)
            if entry.required:
                problems.append(f"{entry.name}: its data cannot be had ({reason}); give files in data.{entry.name}")
            loaded.missing[entry.name] = reason
        except DataError as error:
            problems.append(f"{entry.name}: {error}")
        except Exception as error:  # a task is code of the harness, run on the first row
            problems.append(f"{entry.name}: {named(error)}; do the files have the columns of its data set?")
    if problems:
        raise DataError("\n  ".join(["evaluation.benchmarks.lm_eval: tasks that cannot be loaded:", *problems]))
    _set_shots(loaded, config.num_fewshot)
    return loaded


def named(error: Exception) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def harness_process() -> Iterator[None]:
    """Around everything that the harness does: its seeds for the global generators, which are restored; its progress
    bars unseen; no processes of its own, because forking one that has threads can block; the data of its checkers."""
    import torch

    os.environ["DISABLE_MULTIPROC"] = "1"
    with contextlib.suppress(ConfigError):
        provide_checker_data()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class LocalTask(ConfigurableTask):
    """A task of the harness whose data set is read from files, one per split."""

    def __init__(self, config: dict[str, Any]):
        """config: of the task, with `class`, and with {"files": {split: path}, "shared": whether several tasks read
        these files} as `dataset_kwargs`."""
        config = {key: value for key, value in config.items() if key != "class"}
        splits = config["dataset_kwargs"]["files"]
        self._difference, self._other_examples = _fit_splits(config, splits)
        super().__init__(config=config)

    @property
    def differences(self) -> list[str]:
        """What it does differently from the harness's own task."""
        examples = self._other_examples if self.get_config("num_fewshot") else ""
        return [text for text in (self._difference, examples) if text]

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the files; of files that several tasks share, the rows whose `subject` is the task's `dataset_name`."""
        assert dataset_kwargs is not None
        splits = {split: _read(path) for split, path in dataset_kwargs["files"].items()}
        if dataset_kwargs["shared"]:
            splits = {split: _of_subject(rows, self.DATASET_NAME) for split, rows in splits.items()}
        self.dataset = datasets.DatasetDict(splits)


def _fit_splits(config: dict[str, Any], splits: dict[str, str]) -> tuple[str, str]:
    """Change the splits of a task's config to those that exist.

    Returns what is different then: about the documents, and about the few-shot examples; "" for nothing.
    """
    wanted = config.get("test_split") or config.get("validation_split")
    fewshot = config.get("fewshot_split") or config.get("training_split")
    for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) not in splits:
            config[key] = None
    evaluated = config.get("test_split") or config.get("validation_split")
    if evaluated is None:
        raise DataError(f"no file for the split {wanted}, which is evaluated; there are {', '.join(splits)}")
    chosen = next(split for split in (fewshot, *OTHER_SPLITS, *splits) if split in splits)
    # The harness leaves the evaluated row out of its own examples exactly where fewshot_split equals test_split.
    config["fewshot_split"] = config["test_split"] if chosen == evaluated else chosen
    return (
        "" if evaluated == wanted else f"evaluated on {evaluated}, as there is no file for {wanted}",
        "" if chosen == fewshot else f"few-shot examples from {chosen}, as there is no file for {fewshot}",
    )


@cache
def _read(path: str) -> datasets.Dataset:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    if Path(path).suffix not in READERS:
        raise DataError(f"{path}: expected a file that ends in {', '.join(READERS)}")
    return datasets.load_dataset(READERS[Path(path).suffix], data_files=path, split="train")


def _of_subject(rows: datasets.Dataset, subject: str | None) -> datasets.Dataset:
    if "subject" not in rows.column_names:
        raise DataError("several tasks share its files; expected a column `subject` with their dataset_name")
    chosen = np.flatnonzero(np.array(rows["subject"]) == subject)
    if not len(chosen):
        raise DataError(f"no row has the subject {subject!r}")
    return rows.select(chosen)


@cache
def _manager(include_path: str | None, include_defaults: bool) -> TaskManager:
    """include_defaults: index the harness's own 15,000 task files, which takes six seconds."""
    return TaskManager(include_path=include_path, include_defaults=include_defaults)


def _load(manager: TaskManager, entry: Entry) -> list[Task | Group]:
    known = manager.task_index.get(entry.name) or TaskIndex.entry_from_path(Path(entry.name))
    if known is None:
        near = difflib.get_close_matches(entry.name, manager.all_tasks, n=3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise DataError(f"no task, group or file of lm_eval has this name{nearest}")
    settings = dict(entry.settings)
    if entry.files:
        files = {split: str(Path(path).resolve()) for split, path in entry.files.items()}
        shared = known.kind in (Kind.GROUP, Kind.TAG)
        settings |= {"class": LocalTask, "dataset_kwargs": {"files": files, "shared": shared}}
    built = TaskFactory().build(known, overrides=settings or None, registry=manager.task_index)
    return built if isinstance(built, list) else [built]


def _add(loaded: LoadedTasks, entry: Entry, built: list[Task | Group]) -> None:
    names: list[str] = []
    for item in built:
        if isinstance(item, Group):
            loaded.groups |= {group.name: group for group in [item, *item.get_all_groups()]}
            members = item.get_all_tasks()
        else:
            members = [item]
        for task in members:
            if task.task_name in loaded.tasks:
                raise DataError(f"its task {task.task_name} is named twice")
            loaded.tasks[task.task_name] = task
            names.append(task.task_name)
    loaded.members[entry.name] = names


def _set_shots(loaded: LoadedTasks, num_fewshot: int | None) -> None:
    """As `simple_evaluate`: a task's own 0 stays 0; the seed of the examples is the harness's."""
    for task in loaded.tasks.values():
        default = task.get_config("num_fewshot")
        if num_fewshot is not None and default != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif default is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
