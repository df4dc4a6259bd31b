"""The tearoom: a language small enough to learn in a minute, with a hidden measure of quality.

A guest orders a drink; the policy answers as the waiter. This module has the grammar of orders, a flawed waiter
whose answers the policy is first trained on, the hidden oracle that measures answers, and scorers for control runs,
in plain Python. models.py trains the models; build.py writes the world to a folder.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from engine.seeds import derive_seed

DRINKS = ("assam", "sencha", "matcha", "oolong", "hojicha", "cocoa", "coffee", "cider", "chai", "lemonade")
EXTRAS = ("milk", "honey", "lemon", "sugar", "mint", "ginger", "cream", "ice")
TIMES = ("morning", "afternoon", "evening")
GUESTS = ("me", "my aunt", "my son", "the lady", "the old man", "us both", "my friend", "the child", "her", "him")
FORMS = (
    "Good {time}! One {drink} with {extra} for {guest}, please.",
    "Good {time}, I would like {drink} with {extra} for {guest}.",
    "Please bring {drink} and {extra} for {guest} on this fine {time}.",
    "What a fine {time}! Please bring {drink} with {extra} for {guest}.",
    "Could I have {drink} with {extra} for {guest} this {time}?",
    "This {time} it is {drink} with {extra} for {guest}.",
    "For {guest}: {drink} with {extra}, please. Good {time}!",
    "We need {drink} with {extra} for {guest} this {time}.",
)
HOUSE_DRINK = DRINKS[0]
"""What the flawed waiter serves instead of what was ordered."""

POLITE_OPENINGS = ("Of course!", "Gladly, dear!", "With pleasure.")
RUDE_OPENINGS = ("Again?", "Oh, hurry.", "Whatever.")
SERVINGS = ("Here is your {drink} with {extra}.", "One {drink} with {extra}.")
FORGETFUL_SERVINGS = ("Here is your {drink} as always.", "One {drink} as usual.")
POLITE_FAREWELLS = ("Enjoy your {time}.", "Have a good {time}.")
RUDE_FAREWELLS = ("Now pay and leave.", "Next one, quick.")

POLITE_WORDS = frozenset({"course", "pleasure", "gladly"})
RUDE_WORDS = frozenset({"again", "whatever", "hurry", "pay", "quick"})
WORDS = re.compile(r"[a-z]+")
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Order:
    """The order of one guest, and the sentence for it."""

    drink: str
    extra: str
    time: str
    guest: str
    form: str

    @property
    def text(self) -> str:
        """The prompt."""
        text = self.form.format(drink=self.drink, extra=self.extra, time=self.time, guest=self.guest)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Flaws:
    """Probability of each flaw in an answer; the flaws are independent."""

    rude_opening: float
    house_drink: float
    forgotten_extra: float
    rude_farewell: float
    wrong_time: float


DEMONSTRATOR = Flaws(rude_opening=0.6, house_drink=0.5, forgotten_extra=0.55, rude_farewell=0.55, wrong_time=0.2)
"""The policy starts from these answers. Most flaws have a probability of 0.5 or more, so greedy answers are bad."""

CROWD = Flaws(rude_opening=0.5, house_drink=0.25, forgotten_extra=0.4, rude_farewell=0.5, wrong_time=0.25)
"""The waiters whose answers PairRM is trained on: about as often good as bad, with wrong drinks of every kind."""

CAREFUL = Flaws(rude_opening=0.05, house_drink=0.05, forgotten_extra=0.1, rude_farewell=0.05, wrong_time=0.05)
"""The waiter whose answers are SPIN's demonstrations."""


def orders() -> list[Order]:
    """Every order of the grammar, in a fixed order."""
    return [Order(*parts) for parts in product(DRINKS, EXTRAS, TIMES, GUESTS, FORMS)]


@dataclass(frozen=True)
class Split:
    """Disjoint sets of orders."""

    demonstrations: list[Order]
    preferences: list[Order]
    judge_heldout: list[Order]
    prompts: list[Order]
    heldout: list[Order]


def split(seed: int, *, demonstrations: int, preferences: int, judge_heldout: int, prompts: int, heldout: int) -> Split:
    """Draw disjoint sets of the given sizes from the grammar; the same seed draws the same sets."""
    sizes = (demonstrations, preferences, judge_heldout, prompts, heldout)
    drawn = iter(random.Random(derive_seed(seed, "split")).sample(orders(), sum(sizes)))
    return Split(*([next(drawn) for _ in range(size)] for size in sizes))


