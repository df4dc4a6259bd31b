"""What an earlier run measured: the busy time of its stages, its start, and what its remote judges read and wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.plan import estimates
from cluster.plan.workload import Load, workload
from engine.config.load import load
from engine.config.run import RunConfig
from engine.errors import PlanError
from engine.loop.spending import PAID
from engine.metrics.timeline import Timeline, read_timeline
from engine.metrics.trackers import FILE_NAME, Record, read_metrics
from engine.store.reader import Owner, RunReader

Tokens = tuple[int, int]
"""Input and output tokens."""


@dataclass(frozen=True)
class Measured:
    """One iteration of an earlier run, or what came before its first one."""

    wall: float
    """Seconds."""
    busy: Mapping[str, float]
    """{stage: seconds in which at least one replica worked}."""
    loads: Mapping[str, Load]
    """{stage: the work that it had}."""
    tokens: Mapping[str, Tokens]
    """{stage: what its remote judge was paid for}."""


@dataclass(frozen=True)
class Rates:
    """What an earlier run measured."""

    source: str
    config: RunConfig
    start: Measured
    """From the start of the process to the first iteration: engines, prompts, the start policy's held-out answers."""
    first: Measured
    """The first iteration, which also warms the engines up."""
    later: tuple[Measured, ...]
    """Its other iterations; empty if it had one."""

    def of(self, t: int) -> tuple[Measured, ...]:
        """The iterations that are like iteration `t`, counted from 0."""
        return self.later if t and self.later else (self.first,)

    def per_unit(self, stage: str) -> float | None:
        """Busy seconds of a stage per unit of its work, once the engines are warm; None if it did not run."""
        for iterations in (self.later, (self.first,), (self.start,)):
            ran = [m for m in iterations if stage in m.busy and stage in m.loads]
            if amount := sum(m.loads[stage].amount for m in ran):
                return sum(m.busy[stage] for m in ran) / amount
        return None


def read_rates(folder: Path, source: str | None = None) -> Rates:
    """Read an earlier run, named `source` (None: by its folder).

    Iterations that were interrupted, or whose work was not all done by this run, are passed over. Raises PlanError if
    none is left.
    """
    if not (folder / "config.yaml").is_file():
        raise PlanError(f"{folder} is not a run folder, so it holds no rates")
    run, config, timeline = RunReader(folder), load(folder / "config.yaml"), read_timeline(folder)
    records = [record for record in read_metrics(folder / FILE_NAME) if record["kind"] == "iteration"]
    spans = {number: start for number, start, _ in timeline.iterations}
    whole = [r for r in records if r["iteration"] in spans and _is_whole(r, spans[r["iteration"]], timeline)]
    if not whole:
        raise PlanError(f"{folder}: no iteration was measured from its beginning to its end; name another run")
    begun = min(spans.values())
    iterations = [_measured(run, record, config) for record in whole]
    first, later = iterations[0], iterations[1:]
    if whole[0]["iteration"] != 1:
        first, later = later[0] if later else first, iterations
    return Rates(source or str(folder), config, _start(run, timeline, begun, config), first, tuple(later))


def _is_whole(record: Record, begun: float, timeline: Timeline) -> bool:
    """Whether this run did all work of the iteration, without interruption."""
    earlier = any(work.iteration == record["iteration"] and work.end < begun - 1e-3 for work in timeline.work)
    return not earlier and all(value for key, value in record.items() if key.endswith("/busy"))


def _measured(run: RunReader, record: Record, config: RunConfig) -> Measured:
    prompts = record.get("select/prompts") or estimates.prompts_per_iteration(config) or 0
    busy = {key.split("/")[1]: float(value) for key, value in record.items() if key.endswith("/busy")}
    number = record["iteration"]
    tokens = _tokens(run, "iteration", number - 1) | _tokens(run, "version", number)
    return Measured(float(record["time/wall"]), busy, workload(config, number - 1, int(prompts)), tokens)


def _tokens(run: RunReader, of: Owner, number: int) -> dict[str, Tokens]:
    """{stage: what remote judges were paid for} in an iteration, or for a version of the policy."""
    counts = {stage: run.counts(number, stage) for stage in run.stages(of)}
    return {stage: (c[PAID[1]], c[PAID[2]]) for stage, c in counts.items() if PAID[1] in c}


def _start(run: RunReader, timeline: Timeline, begun: float, config: RunConfig) -> Measured:
    """From the last start of a process before the first iteration, which began at `begun`."""
    since = max((start for start in timeline.processes if start <= begun), default=begun)
    before = Timeline(tuple(work for work in timeline.work if since <= work.start and work.end <= begun))
    return Measured(begun - since, before.busy(), workload(config, 0, 0), _tokens(run, "version", 0))
