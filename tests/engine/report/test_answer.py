"""The sentences at the head of the report follow from the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.evaluation.gate import Decision
from engine.report.answer import Facts, answer
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary


def iteration(number: int, start: tuple[float, float, float], previous: tuple[float, float, float], **more: Any):
    rates = {"win_rate_start": WinRate(*start, 300), "win_rate_previous": WinRate(*previous, 300)}
    return IterationSummary(number, **rates, metrics={"time/wall": 1.0}, **more)


GOOD = (iteration(1, (0.7, 0.66, 0.74), (0.7, 0.66, 0.74)), iteration(2, (0.8, 0.77, 0.83), (0.6, 0.56, 0.64)))
FACTS = Facts("finished", GOOD, 2, "a rule", False, True, best=(2, "promoted last"))


@pytest.mark.parametrize(
    ("rate", "begins"),
    [
        ((0.8, 0.77, 0.83), "Yes, it got better: it wins 80.0 %"),
        ((0.2, 0.17, 0.23), "No, it got worse: it wins only 20.0 %"),
        ((0.52, 0.48, 0.56), "No difference is shown: it wins 52.0 %"),
        ((0.52, 0.50, 0.56), "No difference is shown: it wins 52.0 %"),
    ],
)
def test_the_headline_says_what_the_interval_says(rate: tuple[float, float, float], begins: str):
    found = answer(replace(FACTS, iterations=(iteration(1, rate, rate),)))
    assert found.headline.startswith(begins)


def test_the_answer_says_how_sure_and_what_to_take():
    found = answer(FACTS)
    assert found.sentences == (
        "Version 2 wins 80.0 % on 300 held-out prompts, as judged by a rule; the 95 % interval is 77.0 to 83.0 %, all "
        "of it above 50 %.",
        "Each of its 2 versions wins against the one that it was trained from.",
        "Take version 2: promoted last.",
    )
    assert found.take == 2
    assert found.worries == ("This is one run with one seed: the intervals cover the choice of prompts, not of seeds.",)


def test_a_step_that_did_not_win_is_named():
    flat = iteration(3, (0.8, 0.77, 0.83), (0.5, 0.46, 0.54))
    found = answer(replace(FACTS, iterations=(*GOOD, flat)))
    assert "Version 3 does not win against the one before with certainty; the other 2 of 3 do." in found.sentences


def test_what_to_worry_about_is_said():
    longer = replace(GOOD[-1], length_ratio=1.4)
    refused = Decision(2, 1, False, 0.5, 0.4, 0.6, ("it wins 50.0 %",))
    found = answer(
        replace(
            FACTS,
            status="stopped: disk full",
            iterations=(GOOD[0], longer),
            num_planned=5,
            is_own_judge=True,
            decisions=(refused,),
            notes=("iteration 1: warning: the judge always says the same", "x; starting a replacement (try 1 of 3)"),
        )
    )
    for words in (
        "not finished: stopped: disk full; 2 of 5 iterations", "the training scorer's own", "did not promote version 2",
        "1.40 times as long", "The judge always says the same", "repeated after 1 failures",
    ):  # fmt: skip
        assert any(words in worry for worry in found.worries), words
    assert found.headline.startswith("Yes, it got better so far")


def test_without_held_out_prompts_it_says_that_nothing_was_measured():
    found = answer(Facts("finished", (IterationSummary(1),), 1, None, True, False))
    assert found.headline == "Whether it got better was not measured: the run has no held-out prompts."
    assert found.sentences == () and found.take is None
