"""Time and money of a run before it starts, from what an earlier run measured.

The busy time of a stage is its rate times its work, divided among its replicas; in the first iteration the time is
added that the earlier run needed there beyond its rate, to warm up. An iteration takes as long as its stages
(workload.elapsed) and what the earlier run needed beside them: filling the pipeline, and the driver's own work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.plan import estimates
from cluster.plan.rates import Measured, Rates
from cluster.plan.workload import Load, benchmark_names, benchmark_of, elapsed, replicas, workload
from engine.config.run import RunConfig
from engine.errors import PlanError
from engine.metrics.progress import duration


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds and money of a run."""

    source: str
    """Whose rates."""
    startup: float
    iterations: tuple[float, ...]
    stages: Mapping[str, float]
    """{stage: busy seconds in all iterations}."""
    low: float | None
    """Seconds if all is as fast as the fastest iteration that was measured after the first; None: fewer than two."""
    high: float | None
    """The same with the slowest."""
    cost: float | None
    """By cluster.cost_per_hour; None without it."""
    judges: Mapping[str, float]
    """{role: US dollars} of remote judges whose prices and tokens are known."""
    left_out: tuple[str, ...]
    """What the run has and the earlier one had not."""

    @property
    def seconds(self) -> float:
        return self.startup + sum(self.iterations)

    def record(self) -> dict[str, Any]:
        """For the manifest of the run."""
        return {**asdict(self), "seconds": self.seconds, "stages": dict(self.stages), "judges": dict(self.judges)}

    def lines(self) -> list[str]:
        """For the plan."""
        span = f", between {duration(self.low)} and {duration(self.high)}" if self.low and self.high else ""
        lines = [f"{duration(self.seconds)} in all{span}, by the rates of {self.source}"]
        iterations = ", ".join(map(duration, self.iterations[:8])) + (", …" if len(self.iterations) > 8 else "")
        lines.append(f"start {duration(self.startup)}, iterations {iterations}")
        for stage, seconds in sorted(self.stages.items(), key=lambda item: -item[1]):
            if seconds >= 0.5:
                share = "" if self.cost is None else f", {self.cost * seconds / sum(self.stages.values()):,.2f}"
                lines.append(f"  {stage}: busy {duration(seconds)}{share}")
        if self.cost is not None:
            lines.append(f"cost {self.cost:,.2f} at cluster.cost_per_hour, divided above by busy time")
        lines += [f"remote judge ({role}): {usd:,.2f} USD" for role, usd in self.judges.items()]
        if self.left_out:
            lines.append(f"left out, because it was not measured: {', '.join(self.left_out)}")
        return lines


def predict(config: RunConfig, rates: Rates) -> Prediction:
    """Predict `config` from an earlier run.

    Raises PlanError where the number of prompts is not known, or a judge's max_cost_usd would not do.
    """
    prompts = estimates.prompts_per_iteration(config)
    if prompts is None:
        raise PlanError("the time cannot be predicted: the number of prompts is not known; set prompts.expected")
    startup = rates.start.wall + sum(_busy_at_start(config, rates).values()) - sum(rates.start.busy.values())
    busy = [_busy(config, rates, t, prompts) for t in range(config.iterations)]
    walls = tuple(
        elapsed(stages, config) + _mean(m.wall - elapsed(m.busy, rates.config) for m in rates.of(t))
        for t, stages in enumerate(busy)
    )
    seconds, fast, slow = startup + sum(walls), *_range(rates)
    price = config.cluster.cost_per_hour
    prediction = Prediction(
        source=rates.source,
        startup=startup,
        iterations=walls,
        stages={stage: sum(b.get(stage, 0.0) for b in busy) for stage in dict.fromkeys(s for b in busy for s in b)},
        low=seconds * fast if fast else None,
        high=seconds * slow if slow else None,
        cost=None if price is None else price * seconds / 3600.0,
        judges=_judges(config, rates, prompts),
        left_out=tuple(_left_out(config, rates, prompts)),
    )
    _check_limits(config, prediction)
    return prediction


def _busy(config: RunConfig, rates: Rates, t: int, prompts: int) -> dict[str, float]:
    """{stage: busy seconds} of iteration `t`."""
    loads, found = workload(config, t, prompts), {}
    for stage in dict.fromkeys(s for m in rates.of(t) for s in m.busy):
        measured = _mean(m.busy.get(stage, 0.0) for m in rates.of(t))
        if stage in loads and (rate := rates.per_unit(stage)) is not None:
            expected = _mean(rate * m.loads[stage].amount if stage in m.loads else 0.0 for m in rates.of(t))
            seconds = rate * loads[stage].amount + measured - expected
            found[stage] = max(0.0, seconds) * _speed(config, rates, stage, loads)
        elif _is_fixed(stage, config):
            found[stage] = measured
    return found


