"""Which prompts of a benchmark were also trained on: the same text, or the same run of words.

The n-gram rule is that of GPT-3 (arXiv 2005.14165, appendix C): lower-case words without punctuation, n = 13 and 8 for
shorter prompts, and n-grams in more than 10 training prompts, such as a template's, do not count. A prompt of fewer
than 8 words is compared as a whole alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.data.chats import Message
from engine.store.manifest import Record

SIZES = (13, 8)
"""Words of an n-gram. A prompt is compared by the largest that it has room for."""
MAX_OCCURRENCES = 10
"""An n-gram in more training prompts than this is common, and says nothing about one prompt."""

Gram = tuple[str, ...]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Prompts of a benchmark that are also trained on."""

    num_prompts: int
    """Prompts of the benchmark."""
    num_training: int
    """Training prompts that they were compared with."""
    exact: tuple[str, ...]
    """Ids of those whose words are the words of a training prompt."""
    similar: tuple[str, ...]
    """Ids of the others that share an n-gram with a training prompt."""

    def __str__(self) -> str:
        return (
            f"{len(self.exact)} of {self.num_prompts} prompts are among the {self.num_training} training prompts, "
            f"{len(self.similar)} more share {SIZES[0]} ({SIZES[1]} if shorter) words in a row with one"
        )

    @property
    def record(self) -> dict[str, Any]:
        """As it is recorded in a store."""
        return {
            "num_prompts": self.num_prompts,
            "num_training": self.num_training,
            "exact": list(self.exact),
            "similar": list(self.similar),
        }


def find_overlap(training: Iterable[pa.Table], prompts: Iterable[pa.Table]) -> Overlap:
    """Compare the user's turns of `prompts` with those of `training`; both have `prompt_id` and `messages`.

    The training prompts are read one table at a time.
    """
    of_prompt = {name: words(text) for name, text in _texts(prompts)}
    sizes = {name: next((n for n in SIZES if len(text) >= n), 0) for name, text in of_prompt.items()}
    wanted = {gram for name, text in of_prompt.items() if sizes[name] for gram in _grams(text, sizes[name])}
    whole = {tuple(text) for text in of_prompt.values()}
    found: set[Gram] = set()
    occurrences: Counter[Gram] = Counter()
    num_training = 0
    for _, text in _texts(training):
        trained = words(text)
        num_training += 1
        if tuple(trained) in whole:
            found.add(tuple(trained))
        occurrences.update({gram for n in SIZES for gram in _grams(trained, n) if gram in wanted})
    telling = {gram for gram, count in occurrences.items() if count <= MAX_OCCURRENCES}
    exact = tuple(name for name, text in of_prompt.items() if tuple(text) in found)
    similar = tuple(
        name
        for name, text in of_prompt.items()
        if name not in exact and sizes[name] and any(gram in telling for gram in _grams(text, sizes[name]))
    )
    return Overlap(len(of_prompt), num_training, exact, similar)


def fact_name(benchmark: str) -> str:
    """The name under which the overlap of a benchmark is recorded in a store."""
    return f"{benchmark} prompts that are trained on"


def from_record(record: Mapping[str, Any] | Record | None) -> Overlap | None:
    """The recorded overlap; None: the training prompts are not known, so nothing was compared."""
    if record is None:
        return None
    names = (tuple(record["exact"]), tuple(record["similar"]))
    return Overlap(record["num_prompts"], record["num_training"], *names)


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation and without differences of Unicode forms."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _texts(tables: Iterable[pa.Table]) -> Iterator[tuple[str, str]]:
    for table in tables:
        yield from (
            (name, _user_text(messages))
            for name, messages in zip(table["prompt_id"].to_pylist(), table["messages"].to_pylist(), strict=True)
        )


def _user_text(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _grams(text: Sequence[str], n: int) -> Iterator[Gram]:
    return (tuple(text[start : start + n]) for start in range(len(text) - n + 1))
