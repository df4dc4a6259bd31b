"""What PairRM reads: one sequence of three parts, cut to fit, with positions known by construction.

    [CLS]<|source|> prompt [SEP] [CLS]<|candidate1|> answer [SEP] [CLS]<|candidate2|> answer [SEP]

as in PairRM (arXiv 2306.02561) and llm_blender's `tokenize_pair`. Room that the prompt leaves unused is
shared by the two answers of the same prompt, so the other prompts of a batch never change what is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
MARKERS = (SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE)
"""In llm_blender's order: the order decides the token ids that its checkpoints were trained with."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Room:
    """Tokens for each part, its special tokens included."""

    source: int = 1224
    answer: int = 412


@dataclass(frozen=True)
class Candidates:
    """One prompt and the answers to be compared with each other."""

    prompt_id: str
    source: str
    answers: Sequence[str]


@dataclass(frozen=True)
class Parts:
    """One prompt's tokens, cut to fit. Equal answers share one entry."""

    source: Ids
    answers: list[Ids]
    """[distinct answers], with the left candidate's marker."""
    index: list[int]
    """[K] which entry of `answers` each answer is."""
    source_cut: bool
    answer_cut: list[bool]
    """[distinct answers] whether the answer's end is cut."""

    def orders(self) -> list[tuple[int, int]]:
        """Every (left, right) of different entries of `answers`, both orders."""
        return list(permutations(range(len(self.answers)), 2))

    def num_cut(self, every: bool = False) -> int:
        """Comparisons in which a text is cut: among the distinct answers, or among all K (`every`)."""
        cut = [self.answer_cut[i] for i in self.index] if every else self.answer_cut
        return sum(self.source_cut or left or right for left, right in permutations(cut, 2))


@dataclass(frozen=True)
class Comparison:
    """Answer `left`, shown first, against answer `right` of one prompt (entries of `Parts.answers`)."""

    prompt: int
    left: int
    right: int


@dataclass(frozen=True)
class PaddedBatch:
    """B comparisons of at most L tokens."""

    input_ids: Ids
    """[B, L]"""
    attention_mask: Ids
    """[B, L] 1 for tokens, 0 for padding, which is at the end."""
    positions: Ids
    """[B, 3] where the markers of prompt, left and right answer are."""


