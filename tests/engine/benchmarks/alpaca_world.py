"""A small AlpacaEval: twelve instructions, a baseline of letters, gamed baselines, annotations of known models."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS = [
    {
        "instruction": f"Write {number} letters.",
        "dataset": "koala" if number % 2 else "vicuna",
        "output": "ab" * (number % 3) + "c",
        "generator": "letters",
    }
    for number in range(12)
]
RULE = {"kind": "rule", "function": "actors.fakes:utility"}
"""Every letter "a" is worth one nat."""


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def write_gamed(path: Path, count: int = len(INSTRUCTIONS), seed: int = 0) -> str:
    """df_gamed.csv for `count` instructions."""
    draw = np.random.default_rng(seed)
    difficulties = draw.normal(size=count)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for model in ("letters_verbose", "letters_concise"):
            for index in range(count):
                row = [draw.uniform(), index, draw.normal(), difficulties[index], False]
                writer.writerow([model, *row])
    return str(path)


def write_known(folder: Path, num_models: int = 4) -> str:
    """A folder with one annotations.json per known model."""
    draw = np.random.default_rng(1)
    for model in range(num_models):
        rows = [
            {
                "instruction": item["instruction"],
                "output_1": item["output"],
                "generator_1": "letters",
                "output_2": "x" * int(draw.integers(1, 9)),
                "generator_2": f"model {model}",
                "preference": 1 + draw.uniform(),
            }
            for item in INSTRUCTIONS
        ]
        write_json(folder / f"model {model}" / "judge" / "annotations.json", rows)
    return str(folder)


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    """`evaluation.benchmarks.alpaca_eval` over the files of the small world, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "instructions": write_json(folder / "alpaca_eval.json", INSTRUCTIONS),
        "gamed": write_gamed(folder / "df_gamed.csv"),
        "max_new_tokens": 5,
        "max_prompt_tokens": 60,
    }
    return values | changes
