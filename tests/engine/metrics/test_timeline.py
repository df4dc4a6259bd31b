"""The time line survives restarts, clocks that are set, and processes that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.metrics.timeline import TimelineFile, Work, read_timeline


def test_a_restarted_run_continues_on_the_same_axis(tmp_path: Path):
    first = TimelineFile(tmp_path, clock=lambda: 100.0, wall=lambda: 5_000.0)
    first.work("scores", "scorer", 1, 101.0, 103.5)
    first.close()
    second = TimelineFile(tmp_path, clock=lambda: 7.0, wall=lambda: 5_060.0)  # another monotonic clock
    second.work("scores", "scorer", 1, 8.0, 9.0)
    line = read_timeline(tmp_path)
    assert line.processes == (5_000.0, 5_060.0)
    assert line.work == (Work("scores", "scorer", 1, 5_001.0, 5_003.5), Work("scores", "scorer", 1, 5_061.0, 5_062.0))


def test_a_clock_that_is_set_back_moves_nothing(tmp_path: Path):
    now = {"monotonic": 0.0, "wall": 5_000.0}
    file = TimelineFile(tmp_path, clock=lambda: now["monotonic"], wall=lambda: now["wall"])
    file.work("learn", "learner", 1, 0.0, 1.0)
    now["wall"] = 1_000.0
    file.work("learn", "learner", 1, 1.0, 2.0)
    assert [(work.start, work.end) for work in read_timeline(tmp_path).work] == [(5_000.0, 5_001.0), (5_001.0, 5_002.0)]


def test_of_an_iteration_that_was_repeated_the_last_time_counts(tmp_path: Path):
    file = TimelineFile(tmp_path, clock=lambda: 0.0, wall=lambda: 0.0)
    for start, end in ((0.0, 5.0), (7.0, 9.0)):
        file.iteration(1, start, end)
    assert read_timeline(tmp_path).iterations == ((1, 7.0, 9.0),)


def test_a_torn_line_is_passed_over_and_a_damaged_one_is_named(tmp_path: Path):
    file = TimelineFile(tmp_path)
    file.work("learn", "learner", 1, 0.0, 1.0)
    path = tmp_path / "timeline.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert read_timeline(tmp_path).work == ()
    path.write_text("no line\n")
    with pytest.raises(StoreError, match="line 1"):
        read_timeline(tmp_path)


def test_what_a_role_of_none_did_is_the_drivers_work(tmp_path: Path):
    TimelineFile(tmp_path).work("selected", None, 2, 0.0, 1.0)
    assert read_timeline(tmp_path).work[0].role == "driver"


def test_a_run_of_an_earlier_version_has_an_empty_time_line(tmp_path: Path):
    assert read_timeline(tmp_path).work == ()
