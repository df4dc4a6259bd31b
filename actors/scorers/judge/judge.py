"""The LLM judge: what to ask a language model about K answers, and how to read its replies.

    pairwise   "A" or "B", as a soft probability from the log-probabilities of the two; nothing to parse
    pointwise  N sampled judgements that end in "Score: n", averaged over those that can be read

A reply that cannot be read is NaN, never a number. The model behind it is a JudgeModel: vLLM in this process (the
policy's own engine or another model) or a remote server.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.scorers.base import Verdict, plain_text
from actors.scorers.judge.prompt_file import JudgePrompt, draw_mark
from engine.config.judge import JudgeConfig
from engine.data.chats import Message
from engine.errors import RoleError
from engine.schema import arrow_safe
from engine.seeds import derive_seed

CHOICES = ("A", "B")
"""The answer shown first, and the other."""
LOGIT_BOUND = 50.0
"""Nats; sigmoid(50) is 1 to double precision. A choice without any probability would give an infinite logit."""
ALONE = -1
"""`other` of engine.schema.VERDICT where the judge saw one answer."""

_SCORE = re.compile(
    r"(?<!\w)score[\s*_`]*[:=][\s*_`<]*"
    r"(?P<score>[+-]?\d+(?:\.\d+)?)[\s*_`>]*(?:(?:/|out\s+of)[\s*_`]*(?P<of>\d+(?:\.\d+)?))?[\s*_`.]*$",
    re.IGNORECASE | re.MULTILINE,
)


def parse_score(text: str, low: float, high: float) -> float:
    """The number of the last line in a judge's reply that ends in "Score: n"; NaN if it is not from `low` to `high`.

    Markdown around it does not matter, nor does "n/5" or "n out of 5" where 5 is `high`; another scale is unreadable.
    """
    lines = list(_SCORE.finditer(text))
    if not lines:
        return math.nan
    score, of = float(lines[-1]["score"]), lines[-1]["of"]
    readable = low <= score <= high and (of is None or float(of) == high)
    return score if readable else math.nan


def choice_logit(reply: Reply) -> float:
    """Log-odds, in nats, that the answer shown first is better; NaN where the model told no probabilities."""
    logps = reply.choice_logps or {}
    first, second = (logps.get(choice, math.nan) for choice in CHOICES)
    if math.isnan(first) or math.isnan(second) or first == second == -math.inf:
        return math.nan
    return max(-LOGIT_BOUND, min(LOGIT_BOUND, first - second))


class Asked(NamedTuple):
    """One question, and what it is about."""

    row: int
    answer: int
    """Index of the answer judged, the one shown first in a comparison; of equal answers the first."""
    other: int
    question: Question


@dataclass(frozen=True)
class Judge:
    """How answers are judged; asks whatever model it is given."""

    config: JudgeConfig
    prompt: JudgePrompt
    seed: int
    """The run's."""

    def id(self, model_id: str) -> str:
        """Names all that changes a verdict: mode, model, prompt version, and the mode's own settings."""
        config = self.config
        if config.mode == "pairwise":
            settings = f"orders={config.orders}:abstain={config.abstain:g}"
        else:
            settings = (
                f"n={config.num_judgements}:temperature={config.temperature:g}:tokens={config.max_new_tokens}"
                f":range={config.min_score:g}..{config.max_score:g}"
            )
        return f"judge:{config.mode}:{model_id}:{self.prompt.version}:{settings}:room={config.max_prompt_tokens}"

    def trial(self) -> Question:
        """A harmless question of the form that this judge will ask, to try a model with."""
        row = {"prompt_id": "trial", "messages": [{"role": "user", "content": "Hello?"}], "answers": ["Hi.", "Yes."]}
        return next(self._questions(0, row)).question

    def judge(self, model: JudgeModel, rows: list[dict[str, Any]]) -> list[Verdict]:
        """One verdict per row (prompt_id, messages, answers). All questions go to the model in one call.

        Equal answers are asked about once. Raises RoleError where the model cannot be asked or loses a reply.
        """
        asked = [question for i, row in enumerate(rows) for question in self._questions(i, row)]
        replies = model.reply([one.question for one in asked])
        if len(replies) != len(asked):
            raise RoleError(f"judge {model.id}: {len(replies)} replies came back for {len(asked)} questions")
        of_row: dict[int, list[tuple[Asked, Reply]]] = {i: [] for i in range(len(rows))}
        for one, reply in zip(asked, replies, strict=True):
            of_row[one.row].append((one, reply))
        read = self._compared if self.config.mode == "pairwise" else self._rated
        return [read(row["answers"], of_row[i]) for i, row in enumerate(rows)]

    def _questions(self, row_index: int, row: dict[str, Any]) -> Iterator[Asked]:
        prompt_id, answers, instruction = row["prompt_id"], row["answers"], plain_text(row["messages"])
        mark = draw_mark(self.seed, prompt_id, [instruction, *answers])
        firsts = [i for i, answer in enumerate(answers) if answers.index(answer) == i]
        pairs = self._pairs(prompt_id, firsts) if self.config.mode == "pairwise" else ((i, ALONE) for i in firsts)
        for i, j in pairs:
            shown = {"answer": answers[i]} if j == ALONE else {"answer_a": answers[i], "answer_b": answers[j]}
            messages = self.prompt.fill(mark, {"instruction": instruction, **shown})
            seed = derive_seed(self.seed, "judge", prompt_id, i, j)
            yield Asked(row_index, i, j, self._question(messages, seed))

    def _question(self, messages: tuple[Message, ...], seed: int) -> Question:
        """In the form of the mode; judgement n draws with seed + n."""
        if self.config.mode == "pairwise":
            return Question(messages, seed, choices=CHOICES)
        return Question(messages, seed, num_samples=self.config.num_judgements, temperature=self.config.temperature)

    def _pairs(self, prompt_id: str, indices: list[int]) -> Iterator[tuple[int, int]]:
        """(shown first, shown second) in the declared orders; a drawn order depends on the run's seed and names."""
        for i, j in itertools.combinations(indices, 2):
            turned = self.config.orders == "random" and derive_seed(self.seed, "order", prompt_id, i, j) % 2
            yield (j, i) if turned else (i, j)
            if self.config.orders == "both":
                yield j, i

    def _compared(self, answers: list[str], replies: Sequence[tuple[Asked, Reply]]) -> Verdict:
        """Pairwise: a matrix with NaN where a pair was not asked in that order, or without a readable reply."""
        logits = np.full((len(answers), len(answers)), np.nan)
        rows = []
        for one, reply in replies:
            logit = choice_logit(reply)
            rows.append(_verdict(one, reply.texts[0] if reply.texts else "", logit))
            logits[one.answer, one.other] = 0.0 if _abstains(logit, self.config.abstain) else logit
        return Verdict(_spread(logits, answers), _num_overlong(replies), (), rows)

    def _rated(self, answers: list[str], replies: Sequence[tuple[Asked, Reply]]) -> Verdict:
        """Pointwise: the mean of an answer's readable judgements; logits are differences of scores.

        A judgement that was cut lacks its last line: an earlier "Score: 5" may quote the answer, or weigh it.
        """
        scores, rows = np.full(len(answers), np.nan), []
        for one, reply in replies:
            texts = [*reply.texts, *[""] * (self.config.num_judgements - len(reply.texts))]
            values = [math.nan if i in reply.cut else self._score(text) for i, text in enumerate(texts)]
            rows += [_verdict(one, text, value) for text, value in zip(texts, values, strict=True)]
            readable = [value for value in values if not math.isnan(value)]
            scores[one.answer] = math.fsum(readable) / len(readable) if readable else math.nan
        scores = scores[[answers.index(answer) for answer in answers]]
        logits = _spread(scores[:, None] - scores[None, :], answers)
        return Verdict(logits, _num_overlong(replies), scores.tolist(), rows)

    def _score(self, text: str) -> float:
        return parse_score(text, self.config.min_score, self.config.max_score)


