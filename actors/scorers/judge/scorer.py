"""A judge as a scorer with a model of its own: in vLLM, or behind a remote server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from actors.scorers.base import PairScores, Scorer
from actors.scorers.judge.judge import Judge, Question, Reply, ServedModel
from engine.config.judge import OpenAIServer, VLLMServer
from engine.errors import ConfigError, RoleError
from engine.loop.spending import with_spent
from engine.schema import QUESTIONS, REPLIES, append, arrow_safe, conform


class JudgeScorer(Scorer):
    """A judge with a model of its own."""

    def __init__(self, judge: Judge):
        self._judge = judge
        self._model: ServedModel | None = None

    def start(self) -> None:
        if self._model is None:
            self._model = serve(self._judge)
        self._model.start()
        self.id = self._judge.id(self._model.id)

    def sleep(self) -> None:
        if self._model is not None:
            self._model.sleep()

    def score(self, completions: pa.Table) -> pa.Table:
        return self._counting(super().score, completions)

    def ask(self, questions: pa.Table) -> pa.Table:
        """Return engine.schema.REPLIES to QUESTIONS, whatever they ask.

        A judge in vLLM has room for prompts of max_prompt_tokens; prompt and reply together end where its own
        questions and replies would. Raises SchemaError for another table, RoleError where the model cannot be asked.
        """
        return self._counting(self._replies, questions)

    def _replies(self, questions: pa.Table) -> pa.Table:
        model = self._ready()
        questions = conform(questions, QUESTIONS, f"questions for {self.id}")
        asked = [
            Question(tuple(row["messages"]), row["seed"], (), 1, row["temperature"], row["max_new_tokens"])
            for row in questions.to_pylist()
        ]
        replies = model.reply(asked) if asked else []
        if len(replies) != len(asked):
            raise RoleError(f"judge {model.id}: {len(replies)} replies came back for {len(asked)} questions")
        return append(
            questions,
            REPLIES,
            f"replies of {model.id}",
            reply=[arrow_safe(reply.texts[0]) if reply.texts else "" for reply in replies],
            reply_end=[_end(reply) for reply in replies],
            judge=[model.id] * len(replies),
        )

    def _counting(self, answer: Callable[[pa.Table], pa.Table], table: pa.Table) -> pa.Table:
        """The answer to `table`, with what was paid for it."""
        before = self._ready().spent()
        result = answer(table)
        return with_spent(result, {name: total - before[name] for name, total in self._ready().spent().items()})

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        return self._judge.judge(self._ready(), rows)

    def _ready(self) -> ServedModel:
        if self._model is None:
            raise RoleError("judge: no model is loaded; call start() first")
        return self._model


def _end(reply: Reply) -> str:
    """`reply_end` of engine.schema.REPLIES."""
    if not reply.texts:
        return "overlong" if reply.overlong else "missing"
    return "length" if 0 in reply.cut else "stop"


def serve(judge: Judge) -> ServedModel:
    """The model that the config's `server` names, not yet started. Raises ConfigError where it cannot be served here.

    Imports lazily: torch comes with one server and the openai package with the other.
    """
    server = judge.config.server
    if isinstance(server, OpenAIServer):
        try:
            from actors.scorers.judge.openai_client import OpenAIModel
        except ModuleNotFoundError as error:
            raise ConfigError(
                [f"scorer.server.kind = openai: {error}; install the extra `judge` (openai and httpx2)"]
            ) from error
        return OpenAIModel(server, judge.config.max_new_tokens)
    if isinstance(server, VLLMServer):
        from actors.scorers.judge.vllm import VLLMModel

        return VLLMModel(server, judge)
    raise ConfigError([f"scorer.server.kind = {server.kind}: only the policy's own generators can serve that"])
