"""Who worked when, on a true time axis, and who waited for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.metrics.progress import duration
from engine.metrics.timeline import Timeline, Work
from engine.report.figures import IterationSummary, percent
from engine.report.svg import Chart, Scale, colour, element, nice_step, picture

ORDER = ("generator", "scorer", "evaluator", "annotator", "learner", "driver")
"""Of the roles, in dataflow order."""
WIDTH = 1040.0
LABELS = 158.0
"""Width of the names of the stages."""
ROW, GAP = 9.0, 8.0
MAX_ROWS = 4
"""Replicas at work at the same time that get a row of their own in a stage."""
MAX_GAP = 0.5
"""Pieces of work of a row that are nearer than this many pixels are drawn as one."""


@dataclass(frozen=True)
class Lane:
    """One stage: its work, in rows of pieces that do not overlap."""

    role: str
    stage: str
    rows: tuple[tuple[tuple[float, float], ...], ...]
    """(start, end) in seconds since 1970."""


def lanes(work: Sequence[Work]) -> list[Lane]:
    """One lane per role and stage, roles in dataflow order, stages in the order of their first work."""
    stages: dict[tuple[str, str], list[Work]] = {}
    for piece in sorted(work, key=lambda piece: (piece.start, piece.end)):
        stages.setdefault((piece.role, piece.stage), []).append(piece)
    roles = sorted({role for role, _ in stages}, key=lambda r: (ORDER.index(r) if r in ORDER else len(ORDER), r))
    found = [Lane(role, stage, _rows(pieces)) for (role, stage), pieces in stages.items()]
    return [lane for role in roles for lane in found if lane.role == role]


def _rows(pieces: Sequence[Work]) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Each piece in the first row that is free when it starts; beyond MAX_ROWS in the last one."""
    rows: list[list[tuple[float, float]]] = []
    for piece in pieces:
        free = next((row for row in rows if row[-1][1] <= piece.start + 2e-3), None)  # times are rounded
        if free is None and len(rows) < MAX_ROWS:
            rows.append([])
            free = rows[-1]
        (free if free is not None else rows[-1]).append((piece.start, piece.end))
    return tuple(map(tuple, rows))


def time_chart(timeline: Timeline) -> Chart | None:
    """All work of a run over the time since its first start; None without any."""
    if not timeline.work:
        return None
    start = min([*timeline.processes, *(piece.start for piece in timeline.work)])
    length = max(piece.end for piece in timeline.work) - start
    drawn = lanes(timeline.work)
    height = sum(_height(lane) for lane in drawn) + 24.0
    x = Scale(0.0, max(length, 1e-3), LABELS, WIDTH - 12.0)
    parts = _grid(x, height) + _iterations(timeline, x, start, height) + _restarts(timeline, x, start, height)
    top, role = 22.0, ""
    for lane in drawn:
        parts += _lane(lane, x, start, top, lane.role != role)
        top, role = top + _height(lane), lane.role
    title = "Who worked when"
    description = f"{len(timeline.work):,} pieces of work of {len(drawn)} stages in {duration(length)}"
    rows = tuple(
        (lane.role, lane.stage, f"{len(pieces):,}", f"{sum(p.end - p.start for p in pieces):,.1f}")
        for lane in drawn
        if (pieces := [p for p in timeline.work if (p.role, p.stage) == (lane.role, lane.stage)])
    )
    return Chart(
        title,
        f"Every bar is one shard or one optimizer step, from hand-over to result, in seconds since the start. "
        f"{description}. Dotted: an iteration begins.",
        picture(title, description, parts, WIDTH, height),
        legend=tuple((role, _colour(role)) for role in dict.fromkeys(lane.role for lane in drawn)),
        headings=("role", "stage", "pieces of work", "seconds in all"),
        rows=rows,
        is_wide=True,
    )


def _colour(role: str) -> str:
    return colour(ORDER.index(role) if role in ORDER else len(ORDER) - 1)


def _height(lane: Lane) -> float:
    return ROW * len(lane.rows) + GAP


def _grid(x: Scale, height: float) -> list[Markup]:
    parts = []
    step = nice_step((x.high - x.low) / 10)
    for k in range(int(x.high / step) + 1):
        place = x(k * step)
        parts.append(element("line", klass="grid", x1=place, x2=place, y1=16.0, y2=height))
        parts.append(element("text", text=f"{k * step:,g}", klass="tick", x=place, y=11.0, text_anchor="middle"))
    return parts


def _iterations(timeline: Timeline, x: Scale, start: float, height: float) -> list[Markup]:
    parts = []
    for number, begin, end in timeline.iterations:
        label = element("title", text=f"iteration {number}: {duration(end - begin)}")
        parts.append(
            element("line", label, klass="boundary", x1=x(begin - start), x2=x(begin - start), y1=16.0, y2=height)
        )
    return parts


def _restarts(timeline: Timeline, x: Scale, start: float, height: float) -> list[Markup]:
    """A line where a later process took over."""
    parts = []
    for begin in timeline.processes[1:]:
        if begin - start <= x.high:
            place, label = x(begin - start), element("title", text="the run was started again")
            parts.append(element("line", label, klass="restart", x1=place, x2=place, y1=16.0, y2=height))
    return parts


def _lane(lane: Lane, x: Scale, start: float, top: float, begins_role: bool) -> list[Markup]:
    middle = top + ROW * len(lane.rows) / 2 + 3.5
    parts = [element("text", text=lane.stage, klass="tick", x=LABELS - 8, y=middle, text_anchor="end")]
    if begins_role:
        parts.append(element("line", klass="grid", x1=0.0, x2=WIDTH, y1=top - GAP / 2, y2=top - GAP / 2))
    for k, row in enumerate(lane.rows):
        path = "".join(
            f"M{x(a - start):.1f} {top + k * ROW:.1f}h{max(0.6, x(b - start) - x(a - start)):.1f}v{ROW - 1.5:g}"
            f"h-{max(0.6, x(b - start) - x(a - start)):.1f}z"
            for a, b in merged(row, MAX_GAP * (x.high - x.low) / (x.end - x.start))
        )
        label = element("title", text=f"{lane.role}: {lane.stage}")
        parts.append(element("path", label, klass=f"work {_colour(lane.role)}", d=path))
    return parts


def merged(row: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """The same intervals with those joined that are nearer than `gap`; bounds the size of the picture."""
    joined: list[tuple[float, float]] = []
    for start, end in row:
        if joined and start - joined[-1][1] < gap:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


@dataclass(frozen=True)
class Waiting:
    """Where one iteration's time went."""

    iteration: int
    wall: float
    """Seconds."""
    stages: tuple[tuple[str, float], ...]
    """(stage, share of the wall time in which it was busy), in the order of their first work."""
    nothing: float
    """Share of the wall time in which no stage was busy."""

    def in_words(self) -> str:
        if not self.stages:
            return ""
        name, share = max(self.stages, key=lambda stage: stage[1])
        overlap = sum(share for _, share in self.stages) - (1.0 - self.nothing)
        text = f"the stage {name} was busiest, for {percent(share)} of the time"
        return f"{text}; stages overlapped for {percent(overlap)}" if overlap >= 0.01 else f"{text}; nothing overlapped"


def waiting(iterations: Sequence[IterationSummary]) -> list[Waiting]:
    """One entry per iteration whose times are known."""
    return [
        Waiting(
            i.iteration,
            i.wall,
            tuple((stage, busy / i.wall) for stage, (busy, _) in i.times().items()),
            i.metrics.get("time/nothing", 0.0) / i.wall,
        )
        for i in iterations
        if i.wall
    ]
