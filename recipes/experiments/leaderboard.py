"""Kumite's AlpacaEval numbers against the published leaderboard, on public models' annotations.

    python -m recipes.experiments.leaderboard FOLDER [--weights baseline_gpt4_1106_preview.csv]

FOLDER holds instructions.parquet (instruction_id, reference_output), annotations.parquet (model, instruction_id,
output, preference in [0, 1]) and leaderboard.csv (model, win_rate, standard_error, n_total, avg_length,
length_controlled_winrate). Win rates and standard errors are compared with the published ones. The local
length-controlled win rate of each model, from the difficulties that the annotations of the others give, is compared
with the official one. With --weights, so is the official formula on published weights and these difficulties.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.benchmarks.alpaca_eval import length_control
from engine.benchmarks.alpaca_eval.files import head_to_head
from engine.benchmarks.alpaca_eval.length_control_files import WEIGHTS, read_weights
from engine.errors import KumiteError
from recipes.prepare.command_line import new_parser

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Leaderboard:
    """Public models on the same instructions against the same baseline."""

    models: list[str]
    published: dict[str, list[float]]
    """Column of the leaderboard -> value per model."""
    wins: Matrix
    """[models, instructions] P(the model's answer is better); NaN: not annotated."""
    differences: Matrix
    """[models, instructions] `std_delta_len`; NaN: not annotated."""
    lengths: Matrix
    """[models, instructions] characters; NaN: no answer."""


@dataclass(frozen=True)
class Distance:
    """How far numbers are from the published ones."""

    mean: float
    """Mean absolute difference."""
    largest: float
    rank_correlation: float
    """Spearman's."""

    def __str__(self) -> str:
        differences = f"mean |difference| {self.mean:.2f}, largest {self.largest:.2f}"
        return f"{differences}, rank correlation {self.rank_correlation:.4f}"


def read_leaderboard(folder: Path) -> Leaderboard:
    """Read the three files of `folder`."""
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    models = [row["model"] for row in rows]
    published = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "model"}
    reference = pq.read_table(folder / "instructions.parquet", columns=["instruction_id", "reference_output"])
    baseline = np.zeros(reference.num_rows)
    baseline[reference["instruction_id"].to_numpy()] = [len(text) for text in reference["reference_output"].to_pylist()]
    annotations = pq.read_table(folder / "annotations.parquet")
    shape = (len(models), len(baseline))
    wins, lengths, differences = (np.full(shape, np.nan) for _ in range(3))
    for place, model in enumerate(models):
        rows_of = annotations.filter(pc.equal(annotations["model"].cast("string"), model))
        at = rows_of["instruction_id"].to_numpy()
        wins[place, at] = rows_of["preference"].to_numpy()
        lengths[place, at] = [len(text) for text in rows_of["output"].to_pylist()]
        differences[place, at] = length_control.standardised_differences(baseline[at], lengths[place, at])
    return Leaderboard(models, published, wins, differences, lengths)


def local_win_rate(board: Leaderboard, place: int) -> tuple[float, length_control.KnownModels]:
    """The local length-controlled win rate of a model in percent, from what the annotations of the others say."""
    others = [other for other in contenders(board) if other != place]
    known = length_control.known_models(board.wins[others], board.differences[others])
    here = ~np.isnan(board.wins[place])
    seen = length_control.KnownModels(known.difficulties[here], known.length_effect)
    return length_control.local(board.wins[place][here], board.differences[place][here], seen).win_rate, known


def contenders(board: Leaderboard) -> list[int]:
    """All models but the baseline itself, which wins half of the time by construction."""
    return [place for place in range(len(board.models)) if np.nanstd(board.differences[place]) > 0]


def distance(values: list[float], published: list[float]) -> Distance:
    """Of two lists in the same order."""
    ours, theirs = np.array(values), np.array(published)
    ranks = [np.argsort(np.argsort(column)) for column in (ours, theirs)]
    differences = np.abs(ours - theirs)
    return Distance(float(differences.mean()), float(differences.max()), float(np.corrcoef(*ranks)[0, 1]))


def exact_numbers(board: Leaderboard) -> list[dict[str, float]]:
    """alpaca_eval's numbers of each model."""
    return [head_to_head(row + 1) for row in board.wins]


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the comparison and returns the exit code: 1 if an exact number differs."""
    parser = new_parser("recipes.experiments.leaderboard", __doc__)
    parser.add_argument("folder", type=Path, help="folder with the three files")
    parser.add_argument("--weights", help="file of published weights of the length-controlled regression")
    options = parser.parse_args(arguments)
    try:
        console = Console(width=None if sys.stdout.isatty() else 120)
        return compare(read_leaderboard(options.folder), options.weights, console)
    except KumiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def compare(board: Leaderboard, weights: str | None, console: Console) -> int:
    """Print everything; 1 if a win rate, standard error or number of instructions differs by more than 1e-9."""
    numbers = exact_numbers(board)
    wrong = {
        name: max(abs(ours[name] - theirs) for ours, theirs in zip(numbers, board.published[name], strict=True))
        for name in ("win_rate", "standard_error", "n_total")
    }
    controlled = board.published["length_controlled_winrate"]
    places = contenders(board)
    published_weights = read_weights(weights) if weights else {}
    table = Table("model", "win rate", "published LC", "local LC", *(["weights LC"] if weights else []))
    local, from_weights = [], []
    for place in places:
        value, known = local_win_rate(board, place)
        local.append(value)
        cells = [numbers[place]["win_rate"], controlled[place], value]
        if weights:
            own = published_weights[board.models[place]]
            none = dict.fromkeys(WEIGHTS, 0.0)
            from_weights.append(length_control.from_weights(own, none, known.difficulties).win_rate)
            cells.append(from_weights[-1])
        table.add_row(board.models[place], *(f"{cell:.2f}" for cell in cells))
    console.print(table)
    for name, difference in wrong.items():
        console.print(f"{name}: largest difference to the leaderboard {difference:.1e}, {len(board.models)} models")
    official = [controlled[place] for place in places]
    raw = [numbers[place]["win_rate"] for place in places]
    console.print(f"raw win rate to published LC: {distance(raw, official)}")
    console.print(f"length_controlled_local to published LC: {distance(local, official)}")
    if weights:
        console.print(f"published weights, local difficulties, to published LC: {distance(from_weights, official)}")
    return int(max(wrong.values()) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
