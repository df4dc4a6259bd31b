"""The numbers of lm-evaluation-harness as results: the headline numbers of a table first, then all others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from engine.benchmarks.base import Result
from engine.benchmarks.harness.presets import AVERAGED, PRESETS, Entry
from engine.config.benchmarks import HarnessConfig

Evaluated = Mapping[str, Any]
"""What `evaluate` of the harness returns, with `entries`, `missing` and `notes` of engine.benchmarks.harness.tasks."""


def table(config: HarnessConfig, evaluated: Evaluated, num_cut: Mapping[str, int]) -> list[Result]:
    """The results of one version. num_cut: {task: contexts that were cut}.

    A line of a preset without data is a result without a value. A metric is named "task/metric", with the harness's
    filter behind a comma where there is one.
    """
    preset = PRESETS[config.preset] if config.preset else ()
    found = {result.metric: result for result in _all(evaluated, num_cut, config.limit)}
    headlines = [_headline(entry, found, evaluated) for entry in preset]
    average = [_average(headlines)] if config.preset in AVERAGED else []
    shown = {result.metric for result in headlines}
    return [*headlines, *average, *(result for metric, result in found.items() if metric not in shown)]


def _headline(entry: Entry, found: Mapping[str, Result], evaluated: Evaluated) -> Result:
    metric = f"{entry.name}/{entry.headline}"
    if entry.name in evaluated["missing"]:
        return Result(metric, math.nan, note=f"not measured: no data ({evaluated['missing'][entry.name]})")
    return found[metric]


def _average(headlines: list[Result]) -> Result:
    """The mean of the headline numbers; none where one is missing, because it could not be compared."""
    missing = [result.metric.partition("/")[0] for result in headlines if math.isnan(result.value)]
    if missing:
        measured = [result.value for result in headlines if not math.isnan(result.value)]
        rest = f"; the mean of the other {len(measured)} is {math.fsum(measured) / len(measured):.4f}"
        return Result(
            "average", math.nan, note=f"not computed: no data for {', '.join(missing)}" + rest * bool(measured)
        )
    return Result("average", math.fsum(result.value for result in headlines) / len(headlines), num=len(headlines))


def _all(evaluated: Evaluated, num_cut: Mapping[str, int], limit: int | None) -> Iterator[Result]:
    """Every metric of every task and group."""
    notes = {
        task: evaluated["notes"][entry]
        for entry, tasks in evaluated["entries"].items()
        if entry in evaluated["notes"]
        for task in [entry, *tasks]
    }
    members = {task: [task] for task in evaluated["n-samples"]}
    members |= {group: _leaves(group, evaluated["group_subtasks"]) for group in evaluated["group_subtasks"]}
    for task, metrics in evaluated["results"].items():
        num = sum(evaluated["n-samples"][name]["effective"] for name in members[task])
        cut = sum(num_cut.get(name, 0) for name in members[task])
        shots = evaluated["n-shot"].get(task)
        note = "; ".join(
            filter(
                None,
                [
                    f"{shots}-shot" if shots is not None else "",
                    f"the first {limit} documents of each task" if limit else "",
                    notes.get(task, ""),
                    f"{cut} contexts were cut on the left" if cut else "",
                ],
            )
        )
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                stderr = metrics.get(f"{metric}_stderr,{filtered}")
                name = f"{task}/{metric}" + (f",{filtered}" if filtered != "none" else "")
                yield _result(name, float(value), stderr, num, note)


def _result(name: str, value: float, stderr: Any, num: int, note: str) -> Result:
    if not isinstance(stderr, float) or math.isnan(stderr):
        return Result(name, value, num=num, note=note)
    return Result(name, value, stderr, num=num, note=note)


def _leaves(group: str, children: Mapping[str, list[str]]) -> list[str]:
    return [leaf for child in children.get(group, []) for leaf in (_leaves(child, children) or [child])]
