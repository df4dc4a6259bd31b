"""A judge as a scorer with a model of its own: in vLLM, or behind a remote server."""

from __future__ import annotations

from typing import Any

from actors.scorers.base import PairScores, Scorer
from actors.scorers.judge.judge import Judge, ServedModel
from engine.config.judge import OpenAIServer, VLLMServer
from engine.errors import ConfigError, RoleError


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

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        if self._model is None:
            raise RoleError("judge: no model is loaded; call start() first")
        return self._judge.judge(self._model, rows)


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
