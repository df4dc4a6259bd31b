"""The runs of a sweep: a base configuration and every combination of the values in a sweep file.

name: eta-by-lr
vary:                                  # every value with every other
  algorithm.eta: [1, 5]
  learner.optimizer.lr: [1e-4, 3e-4, 1e-3]
linked:                                # the first values belong together, the second ones, ...
  - seed: [0, 1]
    model.path: [worlds/0/policy, worlds/1/policy]
exclude:                               # combinations with all of these values
  - {algorithm.eta: 5, learner.optimizer.lr: 1e-3}
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.config.load import load, parse_yaml
from engine.config.run import RunConfig
from engine.errors import ConfigError

Values = Annotated[list[Any], Field(min_length=1)]
MAX_RUNS = 1000
SEED = "seed"
MAX_NAME = 64
"""Characters of a run's name."""


class SweepFile(BaseModel):
    """A sweep file."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "sweep"
    """Name of the sweep, and of the folder under `output` that holds its runs."""
    vary: dict[str, Values] = Field(default_factory=dict)
    """{key: its values}; every value is combined with every other."""
    linked: list[dict[str, Values]] = Field(default_factory=list)
    """Each entry is one axis: {key: values} whose first, second, ... values belong together."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Each entry leaves out the combinations that have all of its {key: value}."""

    def points(self) -> list[dict[str, Any]]:
        """{key: value} of every combination that is not excluded; the last axis changes fastest."""
        every = (
            {key: value for part in point for key, value in part.items()} for point in itertools.product(*self.axes())
        )
        return [point for point in every if not any(_has(point, values) for values in self.exclude)]

    def axes(self) -> list[list[dict[str, Any]]]:
        """One list per axis, of the {key: value} of each of its points."""
        single = [[{key: value} for value in values] for key, values in self.vary.items()]
        groups = [
            [dict(zip(group, point, strict=True)) for point in zip(*group.values(), strict=True)]
            for group in self.linked
        ]
        return single + groups


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    config: RunConfig
    values: Mapping[str, Any]
    """{key: value} of the varied keys."""

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True)
class Sweep:
    """All runs, in the order of the file: the last axis changes fastest."""

    name: str
    folder: Path
    runs: tuple[SweepRun, ...]
    keys: tuple[str, ...]
    """The varied keys."""
    with_seed: tuple[str, ...] = ()
    """Those linked with `seed`: they change with it, so that means over seeds are means over them too."""


def read_sweep(file: Path, base: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and check every run. Raises ConfigError with the problems of all of them.

    base: the config file that all runs share. overrides: key=value for all of them.
    """
    sweep = _read(file)
    points = sweep.points()
    if len(points) > MAX_RUNS:
        raise ConfigError([f"{file}: {len(points):,} runs; expected at most {MAX_RUNS:,}"])
    names = _names(points)
    output = Path(load(base, overrides).output) / sweep.name
    runs: list[SweepRun] = []
    problems: list[str] = []
    for point, name in zip(points, names, strict=True):
        values = [f"{key}={json.dumps(value)}" for key, value in point.items()]  # JSON is YAML too
        try:
            config = load(base, [*overrides, *values, f"output={output}", f"name={name}"])
            runs.append(SweepRun(config, point))
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    groups = [tuple(group) for group in sweep.linked if SEED in group]
    linked = groups[0] if groups else ()
    return Sweep(sweep.name, output.resolve(), tuple(runs), tuple(points[0]), linked)


def _read(file: Path) -> SweepFile:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: cannot be read: {error}"]) from error
    try:
        sweep = SweepFile.model_validate(parse_yaml(text, str(file)).plain())
    except ValidationError as error:
        raise ConfigError(
            [f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        ) from error
    problems = [
        f"{file}: linked.{n}: {', '.join(f'{key} has {len(values)} values' for key, values in group.items())}; "
        f"expected as many of each, because they belong together"
        for n, group in enumerate(sweep.linked)
        if len({len(values) for values in group.values()}) > 1
    ]
    keys = [key for axis in sweep.axes() for key in axis[0]] if not problems else []
    problems += [f"{file}: {key} is varied twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    problems += [f"{file}: {key}: the sweep decides it" for key in ("name", "output") if key in keys]
    if not keys and not problems:
        problems.append(f"{file}: names no key; expected a section `vary` or `linked`")
    if not problems:
        problems = [f"{file}: exclude.{n}: {problem}" for n, problem in _exclusions(sweep)]
    if problems:
        raise ConfigError(problems)
    return sweep


def _has(point: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(key in point and point[key] == value for key, value in values.items())


def _exclusions(sweep: SweepFile) -> list[tuple[int, str]]:
    """(number of the entry of `exclude`, what is wrong with it)."""
    known: dict[str, list[Any]] = {}
    for axis in sweep.axes():
        for part in axis:
            for key, value in part.items():
                known.setdefault(key, []).append(value)
    wrong = []
    for n, values in enumerate(sweep.exclude):
        for key, value in values.items():
            if value not in (swept := known.get(key, [])):
                expected = f"expected one of {json.dumps(swept)}" if swept else "the sweep does not vary this key"
                wrong.append((n, f"{key} = {json.dumps(value)}: {expected}"))
    wrong += [(n, "excludes every combination") for n, values in enumerate(sweep.exclude) if not values]
    return wrong if wrong or sweep.points() else [(len(sweep.exclude) - 1, "no combination is left")]


def _names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A readable name for each point, e.g. "eta-5_lr-0.0003_seed-1"; numbered where names are too long or equal."""
    names = ["_".join(f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in point.items()) for point in points]
    width = len(str(len(points)))
    if all(len(name) <= MAX_NAME for name in names) and len(set(names)) == len(names):
        return names
    return [f"{number:0{width}d}_{name}"[:MAX_NAME].rstrip("._-") for number, name in enumerate(names, 1)]


def _word(value: Any) -> str:
    """A value as part of a file name; of a path only its end."""
    text = str(value).rstrip("/").rpartition("/")[2] if isinstance(value, str) else str(value)
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-") or "x"
