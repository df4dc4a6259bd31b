"""What a run took and cost, beside what was predicted before it started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.config.run import RoleName, RunConfig
from engine.loop.spending import PAID
from engine.metrics.progress import duration
from engine.metrics.timeline import Timeline
from engine.report.figures import MISSING
from engine.store.manifest import Record
from engine.store.reader import RunReader


@dataclass(frozen=True)
class Spent:
    """One line: something that takes time or money."""

    name: str
    predicted: float | None
    actual: float | None
    """None: not there yet."""
    show: Callable[[float], str] = duration

    def texts(self) -> list[str]:
        """Name, predicted, actual, and how far the prediction was from it."""
        values = [MISSING if value is None else self.show(value) for value in (self.predicted, self.actual)]
        known = self.predicted is not None and self.actual
        return [self.name, *values, f"{self.predicted / self.actual - 1:+.0%}" if known else MISSING]  # type: ignore[operator]


def spent(store: RunReader, config: RunConfig, timeline: Timeline) -> list[Spent]:
    """The run as a whole, its parts, the busy time of its stages, and its money; empty if nothing was timed."""
    if not timeline.iterations:
        return []
    prediction = store.recorded("prediction") or {}
    whole = timeline.seconds if store.recorded("finished") else None
    lines = [Spent("whole run", prediction.get("seconds"), whole), *_parts(prediction, timeline)]
    predicted = prediction.get("stages", {})
    within = Timeline(tuple(work for work in timeline.work if work.iteration is not None)).busy()
    lines += [Spent(f"{stage}, busy", predicted.get(stage), seconds) for stage, seconds in within.items()]
    if price := config.cluster.cost_per_hour:
        actual = None if whole is None else price * whole / 3600.0
        lines.append(Spent("cluster, at cluster.cost_per_hour", prediction.get("cost"), actual, money))
    usd, judges = prediction.get("judges", {}), paid(store, config)
    lines += [
        Spent(f"remote judge ({role}), USD", usd.get(role), judges.get(role, 0.0), money)
        for role in config.priced_judges
    ]
    return lines


def in_words(lines: list[Spent]) -> str | None:
    """The first line and the money in one sentence; None without a prediction."""
    shown = [line for line in lines[:1] + [line for line in lines if line.show is money] if line.actual is not None]
    if not shown or shown[0].predicted is None:
        return None
    parts = [f"{name}: predicted {a}, was {b} ({c})" for name, a, b, c in (line.texts() for line in shown)]
    return "; ".join(parts)


def money(value: float) -> str:
    return f"{value:,.2f}"


def paid(store: RunReader, config: RunConfig) -> dict[RoleName, float]:
    """{role: US dollars that its remote judge was paid for what is committed}."""
    costs: dict[RoleName, float] = {}
    for stage, counts in _counts(store):
        role = _role(stage, config)
        if PAID[1] in counts and role in config.priced_judges:
            usd = config.priced_judges[role].usd(counts[PAID[1]], counts[PAID[2]]) or 0.0
            costs[role] = costs.get(role, 0.0) + usd
    return costs


def _counts(store: RunReader) -> Iterator[tuple[str, dict[str, int]]]:
    for stage in dict.fromkeys([*store.stages("iteration"), *store.stages("version")]):
        for number in store.owners(stage):
            yield stage, store.counts(number, stage)


def _role(stage: str, config: RunConfig) -> RoleName:
    """Whose judge a stage asks."""
    if stage in ("scores", "null_model"):
        return config.scoring_role
    return config.evaluating_role if stage in ("agreement", "heldout_win_rates") else config.annotating_role


def _parts(prediction: Record, timeline: Timeline) -> list[Spent]:
    """The start and the iterations."""
    first = min(start for _, start, _ in timeline.iterations)
    since = max((start for start in timeline.processes if start <= first), default=first)
    lines = [Spent("start", prediction.get("startup"), first - since)]
    expected = dict(enumerate(prediction.get("iterations", []), start=1))
    return lines + [
        Spent(f"iteration {number}", expected.get(number), end - start) for number, start, end in timeline.iterations
    ]
