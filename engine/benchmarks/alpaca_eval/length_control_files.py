"""The files that length-controlled win rates need: gamed baselines, difficulties, weights, annotations of known models.

Each is in the form in which alpaca_eval publishes it. All mistakes of a file are named together, by row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.benchmarks.alpaca_eval import length_control
from engine.benchmarks.alpaca_eval.length_control import DIFFICULTY, LENGTH, MODEL, KnownModels
from engine.benchmarks.files import quoted, read_objects
from engine.data.values import RowError, number_of, text_of
from engine.errors import DataError

Vector = NDArray[np.float64]
WEIGHTS = (LENGTH, DIFFICULTY, MODEL)
"""Columns of a file of weights, in its order."""


@dataclass(frozen=True)
class GamedRow:
    """A row of df_gamed.csv: how a gamed baseline did on one instruction."""

    model: str
    instruction_id: int
    preference: float
    """In [0, 1]: P(its answer beats the baseline's); NaN: no verdict."""
    length_difference: float
    """Standardised."""
    difficulty: float
    """Of the instruction; the same for each model."""


@dataclass(frozen=True)
class Annotation:
    """A row of annotations.json."""

    model: str
    baseline: str
    instruction: str
    win: float
    """P(the model's answer is better), in [0, 1]; NaN: no verdict."""
    baseline_length: int
    """Characters."""
    length: int


def read_gamed(source: str, num_instructions: int) -> list[GamedRow]:
    """The rows of df_gamed.csv in its order. Raises DataError unless each instruction has its difficulty."""
    rows = read_objects(source, _gamed, "model and index", lambda row: (row.model, row.instruction_id))
    found = {row.instruction_id for row in rows}
    if found != set(range(num_instructions)):
        raise DataError(
            f"{source}: difficulties of {len(found)} instructions, up to index {max(found)}, for {num_instructions} "
            f"instructions; AlpacaEval's formula is for its own 805 instructions in their order. For others set "
            f"length_controlled = local, with annotations of known models, or none"
        )
    return rows


def read_difficulties(source: str, num_instructions: int) -> Vector:
    """[instructions] of instruction_difficulty.csv, whose first column is the index of the instruction."""
    rows = read_objects(source, _difficulty, "index", lambda row: row[0])
    if sorted(index for index, _ in rows) != list(range(num_instructions)):
        raise DataError(f"{source}: {len(rows)} difficulties for {num_instructions} instructions; expected one of each")
    return np.array([value for _, value in sorted(rows)])


def read_weights(source: str) -> dict[str, dict[str, float]]:
    """{model: {column of WEIGHTS: value}} of a file of published weights, baseline_<name>.csv."""
    return dict(read_objects(source, _weights, "model", lambda row: row[0]))


def read_known(source: str, instructions: Sequence[str]) -> KnownModels:
    """What the annotations of known models say. source: an annotations.json, or a folder that holds several.

    Raises DataError for annotations of other instructions, or against several baselines.
    """
    path = Path(source)
    files = sorted(path.rglob("annotations.json")) if path.is_dir() else [path]
    places = {text: place for place, text in enumerate(instructions)}
    wins, differences, baselines = [], [], set()
    for file in files:
        rows = read_objects(str(file), _annotation, "model and instruction", lambda row: (row.model, row.instruction))
        if strange := [row.instruction for row in rows if row.instruction not in places]:
            raise DataError(f"{file}: {len(strange)} of other instructions, first {quoted(strange[0])}")
        baselines |= {row.baseline for row in rows}
        for model in dict.fromkeys(row.model for row in rows):
            of_model = [row for row in rows if row.model == model]
            at = [places[row.instruction] for row in of_model]
            lengths = ([row.baseline_length for row in of_model], [row.length for row in of_model])
            wins.append(_placed(at, (row.win for row in of_model), len(instructions)))
            standardised = length_control.standardised_differences(*lengths)
            differences.append(_placed(at, standardised, len(instructions)))
    if len(baselines) != 1:
        raise DataError(
            f"{source}: {len(files)} files of annotations, against {len(baselines)} baselines "
            f"{sorted(baselines)}; expected annotations against one baseline"
        )
    return length_control.known_models(np.array(wins), np.array(differences))


def _gamed(row: Mapping[str, Any]) -> GamedRow:
    preference = number_of(row.get("preference"), "preference", 0.0, 1.0)
    return GamedRow(
        text_of(row.get("model"), "model"),
        _index(row.get("index")),
        math.nan if preference is None else preference,
        _number(row, "std_delta_len"),
        _number(row, "instruction_difficulty"),
    )


def _difficulty(row: Mapping[str, Any]) -> tuple[int, float]:
    return _index(row.get("index", row.get(""))), _number(row, "instruction_difficulty")


def _weights(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    return text_of(row.get(""), "the first column, the model,"), {name: _number(row, name) for name in WEIGHTS}


def _annotation(row: Mapping[str, Any]) -> Annotation:
    names = ("generator_2", "generator_1", "instruction", "output_1", "output_2")
    model, baseline, instruction, *outputs = (text_of(row.get(name), name) for name in names)
    preference = number_of(row.get("preference"), "preference", 0.0, 2.0)
    if preference is not None and 0 < preference < 1:
        raise RowError(f"preference holds {preference}; expected a number from 1 to 2, or 0 for a draw")
    win = math.nan if preference is None else (preference or 1.5) - 1
    return Annotation(model, baseline, instruction, win, *map(len, outputs))


def _index(value: Any) -> int:
    number = number_of(value, "index", 0.0)
    if number is None or number != int(number):
        raise RowError(f"index holds {value!r}; expected the place of an instruction, from 0")
    return int(number)


def _number(row: Mapping[str, Any], name: str) -> float:
    number = number_of(row.get(name), name)
    if number is None:
        raise RowError(f"no number in {name}; found: {', '.join(map(str, row))}")
    return number


def _placed(places: Sequence[int], values: Iterable[float], length: int) -> Vector:
    """The values at their places, NaN elsewhere."""
    placed = np.full(length, np.nan)
    placed[list(places)] = list(values)
    return placed
