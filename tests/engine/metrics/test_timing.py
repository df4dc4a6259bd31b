"""The time ledger: busy, waiting and idle seconds that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.timing import Ledger

times = st.floats(min_value=0.0, max_value=1e6)
intervals = st.lists(st.tuples(st.sampled_from(["generate", "score", "learn"]), times, times), max_size=40)


def test_two_replicas_at_work_in_the_same_second_are_busy_for_one_second():
    ledger = Ledger(10.0)
    ledger.record("generate", 10.0, 14.0, tokens=400.0)
    ledger.record("generate", 12.0, 16.0, tokens=800.0)
    stage = ledger.account(20.0).stages["generate"]
    assert (stage.busy, stage.waiting, stage.replica_seconds, stage.num_intervals) == (6.0, 4.0, 8.0, 2)
    assert stage.amounts == {"tokens": 1200.0}
    assert stage.rates == {"tokens": 200.0}


def test_gaps_count_as_waiting_and_overlap_between_stages_is_no_double_idleness():
    ledger = Ledger(0.0)
    ledger.record("generate", 1.0, 3.0)
    ledger.record("generate", 6.0, 7.0)
    ledger.record("score", 2.0, 4.0)
    account = ledger.account(10.0)
    assert account.stages["generate"].waiting == 7.0
    assert account.stages["score"].waiting == 8.0
    assert account.nothing == 6.0  # 0-1, 4-6 and 7-10


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_late_interval_that_bridges_others_merges_them(order: tuple[int, ...]):
    booked = [(0.0, 2.0), (4.0, 6.0), (1.0, 5.0)]
    ledger = Ledger(0.0)
    for place in order:
        ledger.record("score", *booked[place])
    assert ledger.account(6.0).stages["score"].busy == 6.0


def test_work_outside_the_iteration_is_cut_off_but_its_amounts_count():
    ledger = Ledger(100.0)
    ledger.record("generate", 90.0, 105.0, tokens=10.0)
    ledger.record("generate", 108.0, 130.0, tokens=10.0)
    ledger.record("generate", 50.0, 60.0, tokens=10.0)
    stage = ledger.account(110.0).stages["generate"]
    assert (stage.busy, stage.replica_seconds, stage.amounts["tokens"]) == (7.0, 7.0, 30.0)


def test_a_stage_whose_work_was_done_before_a_restart_waits_all_the_time():
    ledger = Ledger(0.0)
    ledger.declare("generate")
    figures = ledger.account(3.0).metrics()
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
def test_impossible_bookings_are_refused_and_leave_no_trace(start: float, end: float, amounts: dict[str, float]):
    ledger = Ledger(0.0)
    with pytest.raises(ValueError, match="score"):
        ledger.record("score", start, end, **amounts)
    assert ledger.account(5.0).stages == {}


def test_an_account_that_ends_before_the_ledger_starts_is_refused():
    with pytest.raises(ValueError, match="starts at 10"):
        Ledger(10.0).account(9.0)


@given(start=times, length=times, booked=intervals)
def test_busy_and_waiting_add_up_to_the_wall_time_to_the_last_bit(
    start: float, length: float, booked: list[tuple[str, float, float]]
):
    ledger = Ledger(start)
    for stage, a, b in booked:
        ledger.record(stage, min(a, b), max(a, b))
    account = ledger.account(start + length)
    busiest = max((stage.busy for stage in account.stages.values()), default=0.0)
    total = sum(stage.busy for stage in account.stages.values())
    for stage in account.stages.values():
        assert stage.busy + stage.waiting == account.wall
        assert 0.0 <= stage.busy <= stage.replica_seconds
    assert busiest <= account.wall - account.nothing <= total


@given(booked=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30))
def test_busy_is_the_number_of_whole_seconds_in_which_anyone_worked(booked: list[tuple[int, int]]):
    ledger = Ledger(0.0)
    ledger.declare("score")
    for a, b in booked:
        ledger.record("score", min(a, b), max(a, b))
    worked = {second for a, b in booked for second in range(min(a, b), max(a, b))}
    assert ledger.account(60.0).stages["score"].busy == len(worked)
