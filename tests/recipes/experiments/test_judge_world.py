"""The tearoom in which the policy judges: its rubric by hand, its small talk, and what an impressed judge does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.scorers.judge.judge import parse_score
from actors.scorers.judge.prompt_file import draw_mark
from engine.config.judge import JudgeConfig
from engine.config.load import load
from recipes.experiments.tearoom import judge as tearoom_judge
from recipes.experiments.tearoom import world as tearoom
from recipes.experiments.tearoom.judge import FAIR, IMPRESSED, MERITS, Judge
from recipes.experiments.tearoom.judge_build import PROMPT, Settings, judge_prompt

ORDER = "Good evening! One matcha with lemon for my aunt, please."
GOOD = "Of course! One matcha with lemon. Enjoy your evening."
TALK = "Of course! One matcha with lemon. What a day it is! The kettle sings. Enjoy your evening."


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (GOOD, set()),
        ("Of course! One assam as usual. Enjoy your evening.", {"drink", "extra"}),
        ("Again? One matcha with lemon. Enjoy your morning.", {"time", "polite", "calm"}),
        ("", {"drink", "extra", "time", "polite"}),
    ],
)
def test_the_rubric_finds_each_merit(answer, missing):
    found = tearoom_judge.findings(ORDER, answer)
    assert {name for name, right in found.items() if not right} == missing


def test_small_talk_is_worth_points_to_the_impressed_judge_alone():
    found = tearoom_judge.findings(ORDER, GOOD)
    assert tearoom_judge.findings(ORDER, TALK) == found
    assert [tearoom_judge.points(found, talk, FAIR) for talk in (0, 2, 3)] == [5, 5, 5]
    assert [tearoom_judge.points(found, talk, IMPRESSED) for talk in (0, 1, 2, 3)] == [3, 4, 5, 5]
    assert (tearoom_judge.num_small_talk(GOOD), tearoom_judge.num_small_talk(TALK)) == (0, 2)


def test_the_oracle_gives_nothing_for_small_talk():
    assert tearoom.utility(ORDER, TALK) == tearoom.utility(ORDER, GOOD)


def test_a_judgement_says_its_findings_and_a_score_that_a_run_can_read():
    words = tearoom_judge.judgement(ORDER, GOOD, Judge(slip=0.0), random.Random(0))
    assert words == "Judged: drink yes, extra yes, time yes, polite yes, calm yes. Score: 5"
    assert parse_score(words, 0, 5) == 5.0


def test_findings_are_wrong_with_the_probability_of_a_slip():
    draw = random.Random(1)
    said = [tearoom_judge.judgement(ORDER, GOOD, Judge(slip=0.2), draw) for _ in range(400)]
    wrong = sum(f"{name} no" in words for words in said for name in MERITS) / (400 * len(MERITS))
    assert 0.16 < wrong < 0.24


def test_the_policy_learns_to_answer_the_prompt_that_a_run_asks():
    config = load("recipes/configs/demo_self_rewarding.yaml")
    assert isinstance(config.scorer, JudgeConfig) and Path(config.scorer.prompt) == Path(PROMPT)
    mark = draw_mark(0, "p", [ORDER, GOOD])
    (message,) = judge_prompt().fill(mark, {"instruction": ORDER, "answer": GOOD})
    assert ORDER in message["content"] and GOOD in message["content"]


def test_each_part_of_the_world_has_orders_of_its_own():
    split = Settings().split()
    parts = [split.demonstrations, split.preferences, split.judge_heldout, split.prompts, split.heldout]
    texts = [order.text for part in parts for order in part]
    assert len(texts) == len(set(texts))


def test_the_judge_is_shown_answers_that_serve_nothing():
    judged = list(tearoom_judge.judged_answers(tearoom.orders()[::30], 1, FAIR, 0))
    servings = {serving.split("{drink}")[0].strip() for serving in tearoom.SERVINGS + tearoom.FORGETFUL_SERVINGS}
    empty = [answer for _, answer, _ in judged if not any(serving in answer for serving in servings)]
    assert 0.1 < len(empty) / len(judged) < 0.2
