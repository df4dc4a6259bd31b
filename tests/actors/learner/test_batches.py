"""Every row trains once per epoch, in a fixed micro-batch, in an order that a restarted learner repeats."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.learner.batches import (
    EMPTY,
    MicroBatch,
    Step,
    count_steps,
    deal,
    fingerprint,
    micro_batches,
    training_order,
)

SIZES = (7, 0, 4)


def order(sizes=SIZES, *, micro=2, batch=4, ranks=1, epochs=1.0, seed=3) -> list[Step]:
    return training_order(sizes, micro_batch_size=micro, batch_size=batch, num_ranks=ranks, epochs=epochs, seed=seed)


def rows(steps: list[Step]) -> Counter:
    return Counter(
        (piece.shard, row)
        for step in steps
        for ranks in step.passes
        for piece in ranks
        for row in range(piece.start, piece.stop)
    )


def test_a_micro_batch_never_crosses_shards_and_only_a_shards_last_one_is_short():
    assert micro_batches(SIZES, 3) == [
        MicroBatch(0, 0, 3),
        MicroBatch(0, 3, 6),
        MicroBatch(0, 6, 7),
        MicroBatch(2, 0, 3),
        MicroBatch(2, 3, 4),
    ]


@given(
    sizes=st.lists(st.integers(0, 9), max_size=5),
    micro=st.integers(1, 4),
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_row_trains_once_per_epoch_and_all_ranks_run_the_same_number_of_passes(
    sizes, micro, ranks, accumulation, epochs, seed
):
    steps = order(sizes, micro=micro, batch=micro * ranks * accumulation, ranks=ranks, epochs=epochs, seed=seed)
    everything = Counter({(shard, row): epochs for shard, size in enumerate(sizes) for row in range(size)})
    assert rows(steps) == everything
    for step in steps:
        assert all(len(pieces) == ranks for pieces in step.passes)
        assert 0 < step.num_rows <= micro * ranks * accumulation
        assert len(step.passes) <= accumulation


def test_micro_batches_are_those_of_the_reference_pass_in_every_step():
    allowed = {*micro_batches(SIZES, 2), EMPTY}
    assert {piece for step in order(epochs=3, ranks=2) for ranks in step.passes for piece in ranks} <= allowed


def test_the_order_is_a_function_of_its_arguments_and_changes_with_seed_and_epoch():
    assert order() == order()
    assert fingerprint(order()) == fingerprint(order()) != fingerprint(order(seed=4))
    sizes = [40]
    first, second = order(sizes, epochs=2)[:10], order(sizes, epochs=2)[10:]
    assert [step.passes for step in first] != [step.passes for step in second]
    assert first == order(sizes, epochs=1)


def test_the_number_of_ranks_decides_who_computes_a_row_not_when():
    by_one, by_two = order(ranks=1, batch=8), order(ranks=2, batch=8)
    assert [rows([step]) for step in by_one] == [rows([step]) for step in by_two]
    assert [step.num_rows for step in by_one] == [step.num_rows for step in by_two]


def test_ranks_without_work_get_explicit_empty_micro_batches():
    pieces = micro_batches([5], 1)
    assert deal(pieces, 2) == ((pieces[0], pieces[1]), (pieces[2], pieces[3]), (pieces[4], EMPTY))
    assert deal([], 2) == ()


def test_half_an_epoch_runs_half_the_steps_rounded_up_and_reports_where_it_stands():
    steps = order([12], micro=1, batch=4, epochs=0.5)
    assert [step.epoch for step in steps] == [1 / 3, 2 / 3]
    assert [step.epoch for step in order([12], micro=1, batch=4, epochs=2)][-1] == 2.0


def test_a_ragged_last_step_ends_the_epoch_with_the_rows_that_are_left():
    assert [step.num_rows for step in order([10], micro=1, batch=4)] == [4, 4, 2]


def test_the_schedules_length_follows_the_epochs_without_rounding_noise():
    assert count_steps(312 * 64, 64, 18) == 18 * 312
    assert count_steps(100, 1, 0.07) == 7  # in floating point 0.07 * 100 is 7.000000000000001


def test_no_rows_make_no_steps():
    assert order([0, 0]) == []
