"""Does pessimism help where the data are thin? SPAC, DPO and SFT on offline preferences with known values.

Two worlds (world.py), ten seeds each. Every method (methods.py) gets the same pairs, the same gradient steps and
the same learning rates to choose from, and each seed's rate is chosen by the likelihood of held-out preferences,
never by true values. Reported per half of the contexts, with 95 % t-intervals over seeds: the true value of the
learned policy, and the over-estimation by its critic. lambda = 1 and eta = 1 were set before anything was measured;
a map shows the results of other choices. What the map suggested is measured once more on ten other seeds.

About five minutes of CPU time. coverage.json gets the figures, coverage.svg the drawing. Nothing is claimed
beforehand: docs/spac.md reports the figures as they came out, and what they mean.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.algorithms.dpo import DPO
from engine.algorithms.spac import SPAC, Surrogate
from engine.evaluation.statistics import spread
from recipes.experiments.coverage.methods import ROUNDS, STEPS, Form, Learnt, Method, Rows, heldout_likelihood, train
from recipes.experiments.coverage.world import (
    HALVES,
    Covered,
    World,
    make_world,
    most_wins,
    most_wins_overall,
    over_estimation,
    true_value,
)
from recipes.experiments.figures import COLOURS, GREY, label_axes, new_figure
from recipes.experiments.results import FOLDER, Result, measure_once, save_svg, table_with
from recipes.prepare.command_line import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEDS = 10
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
ETA = 1.0
"""SPAC's step per round. DPO, which takes one step, gets ROUNDS * ETA: then all policies are equally sharp."""
LAMBDA = 1.0
MAP_LAMBDAS = (0.25, 1.0, 4.0, 16.0, 64.0, None)
"""None: no pessimism at all."""
SURROGATES: tuple[Surrogate, ...] = get_args(Surrogate)
MAPS: tuple[tuple[str, Surrogate, Form, tuple[float, ...]], ...] = (
    ("softplus", "softplus", "policy", (0.3, 1.0, 3.0)),
    ("spin", "spin", "policy", (ETA,)),
    ("explicit critic", "raw", "critic", (ETA,)),
)
"""Name, surrogate, form and etas of the maps over lambda."""

CONFIRMED_LAMBDA = 16.0
"""Chosen from the map of the first ten seeds, then measured on ten others."""
CONFIRMED_EPS = (1e-8, 1e-3)
"""On the first ten seeds Adam's eps mattered more than the loss, so a small and a large one are measured again."""
FRESH_SEEDS = range(50, 60)

Figures = dict[str, Any]


def coverage(console: Console) -> Result:
    console.rule("coverage")
    figures = measure_once(FOLDER / "coverage" / "coverage.json", measure)
    tables = tuple(_table(covered, world) for covered, world in figures["worlds"].items())
    return Result(tables, ("docs/spac.md says what follows from these tables and what does not",), True, figures)


def _table(covered: str, world: Figures) -> Table:
    title = f"true value of the last policy, 95 % t-intervals over seeds; common actions: {covered}"
    columns = ("high coverage", "low coverage", "over-estimation, high", "over-estimation, low")
    table = table_with(title, "method", *columns)
    for name, method in world["methods"].items():
        both = [method.get(what, {}) for what in ("last", "over_estimation")]
        table.add_row(name, *(_cell(part.get(half)) for part in both for half in HALVES))
    return table


def _cell(figures: dict[str, float] | None) -> str:
    return f"{figures['mean']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]" if figures else "–"


def methods() -> list[Method]:
    """The methods that are compared."""
    penalised = {surrogate: SPAC(beta=1 / ETA, lam=LAMBDA, surrogate=surrogate) for surrogate in SURROGATES}
    return [
        Method("SFT", None),
        Method("DPO", DPO(data="dataset", beta=1 / (ROUNDS * ETA)), reference="start"),
        Method("iterated DPO", DPO(data="dataset", beta=1 / ETA)),
        Method("SPAC softplus", penalised["softplus"]),
        Method("SPAC spin", penalised["spin"]),
        Method("SPAC raw", penalised["raw"]),
        Method("SPAC explicit critic", penalised["raw"], form="critic"),
    ]


def chosen_by_heldout(worlds: list[World], tried: list[Learnt]) -> list[int]:
    """[worlds] index of the run that explains a world's held-out preferences best; the smallest rate among equals."""
    scores = [[heldout_likelihood(world, run.last[s]) for run in tried] for s, world in enumerate(worlds)]
    return [int(np.argmax(row)) for row in scores]


