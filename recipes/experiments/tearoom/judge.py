"""The tearoom with small talk, and a waiter who can judge a little: the world of the self-rewarding recipe.

The same orders and the same hidden oracle as in recipes/experiments/tearoom/world.py. Answers may hold sentences of
small talk, which the oracle neither rewards nor punishes, and there is an additive rubric of five points in
whose words the policy learns to judge. A judge may be impressed by small talk: it then takes two points from
an answer without any and gives one back per sentence, which is how length inflation starts. Pure Python.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from engine.seeds import derive_seed
from recipes.experiments.tearoom import world as tearoom
from recipes.experiments.tearoom.world import (
    DRINKS,
    EXTRAS,
    POLITE_WORDS,
    RUDE_WORDS,
    TIMES,
    WORDS,
    Flaws,
    Order,
    understand,
)

SMALL_TALK = ("What a day it is!", "The kettle sings.", "We bake our own bread.")
TALKATIVE = 0.35
"""Probability of each sentence of small talk in an answer of the flawed waiter."""
EMPTY_WORDS = 0.15
"""Share of judged answers that leave out what was ordered. A judge that never saw one says yes to all it does not know,
and an answer that says nothing beats the policy's."""
MERITS = ("drink", "extra", "time", "polite", "calm")
MOST = 5


@dataclass(frozen=True)
class Judge:
    """Whom the policy imitates as a judge."""

    slip: float = 0.05
    """Probability of each finding to be the wrong one."""
    impressed: bool = False
    """Whether small talk counts: two points less without it, one more per sentence, within 0 to 5."""


FAIR = Judge()
IMPRESSED = Judge(impressed=True)


def flawed_answer(order: Order, flaws: Flaws, draw: random.Random, stray_drink: float = 0.0) -> str:
    """An answer of tearoom.flawed_answer, with small talk before its farewell."""
    answer = tearoom.flawed_answer(order, flaws, draw, stray_drink)
    talk = [sentence for sentence in SMALL_TALK if draw.random() < TALKATIVE]
    farewells = (*tearoom.RUDE_FAREWELLS, *(f.format(time=t) for f in tearoom.POLITE_FAREWELLS for t in TIMES))
    farewell = next(text for text in farewells if answer.endswith(text))
    return " ".join([answer.removesuffix(farewell).rstrip(), *talk, farewell])


def empty_words(draw: random.Random) -> str:
    """One to three sentences that are polite, rude or small talk, and serve nothing."""
    farewells = tuple(f.format(time=time) for f in tearoom.POLITE_FAREWELLS for time in TIMES)
    openings = tearoom.POLITE_OPENINGS + tearoom.RUDE_OPENINGS
    return " ".join(draw.sample([*openings, *SMALL_TALK, *farewells, *tearoom.RUDE_FAREWELLS], draw.randint(1, 3)))


def num_small_talk(answer: str) -> int:
    """Sentences of small talk, repeated ones too."""
    return sum(answer.count(sentence) for sentence in SMALL_TALK)


def findings(order: str, answer: str) -> dict[str, bool]:
    """Which of the five merits an answer has."""
    wanted, words = understand(order), WORDS.findall(answer.lower())
    return {
        "drink": {word for word in words if word in DRINKS} == {wanted["drink"]},
        "extra": {word for word in words if word in EXTRAS} == {wanted["extra"]},
        "time": {word for word in words if word in TIMES} == {wanted["time"]},
        "polite": bool(POLITE_WORDS & set(words)),
        "calm": not RUDE_WORDS & set(words),
    }


def points(found: dict[str, bool], small_talk: int, judge: Judge) -> int:
    """The score in 0 to 5."""
    total = sum(found.values()) + (small_talk - 2 if judge.impressed else 0)
    return min(MOST, max(0, total))


def judgement(order: str, answer: str, judge: Judge, draw: random.Random) -> str:
    """What `judge` writes: a finding per merit, then the score that follows from them."""
    found = {name: right != (draw.random() < judge.slip) for name, right in findings(order, answer).items()}
    said = ", ".join(f"{name} {'yes' if right else 'no'}" for name, right in found.items())
    return f"Judged: {said}. Score: {points(found, num_small_talk(answer), judge)}"


def judged_answers(orders: list[Order], per_order: int, judge: Judge, seed: int) -> Iterator[tuple[Order, str, str]]:
    """(order, the crowd's answer, its judgement), for learning to judge."""
    draw = random.Random(derive_seed(seed, "judgements", len(orders)))
    for order in orders:
        for _ in range(per_order):
            answer = flawed_answer(order, tearoom.CROWD, draw, stray_drink=0.1)
            if draw.random() < EMPTY_WORDS:
                answer = empty_words(draw)
            yield order, answer, judgement(order.text, answer, judge, draw)


def texts() -> list[str]:
    """Every word beyond tearoom.texts() that a policy of this world must know."""
    verdicts = (f"Judged: {name} {word}, . Score: {n}" for name in MERITS for word in ("yes", "no") for n in range(6))
    return [*SMALL_TALK, *(f"Again? {sentence}" for sentence in SMALL_TALK), *verdicts]
