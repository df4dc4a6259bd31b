"""The losses against values that were computed without Kumite, and their properties for any values."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.algorithms.losses import LOSSES, Pairs, bradley_terry_rm, kto
from tests.oracles import ORACLES, PRINTED, TOLERANCE, keywords, name_of, pairs_of, pairs_of_row, rows_of

NOT_OF_PAIRS = {"kto", "bradley_terry_rm"}
WITHOUT_A_ROW = {
    "sft": "one division; the rows of cpo and rpo contain it",
    "sigmoid_soft": "the block `cream` has its value",
}
OF_THE_MARGIN_ALONE = {
    *("sigmoid", "cdpo", "sigmoid_soft", "robust", "hinge", "ipo_sum", "exo_pair", "discopop"),
    *("margin_sigmoid", "aot"),
}
WITHOUT_A_REFERENCE = {"simpo", "sft", "cpo", "orpo"}
WITH_A_LIKELIHOOD = WITHOUT_A_REFERENCE | {"rpo"}
OF_THE_BATCH = {"aot", "aot_unpaired", "bco_pair_shifted"}
LOG2 = math.log(2)
AT_THE_REFERENCE = {
    "sigmoid": LOG2,
    "cdpo": LOG2,
    "sigmoid_soft": LOG2,
    "robust": LOG2,
    "hinge": 1.0,
    "ipo_sum": 25.0,  # 1 / (4 beta^2)
    "ipo": 25.0,
    "exo_pair": -LOG2 - 0.5 * math.log(0.999 * 0.001),
    "nca_pair": 2 * LOG2,
    "bco_pair": 2 * LOG2,
    "bco_pair_shifted": 2 * LOG2,
    "sppo": 0.0,  # at win rates of 1/2
    "sppo_scaled": 0.0,
    "sppo_single": 0.0,
    "sppo_hard": 50.0,  # 1 / (2 beta^2)
    "aot": LOG2,
    "aot_unpaired": LOG2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "apo_hinge": 2.0,  # 2 m
    "apo_hinge_double_beta": 2.0,
    "apo_hinge_softplus": 2 * math.log1p(math.e),
    "margin_sigmoid": LOG2 - 0.1,
    "discopop": (LOG2 + 1) / 2,
    "sigmoid_norm": LOG2,
}


def random_pairs(rows: int = 6) -> Pairs:
    """Answers of 5 to 24 tokens, log-ratios of a few nats."""
    source = torch.Generator().manual_seed(7)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=source, dtype=torch.float64)

    chosen, rejected = uniform(-60, -20), uniform(-60, -20)
    return Pairs(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=chosen + uniform(-4, 4),
        reference_rejected=rejected + uniform(-4, 4),
        chosen_tokens=uniform(5, 25).floor(),
        rejected_tokens=uniform(5, 25).floor(),
        chosen_win=uniform(0.5, 1.0),
        rejected_win=uniform(0.0, 0.5),
    )


def shifted(pairs: Pairs, **nats: Tensor | float) -> Pairs:
    return replace(pairs, **{name: getattr(pairs, name) + amount for name, amount in nats.items()})


def part(pairs: Pairs, rows: Any) -> Pairs:
    return Pairs(*(getattr(pairs, name)[rows] for name in Pairs.__dataclass_fields__))


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9)


# ---- against the independent numbers ----


def test_every_loss_has_independent_numbers_and_every_number_a_loss():
    assert {row["loss"] for row in ORACLES["losses"]} == (LOSSES.keys() - WITHOUT_A_ROW.keys()) | NOT_OF_PAIRS


def test_every_loss_of_trls_dpo_trainer_has_trls_name():
    """`loss_type` of TRL 1.16; the rows' `cross_check` says which values were compared with it."""
    names = (
        "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft"
    )
    assert {*names.split(), "sigmoid_norm"} <= LOSSES.keys()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of(*LOSSES), ids=name_of)
def test_a_loss_has_the_independent_value(row, dtype):
    value = LOSSES[row["loss"]](pairs_of_row(row, dtype), **keywords(row))
    assert (value.dtype, value.shape) == (dtype, (len(row["inputs"]) if isinstance(row["inputs"], list) else 1,))
    assert value.mean().item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])
    assert value.mean().item() == pytest.approx(row["value"], rel=TOLERANCE[dtype], abs=PRINTED)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", [row for row in rows_of(*LOSSES) if "grad" in row], ids=name_of)