def search(method: Method, worlds: list[World], rows: Rows) -> tuple[list[Learnt], list[int]]:
    """All runs, one per learning rate, and for each world the index of the one that counts."""
    tried = [train(method, rows, lr) for lr in LEARNING_RATES]
    return tried, chosen_by_heldout(worlds, tried)


def assess(method: Method, worlds: list[World], rows: Rows) -> Figures:
    """Per half and seed: true values of the last policy and of the average, and the critic's over-estimation."""
    tried, picks = search(method, worlds, rows)
    figures: dict[str, list[dict[str, float]]] = {"last": [], "average": [], "over_estimation": []}
    for s, (world, pick) in enumerate(zip(worlds, picks, strict=True)):
        run = tried[pick]
        figures["last"].append(world.by_half(true_value(world, run.last[s])))
        figures["average"].append(world.by_half(true_value(world, run.average[s])))
        if run.critic is not None:
            figures["over_estimation"].append(world.by_half(over_estimation(world, run.last[s], run.critic[s])))
    return {
        **{name: _halves(per_seed) for name, per_seed in figures.items() if per_seed},
        "learning_rates": [LEARNING_RATES[pick] for pick in picks],
        "spent": tried[0].spent,
    }


def _halves(per_seed: list[dict[str, float]]) -> Figures:
    return {half: {"seeds": [row[half] for row in per_seed], **interval(per_seed, half)} for half in per_seed[0]}


def interval(per_seed: list[dict[str, float]], half: str) -> dict[str, float]:
    return asdict(spread([row[half] for row in per_seed]))


def confirmation(covered: Covered) -> Figures:
    """Per eps of Adam: DPO, and the forms of SPAC at CONFIRMED_LAMBDA, on other seeds."""
    worlds = [make_world(seed, covered) for seed in FRESH_SEEDS]
    rows = Rows(worlds)
    penalised = {s: SPAC(beta=1 / ETA, lam=CONFIRMED_LAMBDA, surrogate=s) for s in SURROGATES}
    compared = [method for method in methods() if method.name in ("DPO", "iterated DPO")]
    compared += [Method(f"SPAC {s}", penalised[s]) for s in ("softplus", "spin")]
    compared.append(Method("SPAC explicit critic", penalised["raw"], form="critic"))
    result: Figures = {}
    for eps in CONFIRMED_EPS:
        figures = {method.name: assess(replace(method, eps=eps), worlds, rows) for method in compared}
        result[f"{eps:g}"] = {"methods": figures, **all_differences(figures)}
    return result


def baselines(worlds: list[World]) -> Figures:
    """True values of policies that no gradient trains: the start, the data's behaviour, counts, and the optimum."""
    policies: dict[str, Any] = {
        "uniform (the start)": lambda world: np.full_like(world.values, 1 / world.values.shape[1]),
        "one action everywhere": most_wins_overall,
        "behaviour of the data": lambda world: world.behaviour,
        "most wins per context": most_wins,
        "optimum": lambda world: np.eye(world.values.shape[1])[world.values.argmax(axis=1)],
    }
    return {
        name: _halves([world.by_half(true_value(world, policy(world))) for world in worlds])
        for name, policy in policies.items()
    }


def all_differences(methods: Figures) -> Figures:
    return {
        "minus_dpo": differences(methods, "DPO"),
        "minus_iterated_dpo": differences(methods, "iterated DPO"),
    }


def differences(methods: Figures, other: str) -> Figures:
    """Per method and half, its last policy's value minus that of `other`, and on how many seeds it is not below."""
    result: Figures = {}
    for name, figures in methods.items():
        for half in HALVES:
            gaps = np.subtract(figures["last"][half]["seeds"], methods[other]["last"][half]["seeds"])
            result.setdefault(name, {})[half] = {**asdict(spread(gaps)), "seeds_not_worse": int((gaps >= 0).sum())}
    return result


def heat_map(worlds: list[World], rows: Rows) -> Figures:
    """Per form and half, mean true values of the last policy [eta][lambda]; several etas for softplus only."""
    maps: Figures = {}
    for name, surrogate, form, etas in MAPS:
        lines = []
        for eta in etas:
            weights = [0.0 if lam is None else 1 / lam for lam in MAP_LAMBDAS]
            algorithms = [SPAC(beta=1 / eta, critic_weight=weight, surrogate=surrogate) for weight in weights]
            lines.append([_mean_values(Method(name, each, form=form), worlds, rows) for each in algorithms])
        maps[name] = {half: [[cell[half] for cell in line] for line in lines] for half in HALVES}
    return maps


