"""The comparison with AlpacaEval's leaderboard, over a small leaderboard."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.experiments.leaderboard import distance, main


def write(folder: Path, error: float = 0.0) -> Path:
    """Three models on eight instructions; the published win rate of the first is off by `error`."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows, board = [], []
    for model in ("a", "b", "c"):
        wins = draw.uniform(size=8)
        rows += [
            {"model": model, "instruction_id": i, "output": "x" * int(draw.integers(1, 99)), "preference": win}
            for i, win in enumerate(wins)
        ]
        rate, sem = 100 * wins.mean(), 100 * wins.std(ddof=1) / np.sqrt(8)
        board.append([model, rate + (error if model == "a" else 0.0), sem, 8, 10, 50.0])
    pq.write_table(pa.Table.from_pylist(rows), folder / "annotations.parquet")
    reference = {"instruction_id": list(range(8)), "reference_output": ["y" * 50] * 8}
    pq.write_table(pa.table(reference), folder / "instructions.parquet")
    names = ["model", "win_rate", "standard_error", "n_total", "avg_length", "length_controlled_winrate"]
    with (folder / "leaderboard.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *board])
    return folder


def test_equal_numbers_are_reported_with_exit_code_0_and_others_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path / "equal"))]) == 0
    assert "length_controlled_local to published LC" in capsys.readouterr().out
    assert main([str(write(tmp_path / "other", error=1e-8))]) == 1


def test_distances_are_those_of_the_values_and_of_their_ranks() -> None:
    found = distance([1.0, 2.0, 4.0], [1.0, 5.0, 3.0])
    assert found.mean == pytest.approx(4 / 3)
    assert found.largest == 3.0
    assert found.rank_correlation == pytest.approx(0.5)
