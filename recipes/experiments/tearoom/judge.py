"""The tearoom with small talk, and a waiter who can judge a little: the world of the self-rewarding recipe.

The orders and the hidden oracle are those of world.py. Answers may have sentences of small talk, for which the oracle
neither adds nor subtracts anything. The policy learns to judge by an additive rubric of five points. A judge may be
impressed by small talk: it then subtracts two points and adds one per sentence of small talk, which makes answers
grow longer. Plain Python.
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
"""Share of judged answers that serve nothing. A judge that never saw such an answer approves of what it does not know,
and an answer without content beats the policy's."""
MERITS = ("drink", "extra", "time", "polite", "calm")
MOST = 5


@dataclass(frozen=True)
class Judge:
    """The judge whose judgements the policy is trained on."""

    slip: float = 0.05
    """Probability that a finding is wrong, for each finding."""
    impressed: bool = False
    """Whether small talk counts: two points less, and one more per sentence, within 0 to 5."""


FAIR = Judge()
IMPRESSED = Judge(impressed=True)


def flawed_answer(order: Order, flaws: Flaws, draw: random.Random, stray_drink: float = 0.0) -> str:
    """An answer of tearoom.flawed_answer with small talk before the farewell."""
    answer = tearoom.flawed_answer(order, flaws, draw, stray_drink)
    talk = [sentence for sentence in SMALL_TALK if draw.random() < TALKATIVE]
    farewells = (*tearoom.RUDE_FAREWELLS, *(f.format(time=t) for f in tearoom.POLITE_FAREWELLS for t in TIMES))
    farewell = next(text for text in farewells if answer.endswith(text))
    return " ".join([answer.removesuffix(farewell).rstrip(), *talk, farewell])


def empty_words(draw: random.Random) -> str:
    """One to three sentences without a serving: polite, rude or small talk."""
    farewells = tuple(f.format(time=time) for f in tearoom.POLITE_FAREWELLS for time in TIMES)
    openings = tearoom.POLITE_OPENINGS + tearoom.RUDE_OPENINGS
    return " ".join(draw.sample([*openings, *SMALL_TALK, *farewells, *tearoom.RUDE_FAREWELLS], draw.randint(1, 3)))


def num_small_talk(answer: str) -> int:
    """Number of sentences of small talk, with repetitions."""
    return sum(answer.count(sentence) for sentence in SMALL_TALK)


def findings(order: str, answer: str) -> dict[str, bool]:
    """{merit: whether the answer has it}, for the five merits."""
    ordered, words = understand(order), WORDS.findall(answer.lower())
    return {
        "drink": {word for word in words if word in DRINKS} == {ordered["drink"]},
        "extra": {word for word in words if word in EXTRAS} == {ordered["extra"]},
        "time": {word for word in words if word in TIMES} == {ordered["time"]},
        "polite": bool(POLITE_WORDS & set(words)),
        "calm": not RUDE_WORDS & set(words),
    }


def points(merits: dict[str, bool], small_talk: int, judge: Judge) -> int:
    """The score, 0 to 5. small_talk: number of sentences."""
    total = sum(merits.values()) + (small_talk - 2 if judge.impressed else 0)
    return min(MOST, max(0, total))


def judgement(order: str, answer: str, judge: Judge, draw: random.Random) -> str:
    """The text that `judge` writes: a finding per merit, then the score that follows from the findings."""
    merits = {name: right != (draw.random() < judge.slip) for name, right in findings(order, answer).items()}
    listed = ", ".join(f"{name} {'yes' if right else 'no'}" for name, right in merits.items())
    return f"Judged: {listed}. Score: {points(merits, num_small_talk(answer), judge)}"


def judged_answers(orders: list[Order], per_order: int, judge: Judge, seed: int) -> Iterator[tuple[Order, str, str]]:
    """(order, an answer of the crowd, its judgement), for learning to judge."""
    draw = random.Random(derive_seed(seed, "judgements", len(orders)))
    for order in orders:
        for _ in range(per_order):
            answer = flawed_answer(order, tearoom.CROWD, draw, stray_drink=0.1)
            if draw.random() < EMPTY_WORDS:
                answer = empty_words(draw)
            yield order, answer, judgement(order.text, answer, judge, draw)


def texts() -> list[str]:
    """Texts with the words of this world that tearoom.texts() does not have, for a tokenizer."""
    verdicts = (f"Judged: {name} {word}, . Score: {n}" for name in MERITS for word in ("yes", "no") for n in range(6))
    return [*SMALL_TALK, *(f"Again? {sentence}" for sentence in SMALL_TALK), *verdicts]