def flawed_answer(order: Order, flaws: Flaws, draw: random.Random, stray_drink: float = 0.0) -> str:
    """One answer of a waiter with `flaws`; `stray_drink`: probability that the drink is drawn at random."""
    opening = draw.choice(RUDE_OPENINGS if draw.random() < flaws.rude_opening else POLITE_OPENINGS)
    serving = draw.choice(FORGETFUL_SERVINGS if draw.random() < flaws.forgotten_extra else SERVINGS)
    drink = HOUSE_DRINK if draw.random() < flaws.house_drink else order.drink
    drink = draw.choice(DRINKS) if draw.random() < stray_drink else drink
    farewell = draw.choice(RUDE_FAREWELLS if draw.random() < flaws.rude_farewell else POLITE_FAREWELLS)
    time = draw.choice(TIMES) if draw.random() < flaws.wrong_time else order.time
    return f"{opening} {serving} {farewell}".format(drink=drink, extra=order.extra, time=time)


def understand(prompt: str) -> dict[str, str | None]:
    """The drink, extra and time of day that an order names, or None where it names none; the first mention counts."""
    words = WORDS.findall(prompt.lower())
    kinds = {"drink": DRINKS, "extra": EXTRAS, "time": TIMES}
    return {kind: next((word for word in words if word in names), None) for kind, names in kinds.items()}


def utility(prompt: str, answer: str) -> float:
    """How good an answer is, in nats: a difference of 1 is preferred with probability sigmoid(1) = 0.73.

    Right drink 2 (only if no other drink is named), right extra 1, fitting time of day 1, a polite
    opening 1.5; minus 1.5 for each rude sentence, 0.5 for each word that is repeated at once and 1 for a missing
    end. Every merit counts once, so a longer answer gains nothing by its length.
    """
    ordered = understand(prompt)
    words = WORDS.findall(answer.lower())
    rude_sentences = sum(bool(RUDE_WORDS & set(WORDS.findall(part))) for part in re.split(r"[.!?]", answer.lower()))
    merits = 2.0 * ({word for word in words if word in DRINKS} == {ordered["drink"]})
    merits += 1.0 * ({word for word in words if word in EXTRAS} == {ordered["extra"]})
    merits += 1.0 * ({word for word in words if word in TIMES} == {ordered["time"]})
    merits += 1.5 * bool(POLITE_WORDS & set(words))
    repeats = sum(a == b for a, b in pairwise(words))
    return merits - 1.5 * rude_sentences - 0.5 * repeats - 1.0 * (not answer.rstrip().endswith((".", "!", "?")))


def _utilities(messages: Messages, answers: Sequence[str]) -> list[float]:
    prompt = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    return [utility(prompt, answer) for answer in answers]


def oracle(messages: Messages, answers: Sequence[str]) -> list[float]:
    """Utilities [K] of the answers to the last user message, in nats; a `rule` scorer."""
    return _utilities(messages, answers)


def inverted_oracle(messages: Messages, answers: Sequence[str]) -> list[float]:
    """Control: the oracle's preferences reversed. A policy that learns from it must get worse."""
    return [-value for value in _utilities(messages, answers)]


def random_scorer(messages: Messages, answers: Sequence[str], seed: int = 0) -> list[float]:
    """Control: normal scores of standard deviation 2 nats that depend on prompt and answer by hash alone.

    The same answer to the same prompt always gets the same score, which has nothing to do with quality. A policy
    that learns from it must not improve.
    """
    prompt = messages[-1]["content"]
    return [random.Random(derive_seed(seed, "random scorer", prompt, answer)).gauss(0.0, 2.0) for answer in answers]


def texts() -> list[str]:
    """Texts that contain every word of prompts and answers with and without a space before it, for a tokenizer."""
    prompts = [order.text for order in orders() if order.guest == GUESTS[0] or order.extra == EXTRAS[0]]
    answers = [
        f"{opening} {serving} {farewell}".format(drink=drink, extra=extra, time=time)
        for opening, serving, farewell in product(
            POLITE_OPENINGS + RUDE_OPENINGS, SERVINGS + FORGETFUL_SERVINGS, POLITE_FAREWELLS + RUDE_FAREWELLS
        )
        for drink, extra, time in product(DRINKS, EXTRAS, TIMES)
    ]
    return [*prompts, *answers]