def test_a_loss_has_the_independent_gradient(row, dtype):
    pairs = pairs_of_row(row, dtype)
    value = LOSSES[row["loss"]](pairs, **keywords(row))
    chosen, rejected = torch.autograd.grad(value.sum(), (pairs.chosen, pairs.rejected), materialize_grads=True)
    expected = [row["grad"]["policy_chosen_logps"], row["grad"]["policy_rejected_logps"]]
    assert [chosen.item(), rejected.item()] == pytest.approx(expected, rel=TOLERANCE[dtype], abs=PRINTED)


@pytest.mark.parametrize("row", rows_of(*LOSSES), ids=name_of)
def test_a_gradient_is_the_slope_of_the_value(row):
    """Central differences, for the batch losses too, of which the file has values alone."""
    pairs = pairs_of_row(row)

    def value(chosen: Tensor, rejected: Tensor) -> Tensor:
        return LOSSES[row["loss"]](replace(pairs, chosen=chosen, rejected=rejected), **keywords(row))

    assert torch.autograd.gradcheck(value, (pairs.chosen, pairs.rejected), eps=1e-5, atol=1e-5)


def test_a_soft_label_has_creams_value_and_hard_labels_give_dpo():
    """Consistency 0.7 on pair A, by hand: 0.7 * 0.620957 + 0.3 * 0.770957 = 0.665957."""
    case = rows_of("sigmoid")[0]["inputs"]
    cream = ORACLES["cream"]
    soft = LOSSES["sigmoid_soft"](pairs_of(case, cream["consistency"]))
    assert soft.item() == pytest.approx(cream["loss_pair_A_beta0_1"], rel=1e-12)
    hard = LOSSES["sigmoid_soft"](pairs_of(case, 1.0))
    assert hard.item() == pytest.approx(LOSSES["sigmoid"](pairs_of(case)).item(), rel=1e-12)


def test_the_likelihood_is_per_token():
    assert LOSSES["sft"](pairs_of(rows_of("sigmoid")[0]["inputs"])).item() == pytest.approx(20.5 / 10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of("kto"), ids=name_of)
def test_kto_has_the_independent_value(row, dtype):
    answers = torch.tensor(row["inputs"]["chosen_policy_ref"] + row["inputs"]["rejected_policy_ref"], dtype=dtype)
    ratios = (answers[:, 0] - answers[:, 1]).requires_grad_()
    values = kto(ratios, torch.tensor([True, True, False, False]), **keywords(row))
    assert values.mean().item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])
    up, down = torch.autograd.grad(values.sum(), ratios)[0].split(2)
    assert (up < 0).all() and (down > 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", rows_of("bradley_terry_rm"), ids=name_of)
def test_a_reward_models_loss_has_the_independent_value(row, dtype):
    rewards = [torch.tensor([row["inputs"][name]], dtype=dtype) for name in ("r_chosen", "r_rejected")]
    value = bradley_terry_rm(*rewards, **keywords(row))
    assert value.item() == pytest.approx(row["value_full"], rel=TOLERANCE[dtype])


@pytest.mark.parametrize("row", rows_of("kto", "bradley_terry_rm"), ids=name_of)
def test_the_other_gradients_are_slopes_too(row):
    desirable = torch.tensor([True, False])
    inputs = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    loss = {
        "kto": lambda x: kto(x, desirable, **keywords(row)),
        "bradley_terry_rm": lambda x: bradley_terry_rm(x[:1], x[1:], **keywords(row)),
    }[row["loss"]]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-5, atol=1e-6)


# ---- what a loss may depend on ----


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_compares_with_the_reference_unless_it_has_none(name):
    """The same nats on top of policy and reference say nothing about either; AOT sorts both by themselves."""
    pairs, nats = random_pairs(), torch.linspace(-5, 5, 6, dtype=torch.float64)
    amounts = (nats.mean(), nats.mean() + 1) if name == "aot" else (nats, -2 * nats)
    chosen, rejected = amounts
    both = shifted(pairs, chosen=chosen, reference_chosen=chosen, rejected=rejected, reference_rejected=rejected)
    assert equal(LOSSES[name](both), LOSSES[name](pairs)) == (name not in WITH_A_LIKELIHOOD)
    other = shifted(pairs, reference_chosen=chosen + 1)
    assert equal(LOSSES[name](other), LOSSES[name](pairs)) == (name in WITHOUT_A_REFERENCE)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_sees_the_margin_alone_or_where_each_answer_stands(name):
    """Both answers far less likely: beyond the bends of the APO hinges, between which they see the margin alone."""
    pairs, nats = random_pairs(), torch.linspace(-150, -200, 6, dtype=torch.float64)
    both = shifted(pairs, chosen=nats, rejected=nats)
    assert equal(LOSSES[name](both), LOSSES[name](pairs)) == (name in OF_THE_MARGIN_ALONE)


