"""What the two sides of a preference pair share, their prompt, and how sure the data set is: their win rates."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from engine.data.chats import Message
from engine.data.values import RowError, number_of

CONTEXT = 30
"""Characters of a text that an error shows on each side of a difference."""
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def win_rates(row: dict[str, Any], answers: list[str], notes: list[str]) -> tuple[float, float]:
    """Return the win rates of chosen and rejected, each in [0, 1], and add the rules that applied to `notes`.

    The first of these that the row has: SPPO's chosen_probs_win and chosen_probs_lose, each the mean over all K
    answers; chosen_probs, the probability that chosen beats rejected; UltraFeedback's score_chosen and
    score_rejected; Snorkel's all_rm_scores, if both answers are among all_generated_responses; else 1 and 0.
    Equal scores are a tie, 1/2 each. Probabilities are kept also where they favour the rejected answer: the data
    set's choice trains, and `soft_labels` reads how sure it was. Raises RowError for numbers out of range, and for
    scores that contradict "chosen".
    """
    win, lose = (number_of(row.get(name), name, 0.0, 1.0) for name in ("chosen_probs_win", "chosen_probs_lose"))
    if win is not None and lose is not None:
        return win, lose
    if win is not None or lose is not None:
        raise RowError("one of chosen_probs_win and chosen_probs_lose is missing; expected both or none")
    if (probability := number_of(row.get("chosen_probs"), "chosen_probs", 0.0, 1.0)) is not None:
        return probability, 1.0 - probability
    names = ("score_chosen", "score_rejected")
    high, low = (number_of(row.get(name), name) for name in names)
    if high is None and low is None:
        names = ("the score of chosen", "the score of rejected")
        high, low = _reward_scores(row, answers, notes)
    if (high is None) != (low is None):
        raise RowError(f"one of {' and '.join(names)} is missing; expected both or none")
    if high is None or low is None:
        return 1.0, 0.0
    if high < low:
        raise RowError(
            f"{names[0]} = {high:g} is below {names[1]} = {low:g}; expected the chosen answer's to be higher"
        )
    if high == low:
        notes.append("ties")
        return 0.5, 0.5
    return 1.0, 0.0


def _reward_scores(row: dict[str, Any], answers: list[str], notes: list[str]) -> list[float | None]:
    """Scores of both answers among all sampled ones; [None, None] and a note if an answer is not among them."""
    texts, numbers = row.get("all_generated_responses"), row.get("all_rm_scores")
    if texts is None or numbers is None:
        return [None, None]
    if not isinstance(texts, list) or not isinstance(numbers, list) or len(texts) != len(numbers):
        raise RowError("all_generated_responses and all_rm_scores are not two lists of the same length")
    scores = [number_of(number, f"all_rm_scores[{i}]") for i, number in enumerate(numbers)]
    if not all(answer in texts for answer in answers):
        notes.append("scores_without_answer")
        return [None, None]
    return [scores[texts.index(answer)] for answer in answers]


def shared_prompt(stated: list[Message], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the prompt of a pair, from its own column (`stated`) and from the turns before each answer.

    Raises RowError if there is no prompt, or if its places hold different ones.
    """
    if chosen != rejected:
        raise RowError(f"the prompts of chosen and rejected differ: {difference(chosen, rejected)}")
    if not chosen:
        if not stated:
            raise RowError("no prompt: chosen and rejected hold answers alone, and there is no column with the prompt")
        return stated
    if not stated:
        return chosen
    # A prompt column holds the only question, the first one (UltraChat) or the last one, at times trimmed.
    system = [m for m in stated if m["role"] == "system" and chosen[0]["role"] != "system"]
    column = [m["content"].strip() for m in stated if m["role"] != "system"]
    turns = [m["content"].strip() for m in chosen if m["role"] != "system"]
    questions = [m["content"].strip() for m in chosen if m["role"] == "user"]
    if column == turns or (len(column) == 1 and column[0] in (questions[:1] + questions[-1:])):
        return [*system, *chosen]
    raise RowError(f"the prompt column and the conversations differ: {difference(stated, chosen)}")


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return (prompt, chosen, rejected) of two texts that both begin with the prompt: what they share, in whole words.

    As TRL's extract_prompt, which cuts at the first character that differs and leaves a space before the answers
    to them; here two answers that begin with the same letters also keep these ("cat" and "car" part before the c).
    Raises RowError if nothing is shared.
    """
    shared = chosen[: _num_shared(chosen, rejected)]
    cut = len(shared) - len(re.split(r"\s", shared)[-1])
    cut -= chosen[cut - 1 : cut] == " "
    if not chosen[:cut].strip():
        raise RowError("chosen and rejected share no beginning that could be the prompt, and no column holds one")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _num_shared(first: str, second: str) -> int:
    """Number of characters that both texts begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def transcript(text: str) -> list[Message]:
    """Return the turns of a text in HH-RLHF's form ("\\n\\nHuman: ...\\n\\nAssistant: ..."); [] for any other text."""
    lead, *parts = _TURN.split(text)
    messages = [
        {"role": _ROLES[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    has_both = {message["role"] for message in messages} == {"user", "assistant"}
    return messages if has_both and not lead.strip() else []


def difference(first: list[Message], second: list[Message]) -> str:
    """Return where two conversations first differ, in words, with a little of both."""
    for number, (one, other) in enumerate(zip_longest(first, second), start=1):
        if one == other:
            continue
        if one is None or other is None:
            return f"one has {len(first)} turns, the other {len(second)}"
        if one["role"] != other["role"]:
            return f"turn {number} is the {one['role']}'s in one, the {other['role']}'s in the other"
        at = _num_shared(one["content"], other["content"])
        start = max(0, at - CONTEXT)
        excerpts = (repr(message["content"][start : at + CONTEXT]) for message in (one, other))
        return f"turn {number} at character {at + 1}: {' and '.join(excerpts)}"
    return "they are the same"
