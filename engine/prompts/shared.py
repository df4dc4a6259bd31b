"""The beginning that two texts or two conversations share, and where they part.

Knows whole texts of preference sets, HH-RLHF's transcripts among them, and nothing of files or labels.
"""

from __future__ import annotations

import re
from itertools import zip_longest

from engine.prompts.conversations import Message, Unusable

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
SHOWN = 30
"""Characters of a text that an error shows on each side of the difference."""


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return (prompt, chosen, rejected) of two whole texts: the prompt is what they share, in whole words.

    As TRL's extract_prompt, which cuts at the first character that differs and leaves a space to the
    answers; but two answers that begin with the same letters keep them ("cat" and "car" part before the c).
    Raises Unusable where nothing is shared.
    """
    shared = chosen[: _num_shared(chosen, rejected)]
    cut = len(shared) - len(re.split(r"\s", shared)[-1])
    cut -= chosen[cut - 1 : cut] == " "
    if not chosen[:cut].strip():
        raise Unusable("chosen and rejected share no beginning that could be the prompt, and no column holds one")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _num_shared(first: str, second: str) -> int:
    """Characters that both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def transcript(text: str) -> list[Message]:
    """Return the turns of a text in HH-RLHF's form ("\\n\\nHuman: ...\\n\\nAssistant: ..."); [] for any other text."""
    lead, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[who], "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    both = {turn["role"] for turn in turns} == {"user", "assistant"}
    return turns if both and not lead.strip() else []


def difference(first: list[Message], second: list[Message]) -> str:
    """Where two conversations part, in words, with a little of both."""
    for number, (one, other) in enumerate(zip_longest(first, second), start=1):
        if one == other:
            continue
        if one is None or other is None:
            return f"one has {len(first)} turns, the other {len(second)}"
        if one["role"] != other["role"]:
            return f"turn {number} is the {one['role']}'s in one, the {other['role']}'s in the other"
        at = _num_shared(one["content"], other["content"])
        start = max(0, at - SHOWN)
        shown = (repr(turn["content"][start : at + SHOWN]) for turn in (one, other))
        return f"turn {number} at character {at + 1}: {' and '.join(shown)}"
    return "they are the same"
