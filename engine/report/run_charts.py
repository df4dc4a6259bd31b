"""The charts of one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from engine.metrics.json_lines import Record
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary, percent
from engine.report.samples import Spread
from engine.report.svg import Chart, Point, Series, curves, histogram

MAX_POINTS = 300
"""Per curve; a longer curve shows means of equal stretches."""
PERCENT = "{:.0%}".format

Steps = list[tuple[int, Record]]
Value = Callable[[IterationSummary], float | WinRate | None]


def iteration_charts(iterations: Sequence[IterationSummary]) -> list[Chart]:
    """What became of the policy, over iterations."""
    wanted = (
        ("Win rate", "On held-out prompts with 95 % intervals; dashed: as good as the opponent.",
         {"against the start": lambda i: i.win_rate_start, "against the one before": lambda i: i.win_rate_previous},
         percent, PERCENT, 0.5),
        ("Length", "Tokens per held-out answer.", {"length": lambda i: i.mean_length}, "{:.1f}".format, None, 0.0),
        ("KL divergence", "From the start, estimated on held-out answers, in nats per answer.",
         {"KL": lambda i: i.kl}, "{:.2f}".format, None, 0.0),
        ("Entropy", "Of the policy on held-out answers, in nats per token.", {"entropy": lambda i: i.entropy},
         "{:.2f}".format, None, 0.0),
        ("Agreement", "Pairs of answers on which scorer and evaluator prefer the same one; dashed: chance.",
         {"agreement": lambda i: i.agreement}, percent, PERCENT, 0.5),
    )  # fmt: skip
    found: list[Chart] = []
    for title, caption, values, show, tick, reference in wanted:
        series = [one for name, value in values.items() if (one := _over_iterations(name, iterations, value))]
        if series:
            dashed = reference or None
            found.append(curves(title, caption, series, "iteration", show, tick, dashed, reference == 0.0, whole=True))
    return found


def _over_iterations(name: str, iterations: Sequence[IterationSummary], value: Value) -> Series | None:
    points = []
    for iteration in iterations:
        found = value(iteration)
        if isinstance(found, WinRate):
            points.append(Point(iteration.iteration, found.value, found.low, found.high))
        elif found is not None:
            points.append(Point(iteration.iteration, found))
    return Series(name, tuple(points)) if points else None


def step_charts(records: Sequence[Record]) -> list[Chart]:
    """What the learner did, over optimizer steps counted through all iterations."""
    iterations = global_steps(records)
    names = {name for steps in iterations for _, record in steps for name in record if record[name] is not None}
    wanted = (
        ("Loss", "Of the algorithm, on its training rows.", {"loss": "training", "eval/loss": "held-out"}),
        ("Reward margin", "Implicit reward of the chosen answer minus that of the rejected one.",
         {"rewards/margins": "training", "eval/rewards/margins": "held-out"}),
        ("Preference accuracy", "Rows whose chosen answer has the higher implicit reward.",
         {"rewards/accuracies": "training", "eval/rewards/accuracies": "held-out"}),
        ("Implicit rewards", "Log-ratios to the reference, scaled.",
         {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
        ("Gradient norm", "Before clipping.", {"grad_norm": "gradient"}),
        ("Learning rate", "Of each step.", {"learning_rate": "learning rate"}),
    )  # fmt: skip
    boundaries = [steps[0][0] - 0.5 for steps in iterations[1:]]
    found = []
    for title, caption, metrics in wanted:
        known = [(metric, label) for metric, label in metrics.items() if metric in names]
        series = [Series(label, _thinned(iterations, metric, MAX_POINTS)) for metric, label in known]
        if series:
            text = f"{caption} Dotted: a new iteration." if boundaries else caption
            heading = f"{title}, held-out" if [one.name for one in series] == ["held-out"] else title
            found.append(curves(heading, text, series, "optimizer step", boundaries=boundaries))
    return found


def global_steps(records: Sequence[Record]) -> list[Steps]:
    """Per iteration (step, record), with the steps counted through all iterations."""
    by_iteration: dict[int, dict[int, Record]] = defaultdict(dict)
    for record in records:
        by_iteration[record["iteration"]][record["step"]] = record
    result, before = [], 0
    for _, steps in sorted(by_iteration.items()):
        result.append([(before + step, record) for step, record in sorted(steps.items())])
        before += max(steps)
    return result


def _thinned(iterations: Sequence[Steps], name: str, most: int) -> tuple[Point, ...]:
    """At most about `most` points: means of equal stretches, which do not reach across iterations."""
    kept: list[Point] = []
    for steps in iterations:
        points = [(step, record[name]) for step, record in steps if record.get(name) is not None]
        size = max(1, -(-len(points) * len(iterations) // most))
        for n in range(0, len(points), size):
            stretch = points[n : n + size]
            kept.append(Point(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)))
    return tuple(kept)


def spread_charts(spreads: Sequence[Spread]) -> list[Chart]:
    """How win probabilities and win rates are spread: in the first and the last iteration."""
    if not spreads:
        return []
    ends = list(dict.fromkeys((spreads[0], spreads[-1])))
    charts = []
    if any(sum(one.pairs) for one in ends):
        charts.append(
            histogram(
                "Win probabilities",
                "P(one answer beats another) by the scorer, all pairs. Mass at the ends: it is sure; in the middle: "
                "it is not.",
                [(f"iteration {one.iteration}", one.pairs) for one in ends],
                "probability",
            )
        )
    last = ends[-1]
    if any(last.chosen):
        charts.append(
            histogram(
                "Estimated win rates of what was trained on",
                f"In iteration {last.iteration}: P(the answer beats the policy).",
                [("chosen", last.chosen), ("rejected", last.rejected)],
                "win rate",
            )
        )
    return charts
