"""A game that no single answer wins: SPPO's real learner against the closed form.

Three answers beat each other in a circle (game.py). The real learner (policy.py) plays with SPPO under full
support: all three answers, exact win rates, baseline log Z / eta. Equation 4.5 of SPPO (arXiv 2405.00675) then has
an exact solution, the multiplicative-weights update 4.1, and every policy of the learner must be equal to it.
Theorem 4.1 bounds the exploitability of the uniform average of the policies only; the last policy cycles.
Iterated DPO plays the same game, and so does its closed form: Bradley-Terry rewards name a winner where there is
none.

Two minutes of CPU time. cycle.json gets figures and claims, cycle.svg the drawing.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from engine.evaluation.ladder import Ladder, ladder
from recipes.experiments.cycle import game
from recipes.experiments.cycle.game import NASH, START, Matrix, Vector
from recipes.experiments.cycle.policy import Settings, dpo_rows, play, sppo_rows
from recipes.experiments.figures import COLOURS, GREY, label_axes, new_figure
from recipes.experiments.results import FOLDER, Result, measure_once, save_svg, table_with, yes_or_no
from recipes.prepare.command_line import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ETA = 1.0
BETA = 1.0
"""DPO's beta; 1 / eta in the same units."""
DPO_ITERATIONS = 40
GOAL = 0.02
"""The exploitability of the average must end below this."""
EVERY = 10
"""Every tenth policy is a version in the ladder."""
COMPARISONS = 4_000
"""Comparisons between two versions in the ladder."""
TOLERANCE = 1e-3
"""Largest difference in nats between an iteration of the learner and its closed form, for any answer."""


def cycle(console: Console) -> Result:
    console.rule("cycle")
    figures = measure_once(FOLDER / "cycle" / "cycle.json", measure)
    table = table_with("SPPO's learner in the cyclic game (docs/sppo_game.md)", "claim", "holds")
    for claim, holds in figures["claims"].items():
        table.add_row(claim, yes_or_no(holds))
    sppo, dpo, rungs = figures["sppo"], figures["dpo"], figures["ladder"]
    lines = (
        f"exploitability of the average: {sppo['average_exploitability']:.4f}, of the last policy "
        f"{sppo['last_exploitability']:.3f}; of iterated DPO {dpo['last_exploitability']:.3f}",
        f"every policy wins at least {rungs['lowest_win_rate_against_previous']:.4f} against the one before",
        f"the ladder of {len(rungs['versions'])} policies has {len(rungs['cycles'])} circles; no rating explains "
        f"{rungs['cyclic_share']:.0%} of its log-odds",
        f"largest difference of one iteration from its closed form: {sppo['largest_step_error_nats']:.1e} nats",
    )
    return Result((table,), lines, all(figures["claims"].values()), figures)


def measure(folder: Path, settings: Settings | None = None) -> dict[str, Any]:
    """Play with both algorithms, write cycle.json and cycle.svg to `folder`, and return the figures.

    Their `claims` say of each claim whether it holds. The learner runs in a process of its own, because it sets the
    environment of its process group.
    """
    from engine.algorithms.dpo import DPO
    from engine.algorithms.sppo import SPPO

    settings = settings or Settings()
    sppo = SPPO(eta=ETA, baseline="logpartition", train_on="all")
    dpo = DPO(data="dataset", beta=BETA)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as weights:
        played = {
            "sppo": play_apart(Path(weights) / "sppo", sppo, partial(sppo_rows, ETA), settings),
            "dpo": play_apart(Path(weights) / "dpo", dpo, dpo_rows, replace(settings, iterations=DPO_ITERATIONS)),
        }
    figures = {
        **figures_of(played["sppo"], played["dpo"]),
        "settings": {**asdict(settings), "eta": ETA, "beta": BETA, "dpo_iterations": DPO_ITERATIONS},
        "seconds": round(time.monotonic() - started, 1),
    }
    draw(played["sppo"], played["dpo"], folder / "cycle.svg")
    write_json(folder / "cycle.json", figures)  # last: it marks a complete measurement
    return figures


def play_apart(folder: Path, *arguments: Any) -> Matrix:
    """play(folder, ...) in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(play, folder, *arguments).result()


def step_errors(policies: Matrix, update: game.Update) -> Vector:
    """[T] largest |log pi_{t+1} - log closed form| in nats; the closed form starts from the learner's pi_t."""
    expected = np.array([game.reweighted(policy, update(policy)) for policy in policies[:-1]])
    return np.abs(np.log(policies[1:] / expected)).max(axis=1)