class PairInputs:
    """Turns texts into token ids with a tokenizer that has the markers (see `add_markers`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: Room | None = None):
        """Raise ModelError where the tokenizer lacks a special token, ConfigError where `room` is too small."""
        self.tokenizer = tokenizer
        self.room = room or Room()
        self._marker_ids = {marker: _marker_id(tokenizer, marker) for marker in MARKERS}
        self._head = _opening_ids(tokenizer)
        self._sep_id = _separator_id(tokenizer)
        self._pad_id = self._sep_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._forbidden = ({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}) | {*self._marker_ids.values()}
        self._check_room()

    @property
    def special_ids(self) -> dict[str, int]:
        """Token ids by the names in PairRM-hf's config.json."""
        return {
            "sep_token_id": self._sep_id,
            "source_prefix_id": self._marker_ids[SOURCE],
            "cand_prefix_id": self._marker_ids[CANDIDATE],
            "cand1_prefix_id": self._marker_ids[CANDIDATE1],
            "cand2_prefix_id": self._marker_ids[CANDIDATE2],
        }

    @property
    def overhead(self) -> int:
        """Special tokens in each of the three parts."""
        return len(self._head) + 2

    def answer_room(self, source_length: int) -> int:
        """Tokens for each answer, specials included, beside a source part of `source_length` tokens."""
        return (self.room.source + 2 * self.room.answer - source_length) // 2

    def encode(self, prompts: Sequence[Candidates], shared_room: bool = False) -> list[Parts]:
        """Tokenize each distinct text once and cut it, keeping its beginning.

        `shared_room`: all answers get the room beside the longest prompt, as in llm_blender's batches.
        """
        source_ids = self._text_ids(SOURCE, (prompt.source for prompt in prompts))
        answer_ids = self._text_ids(CANDIDATE, (answer for prompt in prompts for answer in prompt.answers))
        sources = [self._part(SOURCE, source_ids[prompt.source], self.room.source) for prompt in prompts]
        longest = max(map(len, sources), default=0)
        return [
            Parts(
                source,
                source_cut=len(source_ids[prompt.source]) + self.overhead > self.room.source,
                **self._answer_parts(prompt, answer_ids, longest if shared_room else len(source)),
            )
            for prompt, source in zip(prompts, sources, strict=True)
        ]

    def length(self, parts: Parts, comparison: Comparison) -> int:
        """Tokens of one comparison, without padding."""
        return len(parts.source) + len(parts.answers[comparison.left]) + len(parts.answers[comparison.right])

    def pad(self, parts: Sequence[Parts], comparisons: Sequence[Comparison]) -> PaddedBatch:
        """Join and pad the parts of `comparisons`, which index `parts`."""
        width = max(self.length(parts[c.prompt], c) for c in comparisons)
        ids = np.full((len(comparisons), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        positions = np.zeros((len(comparisons), 3), dtype=np.int64)
        for row, c in enumerate(comparisons):
            prompt = parts[c.prompt]
            joined = np.concatenate([prompt.source, prompt.answers[c.left], prompt.answers[c.right]])
            starts = np.array([0, len(prompt.source), len(prompt.source) + len(prompt.answers[c.left])])
            positions[row] = starts + len(self._head)
            joined[positions[row, 2]] = self._marker_ids[CANDIDATE2]
            ids[row, : len(joined)], mask[row, : len(joined)] = joined, 1
        return PaddedBatch(ids, mask, positions)

    def _answer_parts(self, prompt: Candidates, ids: dict[str, list[int]], source_length: int) -> dict[str, list]:
        """The fields of Parts that are about answers."""
        room = self.answer_room(source_length)
        distinct = list(dict.fromkeys(prompt.answers))
        entry = {answer: number for number, answer in enumerate(distinct)}
        return {
            "answers": [self._part(CANDIDATE1, ids[answer], room) for answer in distinct],
            "index": [entry[answer] for answer in prompt.answers],
            "answer_cut": [len(ids[answer]) + self.overhead > room for answer in distinct],
        }

    def _part(self, marker: str, text_ids: list[int], room: int) -> Ids:
        kept = text_ids[: room - self.overhead]
        return np.array([*self._head, self._marker_ids[marker], *kept, self._sep_id], dtype=np.int64)

    def _text_ids(self, marker: str, texts: Iterable[str]) -> dict[str, list[int]]:
        """Ids of each distinct text, free of special ones.

        The text is read behind its marker, as the checkpoints were trained: a tokenizer may treat the
        beginning of an input differently. Like llm_blender, separators spelt out in a text become spaces;
        other special tokens become the unknown token, by id, because normalisation or the vocabulary itself
        can produce them from text that no string search would recognise.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        separator = str(self.tokenizer.convert_ids_to_tokens(self._sep_id))
        marked = [marker + text.replace(separator, " ") for text in distinct]
        encoded = self.tokenizer(marked, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        if any(ids[:1] != [self._marker_ids[marker]] for ids in encoded):
            raise ModelError(f"the tokenizer does not keep {marker} as one token; add it with add_markers()")
        return {text: self._defuse(ids[1:]) for text, ids in zip(distinct, encoded, strict=True)}

    def _defuse(self, ids: list[int]) -> list[int]:
        if self._forbidden.isdisjoint(ids):
            return ids
        unknown = self.tokenizer.unk_token_id
        replacement = [] if unknown is None else [unknown]
        return [kept for i in ids for kept in (replacement if i in self._forbidden else [i])]

    def _check_room(self) -> None:
        smallest = self.overhead + 1
        parts = {"source_max_tokens": self.room.source, "answer_max_tokens": self.room.answer}
        if problems := [
            f"scorer.{name} = {room}, but {self.overhead} special tokens and a text need at least {smallest}"
            for name, room in parts.items()
            if room < smallest
        ]:
            raise ConfigError(problems)


def add_markers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add PairRM's four tokens to `tokenizer`, in place; markers that it already has keep their ids."""
    tokenizer.add_tokens(list(MARKERS))


def _marker_id(tokenizer: PreTrainedTokenizerBase, marker: str) -> int:
    token_id = tokenizer.get_vocab().get(marker)
    if token_id is None:
        raise ModelError(f"the tokenizer lacks PairRM's token {marker}; add it with add_markers()")
    return token_id


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[CLS] where the tokenizer puts it before a text, else nothing."""
    ids = tokenizer(CANDIDATE)["input_ids"]
    return ids[: ids.index(_marker_id(tokenizer, CANDIDATE))]


def _separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    if token_id is None:
        raise ModelError("PairRM's tokenizer needs a sep_token or an eos_token")
    return token_id
