"""Which answers SPPO trains on, with which targets and counts, and its loss."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from actors.learner.learner import batches_of
from engine.algorithms import losses
from engine.algorithms.base import Batch
from engine.algorithms.losses import Pairs
from engine.algorithms.preference import pairwise_win_probabilities, win_rates
from engine.algorithms.sppo import SPPO
from engine.schema import SELECTED
from tests.oracles import ORACLES, PRINTED, TOLERANCE, batch_from, name_of, pairs_of_row, rows_of
from tests.tables import logits_of, only_row, scored

CASES = {row["case"]: row for row in ORACLES["pairrm_to_sppo"]}


def expected_counts(**counts: int) -> dict[str, int]:
    return {"prompts": 1, "ties": 0, "no_pair": 0, "missing": 0, "duplicates": 0, "truncated": 0, "empty": 0} | counts


@pytest.mark.parametrize("case", CASES)
def test_best_and_worst_answer_train_with_the_papers_win_rates(case):
    oracle = CASES[case]
    row = only_row(SPPO().select(scored(oracle["pairrm_logits_M_ij"])))
    best, worst = oracle["paper_winner"], oracle["paper_loser"]
    rates = oracle["symmetrised_pairwise_win_rates"]
    assert row["completion_index"] == [best, worst]
    assert row["win_rate"] == pytest.approx([rates[best], rates[worst]], rel=1e-12)
    assert row["completion_token_ids"] == [[best, 9], [worst, 9]]
    assert (row["prompt_id"], row["prompt_token_ids"], row["baseline"]) == ("p0", [100], 0.5)


@pytest.mark.parametrize("case", CASES)
def test_best_and_worst_answer_train_with_the_scripts_win_rates(case):
    oracle = CASES[case]
    row = only_row(SPPO(estimator="bt_aggregate").select(scored(oracle["pairrm_logits_M_ij"])))
    assert row["completion_index"] == [oracle["code_winner"], oracle["code_loser"]]
    assert row["win_rate"] == pytest.approx(
        [oracle["code_chosen_probs_win"], oracle["code_chosen_probs_lose"]], rel=1e-12
    )


@pytest.mark.parametrize("k", [2, 7])
def test_any_number_of_answers_will_do(k):
    logits = logits_of(*range(k))
    row = only_row(SPPO().select(scored(logits)))
    assert row["completion_index"] == [k - 1, 0]
    assert sum(row["win_rate"]) == pytest.approx(1.0, abs=1e-12)
    everything = only_row(SPPO(train_on="all").select(scored(logits)))
    assert everything["completion_index"] == list(range(k))
    assert everything["win_rate"] == pytest.approx(win_rates(pairwise_win_probabilities(np.array(logits))).tolist())


def test_two_answers_by_hand():
    """Logit 2: P = 0.880797; each answer against the two, itself at 1/2: 0.690399 and 0.309601."""
    row = only_row(SPPO().select(scored([[0.0, 2.0], [-2.0, 0.0]])))
    assert row["win_rate"] == pytest.approx([0.690399, 0.309601], abs=1e-6)


# What a win rate is compared with


def test_the_log_partition_of_two_answers_is_the_baseline_by_hand():
    """Rates 0.690399 and 0.309601 at eta = 10: (log((e^6.903985 + e^3.096015) / 2)) / 10 = 0.623279."""
    row = only_row(SPPO(eta=10.0, baseline="logpartition").select(scored([[0.0, 2.0], [-2.0, 0.0]])))
    by_hand = (6.903985 + math.log1p(math.exp(3.096015 - 6.903985)) - math.log(2)) / 10
    assert by_hand == pytest.approx(0.623279, abs=1e-6)
    assert row["baseline"] == pytest.approx(by_hand, abs=1e-6)


def test_the_log_partition_is_over_all_answers_also_where_two_train():
    logits = logits_of(0.0, 1.0, 2.0, 3.0)
    rates = win_rates(pairwise_win_probabilities(np.array(logits)))
    row = only_row(SPPO(eta=1000.0, baseline="logpartition").select(scored(logits)))
    assert row["baseline"] == pytest.approx(rates.max() - math.log(4) / 1000, rel=1e-9)


def test_a_number_is_its_own_baseline():
    assert only_row(SPPO(baseline=0.25).select(scored(logits_of(0, 1))))["baseline"] == 0.25


# Ties, copies, cut and empty answers


def test_answers_among_which_nothing_is_preferred_teach_nothing():
    selection = SPPO().select(scored(logits_of(0, 0, 0, 0, 0)))
    assert selection.rows.num_rows == 0
    assert selection.rows.schema.equals(SELECTED)
    assert selection.counts == expected_counts(ties=1)


def test_a_tie_that_is_kept_pairs_the_first_two_answers_and_never_one_with_itself():
    """The released scripts would take answer 0 as chosen and as rejected."""
    assert ORACLES["sppo_degenerate"]["argmax"] == ORACLES["sppo_degenerate"]["argmin"] == 0
    selection = SPPO(ties="keep").select(scored(logits_of(0, 0, 0, 0, 0)))
    row = only_row(selection)
    assert (row["completion_index"], row["win_rate"]) == ([0, 1], [0.5, 0.5])
    assert selection.counts == expected_counts(ties=1)


def test_among_equals_the_first_sampled_is_taken_at_both_ends():
    row = only_row(SPPO().select(scored(logits_of(1, 2, 0, 2, 0))))
    assert row["completion_index"] == [1, 2]


@pytest.mark.parametrize(("ties", "rows"), [("drop", 0), ("keep", 1)])
def test_best_and_worst_that_are_the_same_text_are_a_tie(ties, rows):
    """A scorer that is not symmetric can prefer an answer to its own copy."""
    selection = SPPO(ties=ties).select(scored(logits_of(1, 0), completions=[["same", "same"]]))
    assert selection.rows.num_rows == rows
    assert selection.counts == expected_counts(ties=1, duplicates=1)


def test_copies_in_between_are_counted_and_do_not_stand_in_the_way():
    selection = SPPO().select(scored(logits_of(2, 1, 1, 1, 0), completions=[["a", "b", "b", "b", "c"]]))
    assert only_row(selection)["completion_index"] == [0, 4]
    assert selection.counts == expected_counts(duplicates=2)


def test_cut_answers_train_unless_they_are_excluded():
    table = scored(logits_of(3, 2, 1), finish_reasons=[["length", "stop", "stop"]])
    kept, excluded = SPPO().select(table), SPPO(truncated="exclude").select(table)
    assert only_row(kept)["completion_index"] == [0, 2]
    assert only_row(excluded)["completion_index"] == [1, 2]
    assert kept.counts == excluded.counts == expected_counts(truncated=1)


def test_excluded_answers_still_count_as_opponents():
    table = scored(logits_of(3, 2, 1), finish_reasons=[["length", "stop", "stop"]])
    rates = win_rates(pairwise_win_probabilities(np.array(logits_of(3, 2, 1))))
    assert only_row(SPPO(truncated="exclude").select(table))["win_rate"] == pytest.approx(rates[[1, 2]].tolist())


def test_empty_answers_train_unless_they_are_excluded():
    table = scored(logits_of(3, 2, 1, 0), completions=[["yes", "no", "", " \n"]])
    kept, excluded = SPPO().select(table), SPPO(empty="exclude").select(table)
    assert only_row(kept)["completion_index"] == [0, 3]
    assert only_row(excluded)["completion_index"] == [0, 1]
    assert kept.counts == excluded.counts == expected_counts(empty=2)


@pytest.mark.parametrize("train_on", ["best_worst", "all"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_prompt_with_fewer_than_two_answers_left_makes_no_row(train_on, left):
    reasons = ["stop"] * left + ["length"] * (3 - left)
    table = scored(logits_of(3, 2, 1), finish_reasons=[reasons])
    selection = SPPO(truncated="exclude", train_on=train_on).select(table)
    assert selection.rows.num_rows == 0
    assert selection.counts == expected_counts(no_pair=1, truncated=3 - left)


def test_excluding_works_for_all_answers_too():
    table = scored(logits_of(3, 2, 1), finish_reasons=[["stop", "length", "stop"]])
    assert only_row(SPPO(truncated="exclude", train_on="all").select(table))["completion_index"] == [0, 2]


def test_a_shard_keeps_its_order_and_adds_up_its_counts():
    table = scored(
        logits_of(0, 1),
        logits_of(5, 5),
        logits_of(1, 0),
        completions=[["a", "b"], ["c", "c"], ["", "d"]],
        finish_reasons=[["length", "stop"], ["stop", "stop"], ["length", "length"]],
    )
    selection = SPPO().select(table)
    assert selection.rows["prompt_id"].to_pylist() == ["p0", "p2"]
    assert selection.counts == expected_counts(prompts=3, ties=1, duplicates=1, truncated=3, empty=1)


def test_prompts_do_not_influence_each_other_and_the_same_shard_gives_the_same_rows():
    shard = scored(logits_of(0, 1, 2), logits_of(4, 1, 3), logits_of(0, 2, 1))
    together = SPPO().select(shard).rows
    assert together.equals(SPPO().select(shard).rows)
    apart = [SPPO().select(shard.slice(i, 1)).rows for i in range(3)]
    assert together.equals(pa.concat_tables(apart))


def test_an_empty_shard_gives_an_empty_table():
    selection = SPPO().select(scored())
    assert selection.rows.equals(SELECTED.empty_table())
    assert selection.counts == expected_counts(prompts=0)


def test_enormous_logits_give_certain_win_rates():
    row = only_row(SPPO(baseline="logpartition").select(scored(logits_of(0, 1e300))))
    assert row["win_rate"] == [0.75, 0.25]
    assert row["baseline"] == pytest.approx(0.75 - math.log(2) / 1000, abs=1e-12)


@pytest.mark.parametrize("wrong", [{"eta": 0}, {"eta": float("inf")}, {"baseline": "quarter"}, {"beta": 0.001}])
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SPPO(**wrong)


# The loss


def slopes(loss: Tensor, pairs: Pairs) -> list[float]:
    return [slope.item() for slope in torch.autograd.grad(loss.sum(), (pairs.chosen, pairs.rejected))]


def printed(row: dict) -> list[float]:
    return [row["grad"]["policy_chosen_logps"], row["grad"]["policy_rejected_logps"]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of("sppo"), ids=name_of)
def test_the_loss_and_its_gradient_are_those_of_the_released_code(row, dtype):
    """The released code averages the pair's two squared errors; so does the row's loss."""
    pairs = pairs_of_row(row, dtype)
    loss = SPPO(eta=row["params"]["eta"]).loss(batch_from(pairs))
    assert loss.dtype == dtype
    assert loss.tolist() == pytest.approx([row["value_full"]], rel=TOLERANCE[dtype])
    assert slopes(loss, pairs) == pytest.approx(printed(row), rel=TOLERANCE[dtype], abs=PRINTED)


@pytest.mark.parametrize("row", rows_of("sppo_hard"), ids=name_of)
def test_trls_sppo_hard_is_exactly_twice_ours_with_certain_win_rates(row):
    pairs = pairs_of_row(row)
    loss = 2 * SPPO(eta=1 / row["params"]["beta"]).loss(batch_from(pairs))
    assert loss.tolist() == pytest.approx([row["value_full"]], rel=1e-6)
    assert slopes(loss, pairs) == pytest.approx(printed(row), rel=1e-6, abs=PRINTED)


def test_each_answer_has_its_own_squared_error():
    """By hand: (0.5 - 10 (0.8 - 0.5))^2 = 6.25 and (-1 - 10 (0.2 - 0.5))^2 = 4."""
    log_ratio, win_rate = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 0.2])
    assert losses.squared_error(log_ratio, win_rate, 0.5, 10.0).tolist() == pytest.approx([6.25, 4.0], rel=1e-6)


def test_the_loss_of_many_answers_is_their_mean_and_zero_exactly_at_their_targets():
    """Scores 0, 1, 2 at eta = 8; one nat too many on one of three answers costs 1 / 3."""
    algorithm = SPPO(eta=8.0, train_on="all")
    row = only_row(algorithm.select(scored(logits_of(0, 1, 2))))
    logps = torch.tensor([8.0 * (rate - 0.5) - 4.0 for rate in row["win_rate"]], dtype=torch.float64)
    rows = [row | {"ref_logps": [-4.0] * 3}]
    (there,), (off,) = batches_of(rows, logps), batches_of(rows, logps + torch.tensor([1.0, 0.0, 0.0]))
    assert algorithm.loss(there).tolist() == pytest.approx([0.0], abs=1e-24)
    assert algorithm.loss(off).tolist() == pytest.approx([1 / 3], rel=1e-12)


def test_answers_that_trade_places_with_their_targets_change_nothing():
    batch = batch_from(pairs_of_row(rows_of("sppo")[0]))
    swapped = Batch(*(getattr(batch, name).flip(-1) for name in Batch.__dataclass_fields__))
    assert SPPO().loss(swapped).tolist() == pytest.approx(SPPO().loss(batch).tolist(), rel=1e-12)


def test_at_the_reference_equal_answers_ask_for_no_change():
    reference = torch.tensor([[-20.0, -30.0]], dtype=torch.float64)
    logps, half = reference.clone().requires_grad_(), torch.full_like(reference, 0.5)
    loss = SPPO().loss(Batch(logps, reference, torch.ones_like(reference), half, half[:, :1]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert torch.count_nonzero(logps.grad) == 0