def figures_of(sppo: Matrix, dpo: Matrix) -> dict[str, Any]:
    """Figures of the policies that the learner played, [T + 1, 3] each, and whether the claims hold.

    The average is taken over the policies that win rates were computed against: all but the last one.
    """
    errors = {
        "sppo": step_errors(sppo, game.sppo_update(ETA)),
        "dpo": step_errors(dpo, game.dpo_update(BETA)),
    }
    average = game.average_exploitability(sppo[:-1])
    closed = game.trajectory(START, game.sppo_update(ETA), len(sppo) - 1)
    refitted = game.trajectory(START, game.refitted_update(BETA), len(dpo) - 1)
    last = [game.exploitability(policy) for policy in sppo]
    half = last[len(last) // 2 :]
    against_previous = [float(new @ game.WINS @ old) for old, new in pairwise(sppo)]
    rungs = ladder_of(sppo)
    return {
        "ladder": {
            "lowest_win_rate_against_previous": min(against_previous),
            "versions": list(rungs.versions),
            "elo": rungs.elo.tolist(),
            "elo_low": rungs.elo_low.tolist(),
            "elo_high": rungs.elo_high.tolist(),
            "cycles": [list(cycle) for cycle in rungs.cycles],
            "cyclic_share": rungs.cyclic_share,
        },
        "sppo": {
            "average": sppo[:-1].mean(axis=0).tolist(),
            "average_exploitability": float(average[-1]),
            "average_exploitability_closed_form": float(game.average_exploitability(closed[:-1])[-1]),
            "average_under_goal_from_iteration": average_from(average),
            "last_exploitability": last[-1],
            "last_exploitability_second_half": [min(half), max(half)],
            "revolutions": game.revolutions(sppo),
            "largest_step_error_nats": float(errors["sppo"].max()),
        },
        "dpo": {
            "last": dpo[-1].tolist(),
            "last_exploitability": game.exploitability(dpo[-1]),
            "average_exploitability": float(game.average_exploitability(dpo[:-1])[-1]),
            "largest_step_error_nats": float(errors["dpo"].max()),
            "refitted_last": refitted[-1].tolist(),
            "refitted_average_exploitability": float(game.average_exploitability(refitted[:-1])[-1]),
        },
        "nash": NASH.tolist(),
        "claims": {
            "every SPPO iterate is the closed form's": bool(errors["sppo"].max() < TOLERANCE),
            "the average of SPPO's iterates is nearly unexploitable": bool(average[-1] < GOAL),
            "the last SPPO iterate cycles": game.revolutions(sppo) > 2 and max(half) > 5 * GOAL,
            "every SPPO iterate wins against the one before": min(against_previous) > 0.5,
            "the ladder names circles among SPPO's iterates": len(rungs.cycles) > 0 and rungs.cyclic_share > 0.5,
            "every DPO iterate is the closed form's": bool(errors["dpo"].max() < TOLERANCE),
            "iterated DPO collapses to one answer": bool(dpo[-1].max() > 0.99),
        },
    }


def ladder_of(policies: Matrix) -> Ladder:
    """The ladder of every tenth policy, from answers that all of them draw with the same random numbers."""
    noise = np.random.default_rng(0).random(COMPARISONS)
    versions = range(0, len(policies), EVERY)
    answers = {v: (noise[:, None] > np.cumsum(policies[v])[None, :-1]).sum(axis=1) for v in versions}
    rates = {
        (new, old): {str(i): rate for i, rate in enumerate(game.WINS[answers[new], answers[old]].tolist())}
        for new in versions
        for old in versions
        if new > old
    }
    result = ladder(rates)
    assert result is not None  # every pair has a win rate
    return result


def average_from(average: Vector) -> int | None:
    """The number of policies from which on the average stays below GOAL; None if it does not."""
    above = np.flatnonzero(average >= GOAL)
    first = int(above[-1]) + 2 if len(above) else 1
    return first if first <= len(average) else None


def draw(sppo: Matrix, dpo: Matrix, file: Path) -> None:
    """Exploitability over iterations, and the paths of the policies in the simplex."""
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_exploitability(left, sppo, dpo)
    _draw_simplex(right, sppo, dpo)
    save_svg(figure, file)


def _draw_exploitability(axes: Axes, sppo: Matrix, dpo: Matrix) -> None:
    closed = game.trajectory(START, game.sppo_update(ETA), len(sppo) - 1)
    t = np.arange(1, len(sppo))
    axes.semilogy(t, [game.exploitability(p) for p in sppo[:-1]], color=COLOURS[5], linewidth=1, label="SPPO, last")
    axes.semilogy(t, game.average_exploitability(sppo[:-1]), color=COLOURS[0], label="SPPO, average")
    closed_average = game.average_exploitability(closed[:-1])
    axes.semilogy(t, closed_average, color=COLOURS[6], linestyle=":", label="SPPO, average, closed form")
    axes.semilogy(t[: len(dpo)], [game.exploitability(p) for p in dpo], color=COLOURS[1], label="DPO, last")
    axes.axhline(GOAL, color=GREY, linewidth=0.8, linestyle="--")
    label_axes(axes, "exploitability by the real learner", "policies", "best answer's win rate - 1/2")
    axes.legend(fontsize=7, frameon=False, loc="lower left")


def _draw_simplex(axes: Axes, sppo: Matrix, dpo: Matrix) -> None:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    axes.plot(*corners[[0, 1, 2, 0]].T, color=GREY, linewidth=0.8)
    averages = np.cumsum(sppo, axis=0) / np.arange(1, len(sppo) + 1)[:, None]
    axes.plot(*(sppo @ corners).T, color=COLOURS[5], linewidth=0.7, label="SPPO")
    axes.plot(*(averages @ corners).T, color=COLOURS[0], label="SPPO, average")
    axes.plot(*(dpo @ corners).T, color=COLOURS[1], marker=".", markersize=3, label="DPO")
    axes.plot(*(NASH @ corners), color=COLOURS[6], marker="*", linestyle="", markersize=9, label="Nash")
    for number, (x, y) in enumerate(corners, start=1):
        axes.annotate(
            f"answer {number}", (x, y), (0, 4 if y else -10), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_aspect("equal")
    label_axes(axes, "paths of the policies")
    axes.set_axis_off()
    axes.legend(fontsize=7, frameon=False, loc="upper right")