@pytest.mark.parametrize("name", LOSSES)
def test_only_losses_that_sort_or_average_the_batch_depend_on_how_it_is_split(name):
    pairs = random_pairs()
    whole = LOSSES[name](pairs)
    parts = torch.cat([LOSSES[name](part(pairs, slice(i, i + 2))) for i in (0, 2, 4)])
    assert equal(whole, parts) == (name not in OF_THE_BATCH)
    assert equal(whole.mean(), parts.mean()) == (name not in OF_THE_BATCH)


def test_a_shift_that_is_given_makes_bco_a_loss_of_single_pairs():
    pairs, loss = random_pairs(), LOSSES["bco_pair_shifted"]
    assert equal(loss(pairs, delta=0.3)[:2], loss(part(pairs, slice(0, 2)), delta=0.3))
    assert equal(loss(pairs, delta=0.0), LOSSES["bco_pair"](pairs))


def test_sppo_treats_chosen_and_rejected_alike_and_reads_their_win_rates():
    pairs = random_pairs()
    roles = ("chosen", "reference_chosen", "chosen_tokens", "chosen_win")
    others = ("rejected", "reference_rejected", "rejected_tokens", "rejected_win")
    swap = dict(zip(roles + others, others + roles, strict=True))
    swapped = Pairs(*(getattr(pairs, swap[name]) for name in Pairs.__dataclass_fields__))
    for name in ("sppo", "sppo_scaled"):
        assert equal(LOSSES[name](swapped), LOSSES[name](pairs))
    opposite = replace(swapped, chosen_win=1 - pairs.chosen_win)
    assert equal(LOSSES["sppo_single"](opposite), LOSSES["sppo_single"](pairs))
    assert not equal(LOSSES["sppo_hard"](swapped), LOSSES["sppo_hard"](pairs))


# ---- where training starts, and where it may end ----


def at_the_reference(win: float) -> Pairs:
    pairs = random_pairs()
    return replace(
        pairs,
        chosen=pairs.reference_chosen.clone().requires_grad_(),
        rejected=pairs.reference_rejected.clone().requires_grad_(),
        chosen_win=torch.full_like(pairs.chosen_win, win),
        rejected_win=torch.full_like(pairs.chosen_win, 1 - win),
    )


def test_every_loss_with_a_reference_has_a_known_start():
    assert AT_THE_REFERENCE.keys() == LOSSES.keys() - WITH_A_LIKELIHOOD


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_a_loss_starts_where_algebra_says(name):
    assert LOSSES[name](at_the_reference(0.5)).tolist() == pytest.approx([AT_THE_REFERENCE[name]] * 6, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_first_step_widens_the_margin(name):
    """Not always by raising the chosen answer: APO-down lowers both, the rejected one further.

    DiscoPOP's blend outweighs its parts at 0: its slope there is beta (-3/4 + (1 - log 2) / (4 tau)), by hand.
    """
    pairs = at_the_reference(0.9)
    loss = LOSSES[name](pairs).mean()
    chosen, rejected = torch.autograd.grad(loss, (pairs.chosen, pairs.rejected), materialize_grads=True)
    assert torch.equal(chosen < rejected, torch.full((6,), name != "discopop"))
    if name == "discopop":
        assert 6 * chosen.tolist()[0] == pytest.approx(0.1 * (-0.75 + (1 - LOG2) / (4 * 0.05)), rel=1e-9)


@pytest.mark.parametrize("name", ["sppo", "sppo_scaled", "sppo_single"])
def test_sppo_at_the_reference_without_a_preference_asks_for_no_change(name):
    pairs = at_the_reference(0.5)
    chosen, rejected = torch.autograd.grad(LOSSES[name](pairs).sum(), (pairs.chosen, pairs.rejected))
    assert torch.count_nonzero(chosen) == torch.count_nonzero(rejected) == 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_impossible_and_certain_answers_of_one_token_still_give_numbers(name, dtype):
    """All log-ratios of -1e4, 0 and 1e4, exact zeros among the log-probabilities, and certain labels."""
    corners = torch.tensor([*product([0.0, -1e-8, -1e4], [0.0, -1e4], [0.0, -1e4], [0.0, -1e4], [0.0, 0.5, 1.0])])
    chosen, rejected, reference_chosen, reference_rejected, win = corners.to(dtype).unbind(dim=1)
    one = torch.ones_like(win)
    chosen, rejected = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    pairs = Pairs(chosen, rejected, reference_chosen, reference_rejected, one, one, win, 1 - win)
    values = LOSSES[name](pairs)
    slopes = torch.autograd.grad(values.sum(), (chosen, rejected), materialize_grads=True)
    assert values.dtype == dtype
    assert all(torch.isfinite(t).all() for t in (values, *slopes))
