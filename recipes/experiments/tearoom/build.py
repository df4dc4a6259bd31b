"""Write the tearoom to a folder: prompts, the policy that a run starts from, and a trained PairRM.

    python -m recipes.experiments.tearoom.build OUTPUT

Written to OUTPUT:

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

import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.seeds import derive_seed
from recipes.experiments.tearoom import world as tearoom
from recipes.experiments.tearoom.models import Figures, make_pairrm, make_policy
from recipes.prepare.command_line import complete, new_parser, run, settings_from, write_json, write_jsonl

DEMONSTRATIONS = "careful.jsonl"
BENCHMARK = "alpaca_eval.json"
VERSION = 1
"""To be raised when the same settings would make another world than before."""


@dataclass(frozen=True)
class Settings:
    """The options of the command line; the sets of prompts are disjoint."""

    seed: int = 0
    """Another seed: another world."""
    demonstrations: int = 3000
    """Prompts with a flawed answer, on which the policy is trained."""
    sft_epochs: float = 5.0
    """Passes over the demonstrations."""
    preferences: int = 3000
    """Prompts with pairs of answers, on which PairRM is trained."""
    judge_heldout: int = 400
    """Prompts on which PairRM is measured."""
    pairrm_steps: int = 400
    """Steps of PairRM's training."""
    prompts: int = 2400
    """Prompts for self-play."""
    heldout: int = 300
    """Prompts for evaluation."""
    version: int = field(default=VERSION, init=False)

    def split(self) -> tearoom.Split:
        return tearoom.split(
            self.seed,
            demonstrations=self.demonstrations,
            preferences=self.preferences,
            judge_heldout=self.judge_heldout,
            prompts=self.prompts,
            heldout=self.heldout,
        )


def build(folder: Path, settings: Settings) -> Figures:
    """Make the world in `folder`, or keep the complete one there, and return the figures of world.json.

    Raises DataError where `folder` holds a world of other settings.
    """
    figures = build_world(folder, "tearoom", settings, _train)
    if not (folder / DEMONSTRATIONS).exists():
        _write_demonstrations(folder / DEMONSTRATIONS, settings)
    if not (folder / BENCHMARK).exists():
        _write_benchmark(folder / BENCHMARK, settings)
    return figures


def build_world(folder: Path, name: str, settings: Any, train: Callable[..., Figures]) -> Figures:
    """Write the prompts, call `train(folder, split, settings)` for the figures, then write world.json.

    A complete world is kept. settings: a dataclass with `split()`.
    """
    marker, origin = folder / "world.json", {"world": name, "settings": asdict(settings)}
    if written := complete(marker, origin):
        return written["figures"]
    started = time.monotonic()
    split = settings.split()
    for part, orders in (("prompts", split.prompts), ("heldout", split.heldout)):
        write_jsonl(folder / f"{part}.jsonl", ({"prompt": order.text} for order in orders))
    figures = train(folder, split, settings)
    figures = {**figures, "seconds": round(time.monotonic() - started, 1)}
    write_json(marker, {**origin, "figures": figures})
    return figures


def _train(folder: Path, split: tearoom.Split, settings: Settings) -> Figures:
    """Train both models at once, each in a fresh process with one core."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        folders = folder / "pairrm", folder / "pairrm_inverted"
        pairrm = processes.submit(make_pairrm, split, *folders, settings.seed, settings.pairrm_steps)
        policy = processes.submit(make_policy, split, folder / "policy", settings.seed, settings.sft_epochs)
        return {**policy.result(), **pairrm.result()}


def _write_demonstrations(file: Path, settings: Settings) -> None:
    """The prompts for self-play, each with an answer of the careful waiter."""
    draw = random.Random(derive_seed(settings.seed, "careful demonstrations"))
    rows = [
        {"prompt": order.text, "completion": tearoom.flawed_answer(order, tearoom.CAREFUL, draw)}
        for order in settings.split().prompts
    ]
    write_jsonl(file, rows)


def _write_benchmark(file: Path, settings: Settings) -> None:
    """The held-out prompts in AlpacaEval's form; the baseline is the careful waiter."""
    draw = random.Random(derive_seed(settings.seed, "careful baseline"))
    rows = [
        {
            "instruction": order.text,
            "output": tearoom.flawed_answer(order, tearoom.CAREFUL, draw),
            "generator": "careful waiter",
            "dataset": "tearoom",
        }
        for order in settings.split().heldout
    ]
    write_json(file, rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the figures and returns the exit code."""
    parser = new_parser("recipes.experiments.tearoom.build", __doc__)
    parser.add_argument("folder", type=Path, metavar="OUTPUT", help="folder that the world is written to")
    settings, options = settings_from(parser, Settings, arguments)
    return run(build, options.folder, settings)


if __name__ == "__main__":
    sys.exit(main())
