"""The LLM judge: the questions that it asks a language model about K answers, and how it reads the replies.

    pairwise   "A" or "B", as a soft probability from the log-probabilities of the two; nothing to parse
    pointwise  N sampled judgements that end in "Score: n"; the mean of those that can be read

A reply that cannot be read is NaN, never a number. The model is behind a protocol, JudgeModel: vLLM in this process
(the policy's own engine or another model) or a remote server.
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

from actors.scorers.base import PairScores, plain_text
from actors.scorers.judge.prompt_file import JudgePrompt, draw_mark
from engine.config.judge import JudgeConfig
from engine.data.chats import Message
from engine.errors import RoleError
from engine.schema import arrow_safe
from engine.seeds import derive_seed

CHOICES = ("A", "B")
"""Letters of the answer shown first and of the other."""
LOGIT_BOUND = 50.0
"""Nats; sigmoid(50) is 1 in double precision. A choice of probability 0 would give an infinite logit."""
ALONE = -1
"""`other` of engine.schema.VERDICT where the judge saw one answer."""


@dataclass(frozen=True)
class Question:
    """One chat for a judge to reply to."""

    messages: tuple[Message, ...]
    seed: int
    """Of the first reply; reply n draws with seed + n, where the server takes seeds."""
    choices: tuple[str, ...] = ()
    """If not empty, the reply is exactly one of them; else it is free text."""
    num_samples: int = 1
    """Replies to draw; 1 with choices."""
    temperature: float = 0.0
    max_new_tokens: int | None = None
    """Limit on the tokens of a free reply; None: that of the judge's config."""


@dataclass(frozen=True)
class Reply:
    """A model's answer to one Question."""

    texts: tuple[str, ...]
    """[num_samples]; fewer where the model gave none in spite of retries."""
    choice_logps: dict[str, float] | None = None
    """Log-probability, in nats, of each choice, normalised over the choices; None without choices or if unknown."""
    cut: frozenset[int] = frozenset()
    """Indices of the texts that reached the limit on their tokens, so that their end is missing; free text only."""
    overlong: bool = False
    """Whether the chat was too long for the model, and so was not asked."""


class JudgeModel(Protocol):
    """A language model behind one call."""

    @property
    def id(self) -> str:
        """Names the model by what changes its replies, e.g. "vllm:" and a digest of its weights."""

    def reply(self, questions: list[Question]) -> list[Reply]:
        """One Reply per Question, in order. Raises RoleError where the model cannot be asked at all."""


class ServedModel(JudgeModel, Protocol):
    """A JudgeModel that is started and put to sleep; `id` is known once it is started."""

    def start(self) -> None:
        """Load the model or connect; harmless if that is done. Raises ConfigError, ModelError or RoleError."""

    def sleep(self) -> None:
        """Free memory and connections; `start` brings the model back."""

    def spent(self) -> dict[str, int]:
        """What was paid for so far, as engine.loop.spending.PAID; empty for a model of our own."""


_SCORE = re.compile(
    r"(?<!\w)score[\s*_`]*[:=][\s*_`<]*"
    r"(?P<score>[+-]?\d+(?:\.\d+)?)[\s*_`>]*(?:(?:/|out\s+of)[\s*_`]*(?P<scale>\d+(?:\.\d+)?))?[\s*_`.]*$",
    re.IGNORECASE | re.MULTILINE,
)


def parse_score(text: str, low: float, high: float) -> float:
    """The number of the last line in a judge's reply that ends in "Score: n"; NaN if it is not from `low` to `high`.

    Markdown around it is ignored, as is "/5" or "out of 5" where 5 is `high`; a score on another scale is NaN.
    """
    lines = list(_SCORE.finditer(text))
    if not lines:
        return math.nan
    score, scale = float(lines[-1]["score"]), lines[-1]["scale"]
    readable = low <= score <= high and (scale is None or float(scale) == high)
    return score if readable else math.nan


def choice_logit(reply: Reply) -> float:
    """Log-odds, in nats, that the answer shown first is better; NaN where the model gave no probabilities."""
    logps = reply.choice_logps or {}
    first, second = (logps.get(choice, math.nan) for choice in CHOICES)
    if math.isnan(first) or math.isnan(second) or first == second == -math.inf:
        return math.nan
    return max(-LOGIT_BOUND, min(LOGIT_BOUND, first - second))


class Asked(NamedTuple):
    """One question and the answers that it is about."""

    row: int
    answer: int
    """Index of the answer judged, in a comparison the one shown first; of equal answers the first."""
    other: int
    """Index of the answer shown second, or ALONE."""
    question: Question


