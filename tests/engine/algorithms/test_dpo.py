"""DPO with every loss of the family: how losses are mixed, what is refused, and which pairs train."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from engine.algorithms.base import Batch
from engine.algorithms.dpo import DPO, RENAMED
from engine.algorithms.losses import LOSSES
from tests.oracles import ORACLES, TOLERANCE, batch_from, keywords, name_of, pairs_of_row, rows_of
from tests.tables import given, logits_of, only_row, rated, scored

NAN = math.nan


def some() -> Batch:
    """Three pairs of the independent numbers: a reference, and answers of different lengths."""
    return batch_from(pairs_of_row(rows_of("aot")[0]))


def losses_of(**parameters: Any) -> list[float]:
    return DPO(**parameters).loss(some()).tolist()


def expected_counts(**counts: int) -> dict[str, int]:
    return {"prompts": 1, "ties": 0, "no_pair": 0, "missing": 0, "duplicates": 0, "truncated": 0, "empty": 0} | counts


# ---- its loss ----


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of(*LOSSES), ids=name_of)
def test_every_loss_can_be_configured_and_has_the_independent_value(row, dtype):
    algorithm = DPO(losses={row["loss"]: 1.0}, **keywords(row))
    loss = algorithm.loss(batch_from(pairs_of_row(row, dtype)))
    assert loss.dtype == dtype
    assert loss.mean().item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])


def test_by_default_it_is_dpo_at_beta_one_tenth():
    assert losses_of() == losses_of(losses={"sigmoid": 1.0}, beta=0.1)
    assert (DPO().stages(0), DPO().num_dataset_completions, DPO().reward_scale()) == (("completions", "scores"), 0, 0.1)


def test_a_mixture_is_the_weighted_sum_of_its_losses():
    """Each part takes the parameters that it reads: sft has no beta."""
    parts = [losses_of(losses={"ipo": 1.0}, beta=0.3), losses_of(losses={"sft": 1.0})]
    by_hand = [0.25 * ipo + 2.0 * sft for ipo, sft in zip(*parts, strict=True)]
    assert losses_of(losses={"ipo": 0.25, "sft": 2.0}, beta=0.3) == pytest.approx(by_hand, rel=1e-12)


def test_nll_weight_adds_the_chosen_answers_likelihood_per_token_to_any_loss():
    assert losses_of(nll_weight=0.7) == pytest.approx(losses_of(losses={"rpo": 1.0}, alpha=0.7))
    assert losses_of(losses={"hinge": 1.0}, nll_weight=0.2) == pytest.approx(
        losses_of(losses={"hinge": 1.0, "sft": 0.2}), rel=1e-12
    )


def test_length_normalised_dpo_is_sigmoid_norm():
    assert losses_of(length_normalized=True) == pytest.approx(losses_of(losses={"sigmoid_norm": 1.0}), rel=1e-12)


def test_lengths_are_divided_out_once():
    """What divides by the number of tokens itself finds them divided already."""
    for name in ("ipo", "sigmoid_norm", "simpo", "sft", "orpo"):
        assert losses_of(losses={name: 1.0}, length_normalized=True) == pytest.approx(losses_of(losses={name: 1.0}))


def test_without_a_reference_dpo_is_cpo_without_its_likelihood():
    assert losses_of(reference_free=True) == pytest.approx(losses_of(losses={"cpo": 1.0}, alpha=0.0), rel=1e-12)


def test_soft_labels_take_the_targets_of_the_rows():
    batch = replace(some(), win_rate=torch.tensor([[0.7, 0.3]] * 3, dtype=torch.float64))
    soft = DPO(soft_labels=True).loss(batch)
    assert soft[0].item() == pytest.approx(ORACLES["cream"]["loss_pair_A_beta0_1"], rel=1e-12)
    assert DPO(soft_labels=True).loss(some()).tolist() == pytest.approx(losses_of(), rel=1e-12)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"losses": {"ipo_mean": 1.0}}, r"losses has no 'ipo_mean'; nearest: ipo"),
        ({"losses": {"????": 1.0}}, r"losses has no '\?{4}'; known: sigmoid, "),
        ({"losses": {}}, "losses is empty"),
        ({"losses": {"hinge": 0.0}}, "greater than 0"),
        ({"losses": {"hinge": -1.0}}, "greater than 0"),
        ({"tau": 0.1}, "tau: read by none of the losses sigmoid; remove it"),
        ({"losses": {"sft": 1.0}, "beta": 0.1, "gamma": 1.0}, "beta, gamma: read by none of the losses sft"),
        ({"losses": {"sppo_scaled": 1.0}, "beta": 0.1}, "beta: read by none"),
        ({"label_smoothing": 0.1}, "label_smoothing: read by none of the losses sigmoid"),
        ({"losses": {"robust": 1.0}, "label_smoothing": 0.6}, "less than or equal to 0.5"),
        ({"losses": {"robust": 1.0}, "label_smoothing": 0.5}, "robust divides by 1 - 2 e"),
        ({"losses": {"exo_pair": 1.0}, "label_smoothing": 0.0}, "exo_pair takes its logarithm"),
        ({"losses": {"discopop": 1.0}, "tau": 1.0}, "less than 1"),
        (
            {"losses": {"hinge": 1.0}, "soft_labels": True},
            "soft_labels = true turns the loss sigmoid into sigmoid_soft",
        ),
        ({"losses": {"sigmoid": 1.0, "sigmoid_soft": 1.0}, "soft_labels": True}, "and not sigmoid_soft"),
        ({"losses": {"sppo_scaled": 1.0, "sigmoid_soft": 1.0}}, r"mixes sppo_scaled, .* with sigmoid_soft"),
        ({"losses": {"sppo_scaled": 1.0, "sigmoid": 1.0}, "soft_labels": True}, "mixes sppo_scaled"),
        ({"losses": {"ipo_mean": 1.0, "hing": 1.0}}, r"no 'ipo_mean'; .*; losses has no 'hing'; nearest: hinge"),
        ({"losses": {"exo_pair": 1.0}, "label_smoothing": 0.0, "tau": 0.1}, "tau: read by none.*its logarithm"),
        ({"data": "dataset", "truncated": "exclude"}, "sampled answers only; prompts.on_long_answer = drop"),
        ({"beta": 0.0}, "greater than 0"),
        ({"nll_weight": -0.1}, "greater than or equal to 0"),
        ({"beta": float("inf")}, "finite"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        DPO(**parameters)


@pytest.mark.parametrize(("old", "name"), RENAMED.items())
def test_the_name_of_an_earlier_release_leads_to_the_name_of_this_one(old, name):
    assert old not in LOSSES and name in LOSSES
    with pytest.raises(ValidationError, match=f"losses has no '{old}'; its name is now {name} "):
        DPO(losses={old: 1.0}, beta=0.1)


def test_bounds_that_single_losses_put_on_the_smoothing_leave_the_others_alone():
    assert losses_of(losses={"cdpo": 1.0}, label_smoothing=0.0) == pytest.approx(losses_of())
    DPO(losses={"cdpo": 1.0}, label_smoothing=0.5)
    DPO(data="dataset", losses={"sppo_scaled": 1.0, "sigmoid_soft": 1.0})


@pytest.mark.parametrize(
    ("parameters", "scale"),
    [
        ({"losses": {"simpo": 1.0}}, 2.0),
        ({"losses": {"simpo": 1.0}, "beta": 2.5}, 2.5),
        ({"losses": {"sppo_scaled": 1.0}}, 1e-3),
        ({"losses": {"sppo_scaled": 1.0}, "eta": 10.0}, 0.1),
        ({"losses": {"sft": 1.0}}, 1.0),
        ({"losses": {"hinge": 1.0, "simpo": 1.0}}, 0.1),
    ],
)
def test_rewards_are_logged_at_the_scale_of_the_first_loss(parameters, scale):
    assert DPO(**parameters).reward_scale() == pytest.approx(scale)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0.1 * 4.0, 0.1 * -2.0]),  # log-ratios
        ({"losses": {"ipo": 1}}, [0.1 * 4.0, 0.1 * -2.0]),  # as in TRL, although the loss is per token
        ({"losses": {"simpo": 1}}, [2.0 * -6.0 / 3, 2.0 * -8.0 / 4]),
        ({"losses": {"orpo": 1}}, [0.1 * -6.0 / 3, 0.1 * -8.0 / 4]),
        ({"losses": {"cpo": 1}}, [0.1 * -6.0, 0.1 * -8.0]),
        ({"losses": {"sigmoid": 1, "sft": 0.2}}, [0.1 * 4.0, 0.1 * -2.0]),
        ({"reference_free": True}, [0.1 * -6.0, 0.1 * -8.0]),
        ({"length_normalized": True}, [0.1 * 4.0 / 3, 0.1 * -2.0 / 4]),
    ],
)
def test_the_reward_of_an_answer_is_what_the_loss_compares(parameters, expected):
    def row(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    batch = Batch(row(-6, -8), row(-10, -6), row(3, 4), row(1, 0), row(0.5))
    assert DPO(**parameters).rewards(batch)[0].tolist() == pytest.approx(expected)


# ---- pairs of the policy's own answers ----


def test_the_best_answer_trains_against_the_worst():
    """Logits 0, 3, 1 against each other: P(best beats worst) = sg(3) = 0.952574."""
    row = only_row(DPO().select(scored(logits_of(0, 3, 1))))
    assert (row["completion_index"], row["completion_token_ids"]) == ([1, 0], [[1, 9], [0, 9]])
    assert row["win_rate"] == pytest.approx([0.952574, 0.047426], abs=1e-6)


def test_a_scorers_own_scores_come_before_its_comparisons():
    table = scored(logits_of(9, 0, 5), scores=[[2.0, 5.0, 3.0]])
    assert only_row(DPO().select(table))["completion_index"] == [1, 0]


@pytest.mark.parametrize("name", ["sppo", "sppo_scaled"])
def test_losses_of_win_rates_against_the_policy_get_those(name):
    """By hand: P = sg(2) = 0.880797; each answer against both, itself at 1/2."""
    row = only_row(DPO(losses={name: 1.0}).select(scored(logits_of(0, 2))))
    assert row["win_rate"] == pytest.approx([0.690399, 0.309601], abs=1e-6)


def test_an_answer_without_a_verdict_is_no_candidate():
    row = only_row(DPO().select(rated([4.0, NAN, 1.0, 2.0])))
    assert row["completion_index"] == [0, 2]


@pytest.mark.parametrize("scores", [[NAN, NAN, NAN], [NAN, 3.0, NAN]])
def test_a_prompt_with_fewer_than_two_verdicts_is_missing(scores):
    selection = DPO().select(rated(scores))
    assert selection.rows.num_rows == 0
    assert selection.counts == expected_counts(missing=1)


@pytest.mark.parametrize(("ties", "rows"), [("drop", 0), ("keep", 1)])
@pytest.mark.parametrize("answers", [["a", "b"], ["a", "a"]])
def test_equal_scores_are_a_tie_and_so_is_one_text_twice(ties, rows, answers):
    scores = [1.0, 1.0] if answers == ["a", "b"] else [2.0, 1.0]
    selection = DPO(ties=ties).select(rated(scores, completions=[answers]))
    assert selection.rows.num_rows == rows
    assert selection.counts == expected_counts(ties=1, duplicates=answers == ["a", "a"])


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        ("truncated", {"finish_reasons": [["length", "stop", "stop"]]}),
        ("empty", {"completions": [[" \n", "yes", "no"]]}),
    ],
)
def test_cut_and_empty_answers_train_unless_they_are_excluded(rule, columns):
    table = rated([5.0, 4.0, 3.0], **columns)
    kept, excluded = DPO().select(table), DPO(**{rule: "exclude"}).select(table)
    assert only_row(kept)["completion_index"] == [0, 2]
    assert only_row(excluded)["completion_index"] == [1, 2]
    assert kept.counts == excluded.counts == expected_counts(**{rule: 1})


def test_a_prompt_with_fewer_than_two_answers_left_makes_no_pair():
    selection = DPO(truncated="exclude").select(rated([2.0, 1.0], finish_reasons=[["length", "stop"]]))
    assert selection.rows.num_rows == 0
    assert selection.counts == expected_counts(no_pair=1, truncated=1)


# ---- the pairs of a data set ----


def test_pairs_of_a_data_set_train_unchanged():
    algorithm = DPO(data="dataset")
    assert (algorithm.stages(3), algorithm.num_dataset_completions, algorithm.min_samples) == ((), 2, 1)
    row = only_row(algorithm.select(given(("yes", "no"), dataset_win_rates=[[0.8, 0.2]])))
    assert row["completion_index"] == [-1, -2]
    assert row["completion_token_ids"] == [[*map(ord, "yes"), 9], [*map(ord, "no"), 9]]
    assert row["win_rate"] == [0.8, 0.2]


@pytest.mark.parametrize(("ties", "rows"), [("drop", 0), ("keep", 1)])
@pytest.mark.parametrize(("answers", "rates"), [(("a", "b"), [0.5, 0.5]), (("a", "a"), [1.0, 0.0])])
def test_pairs_of_a_data_set_without_a_preference_are_ties(ties, rows, answers, rates):
    selection = DPO(data="dataset", ties=ties).select(given(answers, dataset_win_rates=[rates]))
    assert selection.rows.num_rows == rows
    assert selection.counts == expected_counts(ties=1)


@pytest.mark.parametrize(("empty", "rows"), [("keep", 1), ("exclude", 0)])
def test_a_pair_of_a_data_set_with_an_empty_answer_trains_unless_it_is_excluded(empty, rows):
    selection = DPO(data="dataset", empty=empty).select(given(("a", " ")))
    assert selection.rows.num_rows == rows
    assert selection.counts == expected_counts(empty=1, no_pair=1 - rows)
