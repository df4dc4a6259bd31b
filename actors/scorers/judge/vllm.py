"""A language model in vLLM as a judge: the policy's own engine, or another model with an engine of its own.

Each chat is rendered with the model's template; control tokens in its texts are defused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.chat import Chat
from actors.hub import local_folder
from actors.scorers.judge.judge import Question, Reply
from actors.vllm_engine import Sample, SampleRequest, VLLMEngine, check_engine_args
from engine.config.judge import JudgeConfig, VLLMServer
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ModelError, RoleError
from engine.store.weights import weights_digest

if TYPE_CHECKING:
    from actors.scorers.judge.judge import Judge

SECTION = "scorer.server"
NOT_ASKED = Reply(())
OVERLONG = Reply((), overlong=True)


class VLLMReplies:
    """A JudgeModel: replies of the model in `engine` to chats rendered by `chat`."""

    def __init__(self, model_id: str, engine: VLLMEngine, chat: Chat, config: JudgeConfig, trial: Question):
        """Try out `trial`, a harmless question. Raises ModelError where the model cannot be asked such questions."""
        self.id, self._engine, self._chat = model_id, engine, chat
        self._room, self._reply_tokens = config.max_prompt_tokens, config.reply_tokens
        self._choice_ids = self._try(trial)

    def reply(self, questions: list[Question]) -> list[Reply]:
        """One Reply per Question; a chat that the template refuses, or that is too long, gets an empty one."""
        replies: list[Reply | None] = []
        asked: list[tuple[Question, list[int]]] = []
        for question in questions:
            token_ids = self._token_ids(question)
            usable = token_ids is not None and len(token_ids) <= self._room
            replies.append(None if usable else OVERLONG if token_ids is not None else NOT_ASKED)
            if usable and token_ids is not None:
                asked.append((question, token_ids))
        answered = iter(self._ask(asked))
        return [next(answered) if reply is None else reply for reply in replies]

    def _ask(self, asked: list[tuple[Question, list[int]]]) -> list[Reply]:
        """Replies to questions of one kind: all with choices, or all without."""
        if asked and asked[0][0].choices:
            logps = self._engine.choose([ids for _, ids in asked], self._choice_ids)
            return [_chosen(question.choices, row) for (question, _), row in zip(asked, logps, strict=True)]
        requests = [
            SampleRequest(ids, q.num_samples, q.seed, q.temperature, q.max_new_tokens or self._reply_tokens)
            for q, ids in asked
        ]
        return [_written(samples) for samples in self._engine.sample(requests)]

    def _token_ids(self, question: Question) -> list[int] | None:
        try:
            return self._chat.render(list(question.messages))[1]
        except ModelError:  # a text that the template refuses costs its own verdict, not the run
            return None

    def _try(self, trial: Question) -> list[int]:
        """Render a harmless question; return the first token of each choice, which differ from each other.

        All questions of one prompt file end the same, so these tokens hold for all of them.
        """
        text, token_ids = self._chat.render(list(trial.messages))
        for message in trial.messages:
            if message["content"].strip() not in text:
                raise ModelError(
                    f"{self._chat.path}: the chat template leaves out the {message['role']} part of the judge's "
                    f"prompt; put everything into the user part"
                )
        if len(token_ids) > self._room:
            raise ModelError(
                f"scorer.max_prompt_tokens = {self._room}: the judge's prompt has {len(token_ids)} tokens before any "
                f"answer is filled in"
            )
        firsts = [self._chat.continuation(text, token_ids, choice)[0] for choice in trial.choices]
        if len(set(firsts)) < len(firsts):
            raise ModelError(f"{self._chat.path}: the choices {trial.choices} begin with the same token")
        return firsts


def _written(samples: Sequence[Sample]) -> Reply:
    cut = frozenset(i for i, sample in enumerate(samples) if sample.finish_reason == "length")
    return Reply(tuple(sample.text for sample in samples), cut=cut)


def _chosen(choices: Sequence[str], logps: Sequence[float]) -> Reply:
    """The likelier choice, and the log-probabilities normalised over the choices; raw ones sum to less than 1."""
    highest = max(logps)
    if not math.isfinite(highest):
        return NOT_ASKED
    total = highest + math.log(math.fsum(math.exp(logp - highest) for logp in logps))
    return Reply((choices[logps.index(highest)],), {c: logp - total for c, logp in zip(choices, logps, strict=True)})


class VLLMModel:
    """A ServedModel: a judge's own model."""

    def __init__(self, server: VLLMServer, judge: Judge):
        """Cheap; `start` loads. Raises ConfigError for engine_args that other keys set."""
        self._server, self._judge = server, judge
        self._config = GeneratorConfig(
            cpus=judge.config.cpus,
            gpus=judge.config.gpus,
            tensor_parallel_size=server.tensor_parallel_size,
            gpu_memory_utilization=server.gpu_memory_utilization,
            kv_cache_gib=server.kv_cache_gib,
            engine_args=server.engine_args,
        )
        check_engine_args(server.engine_args, SECTION)
        self._engine: VLLMEngine | None = None
        self._replies: VLLMReplies | None = None
        self._folder = ""

    @property
    def id(self) -> str:
        return self._ready().id

    def start(self) -> None:
        """Start vLLM, or wake it with the same weights."""
        if self._replies is not None:
            return
        server, config = self._server, self._judge.config
        if not self._folder:
            self._folder = str(
                local_folder(
                    server.path,
                    key=f"{SECTION}.path",
                    revision=server.revision,
                    trust_remote_code=server.trust_remote_code,
                )
            )
        model = ModelConfig(
            path=self._folder, **server.model_dump(include={"dtype", "chat_template", "trust_remote_code"})
        )
        chat = Chat(model, SECTION)
        if self._engine is None:
            sampling = SamplingConfig(max_prompt_tokens=config.max_prompt_tokens, max_new_tokens=config.reply_tokens)
            self._engine = VLLMEngine(self._folder, self._config, model, sampling, self._judge.seed)
        else:
            self._engine.reload(self._folder)
        self._replies = VLLMReplies(self._identity(chat), self._engine, chat, config, self._judge.trial())

    def spent(self) -> dict[str, int]:
        return {}

    def reply(self, questions: list[Question]) -> list[Reply]:
        replies = self._ready()
        try:
            return replies.reply(questions)
        except Exception as error:
            self._close()  # a failed engine would return leftover requests with the next shard's
            raise RoleError(f"judge: vLLM failed on {len(questions)} questions: {error}") from error

    def sleep(self) -> None:
        self._replies = None
        if self._engine is not None and self._engine.can_sleep:
            self._engine.sleep()
        else:
            self._close()

    def _close(self) -> None:
        self._replies = None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _identity(self, chat: Chat) -> str:
        """Names the model by its weights, its tokenizer and chat template, and its number format."""
        text = "\x1f".join((weights_digest(self._folder), chat.digest, self._server.dtype))
        return f"vllm:{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _ready(self) -> VLLMReplies:
        if self._replies is None:
            raise RoleError("judge: no model is loaded; call start() first, also after sleep()")
        return self._replies
