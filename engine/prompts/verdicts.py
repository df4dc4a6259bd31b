"""What a data set says of its answers, as win rates: labels, scores and probabilities, checked.

Text is read as numbers too, since a CSV holds nothing else. Knows columns of one row and nothing of prompts.
"""

from __future__ import annotations

import math
from typing import Any

from engine.prompts.conversations import Unusable

_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def rates_of_pair(row: dict[str, Any], answers: list[str], notes: list[str]) -> list[float]:
    """Return [chosen, rejected] in [0, 1], and add to `notes` the rules that applied.

    The first that the row has: SPPO's chosen_probs_win and chosen_probs_lose, each the mean over all K answers;
    chosen_probs, the probability that chosen beats rejected; UltraFeedback's score_chosen and score_rejected;
    Snorkel's all_rm_scores, where the answers are among all_generated_responses; else 1 and 0.
    Equal scores are a tie. Probabilities are kept as they are, also where they favour the rejected answer: the data
    set's choice trains, and `soft_labels` reads how sure it was. Raises Unusable for numbers out of range, and for
    scores that contradict "chosen".
    """
    win, lose = (number_of(row.get(f"chosen_probs_{end}"), f"chosen_probs_{end}", 0.0, 1.0) for end in ("win", "lose"))
    if win is not None and lose is not None:
        return [win, lose]
    if win is not None or lose is not None:
        raise Unusable("one of chosen_probs_win and chosen_probs_lose is missing; expected both or none")
    if (beats := number_of(row.get("chosen_probs"), "chosen_probs", 0.0, 1.0)) is not None:
        return [beats, 1.0 - beats]
    names = ("score_chosen", "score_rejected")
    scores = [number_of(row.get(name), name) for name in names]
    if scores == [None, None]:
        names, scores = ("the score of chosen", "the score of rejected"), _reward_scores(row, answers, notes)
    high, low = scores
    if (high is None) != (low is None):
        raise Unusable(f"one of {' and '.join(names)} is missing; expected both or none")
    if high is None or low is None:
        return [1.0, 0.0]
    if high < low:
        raise Unusable(
            f"{names[0]} = {high:g} is below {names[1]} = {low:g}; expected the chosen answer's to be higher"
        )
    notes += ["ties"] * (high == low)
    return [0.5, 0.5] if high == low else [1.0, 0.0]


def _reward_scores(row: dict[str, Any], answers: list[str], notes: list[str]) -> list[float | None]:
    """Scores of both answers among all that were sampled; none, and a note, where a text is not among them."""
    texts, numbers = row.get("all_generated_responses"), row.get("all_rm_scores")
    if texts is None or numbers is None:
        return [None, None]
    if not isinstance(texts, list) or not isinstance(numbers, list) or len(texts) != len(numbers):
        raise Unusable("all_generated_responses and all_rm_scores are not two lists of the same length")
    scores = [number_of(number, f"all_rm_scores[{i}]") for i, number in enumerate(numbers)]
    if not all(answer in texts for answer in answers):
        notes.append("scores_without_answer")
        return [None, None]
    return [scores[texts.index(answer)] for answer in answers]


def number_of(value: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
    """Return a finite number within [least, most]; None for null or an empty field. Raises Unusable otherwise."""
    if value is None or value == "":
        return None
    bounds = "a finite number" if math.isinf(least) else f"a number from {least:g} to {most:g}"
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not least <= number <= most:
        raise Unusable(f"{name} holds {repr(value)[:40]}; expected {bounds}")
    return number


def label_of(value: Any, name: str) -> bool:
    """Return true or false from a boolean, 1 or 0, or these as text. Raises Unusable otherwise."""
    label = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if label is None:
        raise Unusable(f"{name} holds {repr(value)[:40]}; expected true or false, 1 or 0")
    return label