def _busy_at_start(config: RunConfig, rates: Rates) -> dict[str, float]:
    """{stage: busy seconds} before the first iteration."""
    loads, found = workload(config, 0, 0), {}
    for stage, measured in rates.start.busy.items():
        rate, before = rates.per_unit(stage), rates.start.loads.get(stage)
        if stage in loads and before and rate is not None:
            seconds = measured + rate * (loads[stage].amount - before.amount)
            found[stage] = max(0.0, seconds) * _speed(config, rates, stage, loads)
        elif _is_fixed(stage, config):
            found[stage] = measured
    return found


def _is_fixed(stage: str, config: RunConfig) -> bool:
    """Whether the stage takes as long as it took: the driver's own work, and the benchmarks that the config has."""
    return stage in ("prepare", "save") or benchmark_of(stage, config) is not None


def _speed(config: RunConfig, rates: Rates, stage: str, loads: Mapping[str, Load]) -> float:
    """The earlier run's replicas by this one's."""
    before = next(m.loads[stage].role for m in (*rates.later, rates.first, rates.start) if stage in m.loads)
    return replicas(rates.config, before) / replicas(config, loads[stage].role)


def _left_out(config: RunConfig, rates: Rates, prompts: int) -> list[str]:
    """Stages and benchmarks of the run that the earlier one did not have."""
    measured = {stage for m in (rates.first, *rates.later) for stage in m.busy}
    last = workload(config, config.iterations - 1, prompts)
    benchmarks = [n for n in benchmark_names(config) if not any(stage.startswith(f"{n}_") for stage in measured)]
    judges = [
        f"the price of the {role}" for role in config.priced_judges if role not in _judges(config, rates, prompts)
    ]
    of_start = ["heldout_completions"] if "heldout_completions" in last else []
    of_start += [name for name in benchmark_names(config) if name not in benchmarks]
    starts = [  # what a run of a sweep adopted
        f"{name} of the start policy" for name in of_start if not any(s.startswith(name) for s in rates.start.busy)
    ]
    return [stage for stage in last if stage not in measured] + benchmarks + starts + judges


def _range(rates: Rates) -> tuple[float | None, float | None]:
    """The fastest and the slowest later iteration, in units of their mean."""
    walls = [m.wall for m in rates.later]
    return (min(walls) / _mean(walls), max(walls) / _mean(walls)) if len(walls) > 1 else (None, None)


def _judges(config: RunConfig, rates: Rates, prompts: int) -> dict[str, float]:
    """US dollars of each remote judge, by the tokens per unit of work that the earlier run measured."""
    servers, costs = config.priced_judges, dict[str, float]()
    start: list[tuple[Mapping[str, Load], tuple[Measured, ...]]] = [(workload(config, 0, 0), (rates.start,))]
    parts = start + [(workload(config, t, prompts), rates.of(t)) for t in range(config.iterations)]
    for loads, measured in parts:
        for stage in dict.fromkeys(stage for m in measured for stage in m.tokens):
            role = loads[stage].role if stage in loads else config.annotating_role
            is_there = stage in loads or benchmark_of(stage, config)
            if is_there and role in servers:
                tokens = [_tokens(m, stage, loads) for m in measured if stage in m.tokens]
                usd = servers[role].usd(*(sum(counts) / len(measured) for counts in zip(*tokens, strict=True)))
                costs[role] = costs.get(role, 0.0) + (usd or 0.0)
    return costs


def _tokens(measured: Measured, stage: str, loads: Mapping[str, Load]) -> tuple[float, float]:
    """Input and output tokens for the work that `loads` gives the stage; of a benchmark what it was paid for."""
    before = measured.loads[stage].amount if stage in measured.loads else 0.0
    factor = loads[stage].amount / before if before and stage in loads else 1.0
    return factor * measured.tokens[stage][0], factor * measured.tokens[stage][1]


def _check_limits(config: RunConfig, prediction: Prediction) -> None:
    problems = [
        f"{role}: the judge would cost {prediction.judges[role]:,.2f} USD, server.max_cost_usd = {limit:g} stops it; "
        f"raise it, or lower iterations, prompts.limit or sampling.num_samples"
        for role, server in config.priced_judges.items()
        if (limit := server.max_cost_usd) is not None and prediction.judges.get(role, 0.0) > limit
    ]
    if problems:
        raise PlanError("the plan does not fit:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _mean(values: Any) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