def _abstains(logit: float, band: float) -> bool:
    return abs(1.0 / (1.0 + math.exp(-logit)) - 0.5) < band


def _spread(logits: NDArray[np.float64], answers: list[str]) -> NDArray[np.float64]:
    """[K, K] with every answer judged like the first one that equals it; equal answers tie."""
    firsts = [answers.index(answer) for answer in answers]
    spread = logits[np.ix_(firsts, firsts)]
    spread[np.equal.outer(firsts, firsts)] = 0.0
    return spread


def _num_overlong(replies: Sequence[tuple[Asked, Reply]]) -> int:
    return sum(reply.overlong for _, reply in replies)


def _verdict(one: Asked, text: str, value: float) -> dict[str, Any]:
    return {"answer": one.answer, "other": one.other, "text": arrow_safe(text), "value": value}


@dataclass(frozen=True)
class Question:
    """One chat that a judge is to reply to."""

    messages: tuple[Message, ...]
    seed: int
    """Of the first reply; reply n draws with seed + n, where the server takes seeds."""
    choices: tuple[str, ...] = ()
    """If there are any, the reply is exactly one of them; else it is free text."""
    num_samples: int = 1
    """Replies wanted; 1 with choices."""
    temperature: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What came back for one Question."""

    texts: tuple[str, ...]
    """[num_samples]; fewer where the model gave none in spite of retries."""
    choice_logps: dict[str, float] | None = None
    """Log-probability, in nats, of each choice, normalised over the choices; None where unknown or not asked."""
    cut: frozenset[int] = frozenset()
    """Indices of the texts that ran into the limit on their tokens, so that their end is missing; free text only."""
    overlong: bool = False
    """Whether the chat had more tokens than the model has room for, so that it was not asked."""


class JudgeModel(Protocol):
    """A language model behind one call."""

    @property
    def id(self) -> str:
        """Names the model by what changes its replies, e.g. "vllm:" and a digest of its weights."""

    def reply(self, questions: list[Question]) -> list[Reply]:
        """One Reply per Question, in order. Raises RoleError where the model cannot be asked at all."""


class ServedModel(JudgeModel, Protocol):
    """A model with a life of its own; `id` is known once it is started."""

    def start(self) -> None:
        """Load it or connect; harmless if that is done. Raises ConfigError, ModelError or RoleError."""

    def sleep(self) -> None:
        """Give back memory and connections; `start` brings it back."""
