"""AlpacaEval's files: instructions and answers in; annotations and leaderboard out, as alpaca_eval reads them.

Everything that a file may hold wrongly is found together and named. `read_outputs` reads answers that exist already,
of whatever origin.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.benchmarks.alpaca_eval.length_control_files import WEIGHTS
from engine.benchmarks.files import quoted, read_objects
from engine.data.values import MAX_SHOWN, RowError, text_of
from engine.errors import DataError

LEADERBOARD_COLUMNS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
    "lc_standard_error",
)
"""In alpaca_eval's order."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of the benchmark."""

    text: str
    dataset: str
    output: str | None
    """The answer that the file brings; None: it has none."""
    generator: str
    """What gave that answer; "": not known."""


@dataclass(frozen=True)
class ModelOutputs:
    """The answers of one model, in the order of the instructions that were asked for."""

    generator: str
    """The model's name."""
    outputs: list[str]


def read_instructions(source: str) -> list[Instruction]:
    """The rows of a file in the form of alpaca_eval.json, in its order. Raises DataError with all mistakes."""
    return read_objects(source, _instruction, "instruction", lambda row: row.text)


def read_outputs(path: str | Path, instructions: Sequence[str], others: Collection[str] = ()) -> ModelOutputs:
    """The answers of a file in the form of model_outputs.json: instruction, output, generator.

    instructions: those that must be answered. others: those that may be answered, too. An answer may be empty. Raises
    one DataError for rows without the fields or with an instruction that occurred before, and one for instructions
    without an answer, answers to other instructions, and answers of several models.
    """
    rows = read_objects(str(path), _output, "instruction", lambda row: row.text)
    answers = {row.text: row.output or "" for row in rows}
    allowed = {*instructions, *others}
    problems = [f"no answer to {quoted(text)}" for text in instructions if text not in answers]
    problems += [f"an answer to another instruction: {quoted(text)}" for text in answers if text not in allowed]
    names = sorted({row.generator for row in rows})
    if len(names) > 1:
        problems.append(f"answers of {len(names)} models: {', '.join(map(quoted, names))}; expected one")
    if problems:
        more = [f"... and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        lines = "\n".join(f"  {problem}" for problem in [*problems[:MAX_SHOWN], *more])
        raise DataError(f"{path}: does not answer the {len(instructions)} instructions:\n{lines}")
    return ModelOutputs(names[0] or Path(path).stem, [answers[text] for text in instructions])


def head_to_head(preferences: Iterable[float]) -> dict[str, float]:
    """alpaca_eval's numbers of preferences in [1, 2]; NaN, no verdict, does not count. Rates in percent.

    The win rate is the mean of preference - 1, the standard error that of this mean; a draw is exactly 1.5.
    """
    values = np.array(list(preferences), dtype=np.float64)
    wins = values[~np.isnan(values)] - 1
    total = len(wins)
    won, lost = int((wins > 0.5).sum()), int((wins < 0.5).sum())
    drawn = total - won - lost
    return {
        "win_rate": float(wins.mean() * 100) if total else math.nan,
        "standard_error": float(wins.std(ddof=1) / math.sqrt(total) * 100) if total > 1 else math.nan,
        "n_wins": won,
        "n_wins_base": lost,
        "n_draws": drawn,
        "n_total": total,
        "discrete_win_rate": (won + drawn / 2) / total * 100 if total else math.nan,
    }


def leaderboard(generator: str, row: Mapping[str, Any]) -> str:
    """leaderboard.csv with one row; numbers in full precision, empty where there is none."""
    return _csv(LEADERBOARD_COLUMNS, {generator: row})


def weights_file(generator: str, baseline: str, weights: Mapping[str, float]) -> str:
    """A file of weights as alpaca_eval writes it, with those of the baseline, which are 0."""
    return _csv(WEIGHTS, {generator: weights, baseline: dict.fromkeys(WEIGHTS, 0.0)})


def records(rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSON list of objects, in ASCII; NaN as null."""
    return json.dumps([{k: None if _is_nan(v) else v for k, v in row.items()} for row in rows], indent=2) + "\n"


def _instruction(row: dict[str, Any]) -> Instruction:
    output = row.get("reference_output", row.get("output"))
    # `generator` names what gave `output`, not what gave `reference_output`.
    name = "" if "reference_output" in row else row.get("generator")
    return Instruction(
        _instruction_text(row),
        text_of(row.get("dataset") or "", "dataset"),
        None if output is None else text_of(output, "output"),
        text_of(name or "", "generator"),
    )


def _output(row: dict[str, Any]) -> Instruction:
    missing = [name for name in ("instruction", "output") if name not in row]
    if missing:
        raise RowError(f"no {' and no '.join(missing)}; found: {', '.join(map(str, row))}")
    name = text_of(row.get("generator") or "", "generator")
    return Instruction(_instruction_text(row), "", text_of(row["output"], "output"), name)


def _instruction_text(row: dict[str, Any]) -> str:
    text = text_of(row.get("instruction"), "instruction")
    if not text:
        raise RowError("instruction is empty")
    return text


def _csv(columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per name, which stands in a first column without a heading, as pandas writes an index."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["", *columns])
    for name, row in rows.items():
        values = (row.get(column) for column in columns)
        writer.writerow([name, *("" if _is_nan(value) else value for value in values)])
    return buffer.getvalue()


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