@dataclass(frozen=True)
class Judge:
    """Judges the answers of prompts by asking a JudgeModel."""

    config: JudgeConfig
    prompt: JudgePrompt
    seed: int
    """The run's seed."""

    def id(self, model_id: str) -> str:
        """Names everything that changes a verdict: mode, model, prompt version, and the mode's own settings."""
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
        """A harmless question in the form that this judge asks, for trying out a model."""
        row = {
            "prompt_id": "trial",
            "messages": [{"role": "user", "content": "Hello?"}],
            "completions": ["Hi.", "Yes."],
        }
        return next(self._questions(0, row)).question

    def judge(self, model: JudgeModel, rows: list[dict[str, Any]]) -> list[PairScores]:
        """One result per row (prompt_id, messages, answers). All questions go to the model in one call.

        Equal answers are asked about once. Raises RoleError where the model cannot be asked or loses a reply.
        """
        asked = [question for i, row in enumerate(rows) for question in self._questions(i, row)]
        replies = model.reply([one.question for one in asked])
        if len(replies) != len(asked):
            raise RoleError(f"judge {model.id}: {len(replies)} replies came back for {len(asked)} questions")
        replies_of_row: list[list[tuple[Asked, Reply]]] = [[] for _ in rows]
        for one, reply in zip(asked, replies, strict=True):
            replies_of_row[one.row].append((one, reply))
        read = self._pairwise_scores if self.config.mode == "pairwise" else self._pointwise_scores
        return [read(row["completions"], answered) for row, answered in zip(rows, replies_of_row, strict=True)]

    def _questions(self, row_index: int, row: dict[str, Any]) -> Iterator[Asked]:
        prompt_id, answers, instruction = row["prompt_id"], row["completions"], plain_text(row["messages"])
        mark = draw_mark(self.seed, prompt_id, [instruction, *answers])
        firsts = [i for i, answer in enumerate(answers) if answers.index(answer) == i]
        pairs = self._pairs(prompt_id, firsts) if self.config.mode == "pairwise" else ((i, ALONE) for i in firsts)
        for i, j in pairs:
            shown = {"answer": answers[i]} if j == ALONE else {"answer_a": answers[i], "answer_b": answers[j]}
            messages = self.prompt.fill(mark, {"instruction": instruction, **shown})
            seed = derive_seed(self.seed, "judge", prompt_id, i, j)
            yield Asked(row_index, i, j, self._question(messages, seed))

    def _question(self, messages: tuple[Message, ...], seed: int) -> Question:
        """A comparison with two choices, or `num_judgements` judgements of which number n draws with seed + n."""
        if self.config.mode == "pairwise":
            return Question(messages, seed, choices=CHOICES)
        return Question(messages, seed, num_samples=self.config.num_judgements, temperature=self.config.temperature)

    def _pairs(self, prompt_id: str, indices: list[int]) -> Iterator[tuple[int, int]]:
        """(shown first, shown second) in the configured orders; a random order derives from the run's seed."""
        for i, j in itertools.combinations(indices, 2):
            swapped = self.config.orders == "random" and derive_seed(self.seed, "order", prompt_id, i, j) % 2
            yield (j, i) if swapped else (i, j)
            if self.config.orders == "both":
                yield j, i

    def _pairwise_scores(self, answers: list[str], replies: Sequence[tuple[Asked, Reply]]) -> PairScores:
        """A matrix with NaN where a pair was not asked about in that order, or has no readable reply."""
        logits = np.full((len(answers), len(answers)), np.nan)
        rows = []
        for one, reply in replies:
            logit = choice_logit(reply)
            rows.append(_verdict(one, reply.texts[0] if reply.texts else "", logit))
            logits[one.answer, one.other] = 0.0 if _abstains(logit, self.config.abstain) else logit
        return PairScores(_share_among_equals(logits, answers), _num_overlong(replies), (), rows)

    def _pointwise_scores(self, answers: list[str], replies: Sequence[tuple[Asked, Reply]]) -> PairScores:
        """Each answer's score is the mean of its readable judgements; logits are differences of scores.

        A judgement that was cut is unreadable, because its last line is missing: an earlier "Score: 5" may quote the
        answer or be a first thought.
        """
        scores, rows = np.full(len(answers), np.nan), []
        for one, reply in replies:
            texts = [*reply.texts, *[""] * (self.config.num_judgements - len(reply.texts))]
            values = [math.nan if i in reply.cut else self._score(text) for i, text in enumerate(texts)]
            rows += [_verdict(one, text, value) for text, value in zip(texts, values, strict=True)]
            readable = [value for value in values if not math.isnan(value)]
            scores[one.answer] = math.fsum(readable) / len(readable) if readable else math.nan
        scores = scores[[answers.index(answer) for answer in answers]]
        logits = _share_among_equals(scores[:, None] - scores[None, :], answers)
        return PairScores(logits, _num_overlong(replies), scores.tolist(), rows)

    def _score(self, text: str) -> float:
        return parse_score(text, self.config.min_score, self.config.max_score)


def _abstains(logit: float, band: float) -> bool:
    return abs(1.0 / (1.0 + math.exp(-logit)) - 0.5) < band


def _share_among_equals(logits: NDArray[np.float64], answers: list[str]) -> NDArray[np.float64]:
    """[K, K] in which each answer has the logits of the first answer equal to it; equal answers tie."""
    firsts = [answers.index(answer) for answer in answers]
    shared = logits[np.ix_(firsts, firsts)]
    shared[np.equal.outer(firsts, firsts)] = 0.0
    return shared


def _num_overlong(replies: Sequence[tuple[Asked, Reply]]) -> int:
    return sum(reply.overlong for _, reply in replies)


def _verdict(one: Asked, text: str, value: float) -> dict[str, Any]:
    return {"answer": one.answer, "other": one.other, "text": arrow_safe(text), "value": value}
