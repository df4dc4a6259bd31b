"""The time axis: pieces of work in rows that do not overlap, in the order of the dataflow."""

from __future__ import annotations

import re

from engine.metrics.timeline import Timeline, Work
from engine.report.figures import IterationSummary
from engine.report.timeline import MAX_ROWS, lanes, merged, time_chart, waiting


def work(stage: str, role: str, *times: tuple[float, float]) -> list[Work]:
    return [Work(stage, role, 1, start, end) for start, end in times]


def test_replicas_that_work_at_the_same_time_have_rows_of_their_own():
    [lane] = lanes(work("scores", "scorer", (0, 4), (1, 3), (4, 6), (3.5, 5)))
    assert lane.rows == (((0, 4), (4, 6)), ((1, 3), (3.5, 5)))


def test_no_piece_is_lost_if_there_are_more_replicas_than_rows():
    [lane] = lanes(work("scores", "scorer", *[(0.0, 9.0 + k) for k in range(12)]))
    assert len(lane.rows) == MAX_ROWS
    assert sum(map(len, lane.rows)) == 12


def test_lanes_follow_the_dataflow():
    found = lanes(
        [*work("learn", "learner", (0, 1)), *work("selected", "driver", (0, 1)), *work("c", "generator", (2, 3))]
    )
    assert [lane.role for lane in found] == ["generator", "learner", "driver"]


def test_bars_are_where_the_work_was_from_the_first_start_on():
    pieces = work("completions", "generator", (110.0, 120.0), (190.0, 200.0))
    chart = time_chart(Timeline(tuple(pieces), (100.0,), ((1, 110.0, 200.0),)))
    assert chart is not None
    [path] = re.findall(r'class="work s0" d="([^"]*)"', str(chart.svg))
    starts = [float(x) for x in re.findall(r"M([\d.]+)", path)]
    lengths = [float(x) for x in re.findall(r"v[\d.]+h-([\d.]+)", path)]
    seconds = (1040 - 12 - 158) / 100
    assert [round((x - 158) / seconds) for x in starts] == [10, 90]
    assert [round(x / seconds) for x in lengths] == [10, 10]
    assert chart.rows == (("generator", "completions", "2", "20.0"),)


def test_a_restart_is_marked():
    chart = time_chart(Timeline(tuple(work("scores", "scorer", (0, 9))), (0.0, 4.0)))
    assert chart is not None and "the run was started again" in str(chart.svg)


def test_the_picture_does_not_grow_with_the_run():
    row = [(k / 10, k / 10 + 0.09) for k in range(100_000)]
    assert len(merged(row, 5.0)) == 1
    assert merged([(0, 1), (1.2, 2), (9, 10)], 0.5) == [(0, 2), (9, 10)]


def test_who_waited_is_said_in_shares_of_the_wall_time():
    times = {"time/wall": 10.0, "time/nothing": 1.0, "time/scores/busy": 8.0, "time/learn/busy": 3.0}
    [entry] = waiting([IterationSummary(1, metrics=times)])
    assert dict(entry.stages) == {"scores": 0.8, "learn": 0.3}
    assert entry.in_words() == "the stage scores was busiest, for 80.0 % of the time; stages overlapped for 20.0 %"
    assert waiting([IterationSummary(2)]) == []
