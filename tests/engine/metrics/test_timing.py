"""Times per stage: busy, waiting and idle seconds that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.timing import StageTimer

seconds = st.floats(min_value=0.0, max_value=1e6)
intervals = st.lists(st.tuples(st.sampled_from(["generate", "score", "learn"]), seconds, seconds), max_size=40)


def test_two_replicas_at_work_in_the_same_second_are_busy_for_one_second():
    timer = StageTimer("test", 10.0)
    timer.record("generate", 10.0, 14.0, tokens=400.0)
    timer.record("generate", 12.0, 16.0, tokens=800.0)
    stage = timer.times(20.0).stages["generate"]
    assert (stage.busy, stage.waiting, stage.replica_seconds, stage.num_intervals) == (6.0, 4.0, 8.0, 2)
    assert stage.amounts == {"tokens": 1200.0}
    assert stage.rates == {"tokens": 200.0}


def test_gaps_count_as_waiting_and_overlap_between_stages_is_no_double_idleness():
    timer = StageTimer("test", 0.0)
    timer.record("generate", 1.0, 3.0)
    timer.record("generate", 6.0, 7.0)
    timer.record("score", 2.0, 4.0)
    times = timer.times(10.0)
    assert times.stages["generate"].waiting == 7.0
    assert times.stages["score"].waiting == 8.0
    assert times.idle == 6.0  # 0-1, 4-6 and 7-10


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_late_interval_that_bridges_others_merges_them(order: tuple[int, ...]):
    booked = [(0.0, 2.0), (4.0, 6.0), (1.0, 5.0)]
    timer = StageTimer("test", 0.0)
    for place in order:
        timer.record("score", *booked[place])
    assert timer.times(6.0).stages["score"].busy == 6.0


def test_work_outside_the_iteration_is_cut_off_but_its_amounts_count():
    timer = StageTimer("test", 100.0)
    timer.record("generate", 90.0, 105.0, tokens=10.0)
    timer.record("generate", 108.0, 130.0, tokens=10.0)
    timer.record("generate", 50.0, 60.0, tokens=10.0)
    stage = timer.times(110.0).stages["generate"]
    assert (stage.busy, stage.replica_seconds, stage.amounts["tokens"]) == (7.0, 7.0, 30.0)


def test_a_stage_whose_work_was_done_before_a_restart_waits_all_the_time():
    timer = StageTimer("test", 0.0)
    timer.expect("generate", 7, done=7)
    figures = timer.times(3.0).metrics()
    assert figures["time/generate/busy"] == 0.0
    assert figures["time/generate/waiting"] == figures["time/wall"] == figures["time/nothing"] == 3.0
    assert not any(name.endswith("per_second") for name in figures)


@pytest.mark.parametrize(
    ("start", "end", "amounts"),
    [
        (2.0, 1.0, {}),
        (float("nan"), 1.0, {}),
        (0.0, float("inf"), {}),
        (0.0, 1.0, {"tokens": -1.0}),
        (0.0, 1.0, {"tokens": float("nan")}),
    ],
)
def test_impossible_work_is_refused_and_leaves_no_trace(start: float, end: float, amounts: dict[str, float]):
    timer = StageTimer("test", 0.0)
    with pytest.raises(ValueError, match="score"):
        timer.record("score", start, end, **amounts)
    assert timer.times(5.0).stages == {}


def test_times_that_end_before_the_iteration_starts_are_refused():
    with pytest.raises(ValueError, match="starts at 10"):
        StageTimer("test", 10.0).times(9.0)


@given(start=seconds, length=seconds, booked=intervals)
def test_busy_and_waiting_add_up_to_the_wall_time_to_the_last_bit(
    start: float, length: float, booked: list[tuple[str, float, float]]
):
    timer = StageTimer("test", start)
    for stage, a, b in booked:
        timer.record(stage, min(a, b), max(a, b))
    times = timer.times(start + length)
    busiest = max((stage.busy for stage in times.stages.values()), default=0.0)
    total = sum(stage.busy for stage in times.stages.values())
    for stage in times.stages.values():
        assert stage.busy + stage.waiting == times.wall
        assert 0.0 <= stage.busy <= stage.replica_seconds
    assert busiest <= times.wall - times.idle <= total


@given(booked=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30))
def test_busy_is_the_number_of_whole_seconds_in_which_anyone_worked(booked: list[tuple[int, int]]):
    timer = StageTimer("test", 0.0)
    timer.expect("score", 30)
    for a, b in booked:
        timer.record("score", min(a, b), max(a, b))
    worked = {second for a, b in booked for second in range(min(a, b), max(a, b))}
    assert timer.times(60.0).stages["score"].busy == len(worked)
