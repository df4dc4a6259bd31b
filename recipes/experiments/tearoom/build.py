"""Write the tearoom to a folder: prompts, the policy that a run starts from, and a trained PairRM.

    policy/            Llama with tokenizer and chat template, imitating the flawed waiter
    pairrm/            the scorer that a run learns from, in the layout of PairRM-hf
    pairrm_inverted/   the same with its last layer negated, for control runs
    prompts.jsonl      prompts for self-play
    careful.jsonl      the same with a careful waiter's answers, for SPIN
    heldout.jsonl      prompts for evaluation
    world.json         settings and figures; written last, so it marks a complete world

The same settings make the same world; a complete one is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import DataError, KumiteError
from engine.seeds import derive_seed
from recipes.experiments.tearoom import models as tearoom_models
from recipes.experiments.tearoom import world as tearoom

DEMONSTRATIONS = "careful.jsonl"
VERSION = 1
"""Raised when the same settings would make another world than before."""


@dataclass(frozen=True)
class Settings:
    """What a world is made from; sizes are numbers of prompts, all of them disjoint."""

    seed: int = 0
    demonstrations: int = 3000
    sft_epochs: float = 5.0
    preferences: int = 3000
    judge_heldout: int = 400
    pairrm_steps: int = 400
    prompts: int = 2400
    heldout: int = 300
    version: int = VERSION

    def split(self) -> tearoom.Split:
        return tearoom.split(
            self.seed,
            demonstrations=self.demonstrations,
            preferences=self.preferences,
            judge_heldout=self.judge_heldout,
            prompts=self.prompts,
            heldout=self.heldout,
        )


def build(folder: Path, settings: Settings) -> dict[str, Any]:
    """Make the world in `folder`, or keep the complete one there, and return the contents of world.json.

    Raises DataError where `folder` holds a world of other settings.
    """
    world = build_world(folder, "tearoom", settings, _train)
    if not (folder / DEMONSTRATIONS).exists():
        _write_demonstrations(folder / DEMONSTRATIONS, settings)
    return world


def build_world(folder: Path, name: str, settings: Any, train: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """Prompts, then `train(folder, split, settings)` -> figures, then world.json in one go; a complete world is kept.

    settings: a dataclass with `split()`.
    """
    marker = folder / "world.json"
    if marker.exists():
        return _existing(marker, settings)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    split = settings.split()
    _write_prompts(folder / "prompts.jsonl", split.prompts)
    _write_prompts(folder / "heldout.jsonl", split.heldout)
    figures = train(folder, split, settings)
    figures = {**figures, "seconds": round(time.monotonic() - started, 1)}
    world = {"world": name, "settings": asdict(settings), "figures": figures}
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
    partial.replace(marker)
    return world


def _train(folder: Path, split: tearoom.Split, settings: Settings) -> dict[str, float]:
    """Train both models at once, each in a fresh process with one core."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        pairrm = processes.submit(
            tearoom_models.make_pairrm,
            split,
            folder / "pairrm",
            folder / "pairrm_inverted",
            settings.seed,
            settings.pairrm_steps,
        )
        policy = processes.submit(
            tearoom_models.make_policy, split, folder / "policy", settings.seed, settings.sft_epochs
        )
        return {**policy.result(), **pairrm.result()}


def _existing(marker: Path, settings: Any) -> dict[str, Any]:
    world = json.loads(marker.read_text(encoding="utf-8"))
    if world.get("settings") != asdict(settings):
        raise DataError(
            f"{marker} is a world with the settings {world.get('settings')}, not {asdict(settings)}; "
            "choose another folder or delete this one"
        )
    return world


def _write_demonstrations(file: Path, settings: Settings) -> None:
    """The prompts again, each with an answer of the careful waiter."""
    draw = random.Random(derive_seed(settings.seed, "careful demonstrations"))
    rows = [
        {"prompt": order.text, "completion": tearoom.flawed_answer(order, tearoom.CAREFUL, draw)}
        for order in settings.split().prompts
    ]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


def _write_prompts(file: Path, orders: list[tearoom.Order]) -> None:
    """One order per line, as a data set of prompts."""
    lines = (json.dumps({"prompt": order.text}) + "\n" for order in orders)
    file.write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line: `python -m recipes.experiments.tearoom.build OUTPUT_FOLDER [--seed 0]`."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.experiments.tearoom.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER", help="where the world goes")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another world")
    options = parser.parse_args(arguments)
    try:
        world = build(options.folder, Settings(seed=options.seed))
    except KumiteError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(world["figures"], indent=2))


if __name__ == "__main__":
    main()