def _mean_values(method: Method, worlds: list[World], rows: Rows) -> dict[str, float]:
    """Per half, the mean over worlds of the last policy's true value."""
    tried, picks = search(method, worlds, rows)
    values = [
        world.by_half(true_value(world, tried[p].last[s]))
        for s, (world, p) in enumerate(zip(worlds, picks, strict=True))
    ]
    return {half: float(np.mean([row[half] for row in values])) for half in HALVES}


def measure(folder: Path) -> Figures:
    """Measure both worlds, write coverage.json and coverage.svg to `folder`, and return the figures."""
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    figures: Figures = {"seeds": SEEDS, "eta": ETA, "lambda": LAMBDA, "rounds": ROUNDS, "steps_per_round": STEPS}
    figures |= {"learning_rates": LEARNING_RATES, "map_lambdas": MAP_LAMBDAS, "worlds": {}}
    figures |= {"confirmed_lambda": CONFIRMED_LAMBDA, "fresh_seeds": list(FRESH_SEEDS)}
    for covered in get_args(Covered):
        worlds = [make_world(seed, covered) for seed in range(SEEDS)]
        rows = Rows(worlds)
        compared = {method.name: assess(method, worlds, rows) for method in methods()}
        figures["worlds"][covered] = {
            "methods": compared,
            "baselines": baselines(worlds),
            **all_differences(compared),
            "map": heat_map(worlds, rows),
            "confirmation": confirmation(covered),
        }
    figures["seconds"] = round(time.monotonic() - started, 1)
    draw(figures, folder / "coverage.svg")
    write_json(folder / "coverage.json", figures)  # last: it marks a complete measurement
    return figures


def draw(figures: Figures, file: Path) -> None:
    """One row per world: true values, over-estimation, and the map of lambda and eta on the badly covered half."""
    figure = new_figure(10.0, 6.4)
    for covered, axes in zip(figures["worlds"], figure.subplots(2, 3, width_ratios=(4, 3, 3)), strict=True):
        world = figures["worlds"][covered]
        title = f"common actions: {'the best among them' if covered == 'best' else 'any'}"
        _draw_intervals(axes[0], world, "last", f"true value ({title})")
        _draw_intervals(axes[1], world, "over_estimation", "over-estimation by the critic")
        _draw_map(axes[2], world["map"])
    save_svg(figure, file)


def _draw_intervals(axes: Axes, world: Figures, what: str, title: str) -> None:
    shown = {name: figures[what] for name, figures in world["methods"].items() if what in figures}
    if what == "last":
        shown = {**shown, **{name: world["baselines"][name] for name in ("most wins per context", "optimum")}}
    for half, colour, shift in (("high", COLOURS[0], -0.15), ("low", COLOURS[1], 0.15)):
        cells = [figures[half] for figures in shown.values()]
        means = [cell["mean"] for cell in cells]
        errors = [cell["high"] - cell["mean"] for cell in cells]
        places = np.arange(len(cells)) + shift
        axes.errorbar(
            means, places, xerr=errors, fmt="o", markersize=3, capsize=2, color=colour, label=f"{half} coverage"
        )
    axes.axvline(0.0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    label_axes(axes, title)
    if what == "last":
        axes.legend(fontsize=7, frameon=False, loc="lower left")


def _draw_map(axes: Axes, maps: Figures) -> None:
    lines = [
        (f"{name}, eta {eta:g}", line)
        for name, _, _, etas in MAPS
        for eta, line in zip(etas, maps[name]["low"], strict=True)
    ]
    means = [line for _, line in lines]
    axes.imshow(means, cmap="Blues", aspect="auto", vmin=0.0, vmax=1.6)
    for y, line in enumerate(means):
        for x, mean in enumerate(line):
            axes.text(
                x, y, f"{mean:.2f}", ha="center", va="center", fontsize=7, color="white" if mean > 0.9 else "black"
            )
    axes.set_xticks(range(len(MAP_LAMBDAS)), ["∞" if lam is None else f"{lam:g}" for lam in MAP_LAMBDAS])
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    label_axes(axes, "SPAC, low coverage: true value", "lambda")
