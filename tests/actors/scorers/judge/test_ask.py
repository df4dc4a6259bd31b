"""A judge that is asked anything: questions of benchmarks go to its model as they are, and every end has a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.factories import make_judge
from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.scorer import JudgeScorer
from actors.tiny_policy import make_tiny_policy
from engine.config.judge import JudgeConfig
from engine.errors import RoleError, SchemaError
from engine.loop.spending import spent
from engine.schema import COMPLETIONS, QUESTIONS, REPLIES
from tests.actors.scorers.judge.story_server import Say, StoryServer, completion
from tests.tables import shard

PROMPT = str(Path(__file__).parents[4] / "recipes" / "judges" / "pairwise.txt")


def questions(*texts: str, **changes: Any) -> pa.Table:
    rows = [
        {"messages": [{"role": "user", "content": text}], "seed": i, "temperature": 0.0, "max_new_tokens": 9} | changes
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, QUESTIONS)


def scorer(server: dict[str, Any], **keys: Any) -> JudgeScorer:
    return JudgeScorer(make_judge(JudgeConfig(server=server, prompt=PROMPT, **keys), seed=3))


class Scripted:
    """A model that replies by a list."""

    id = "scripted"

    def __init__(self, *replies: Reply):
        self.replies, self.questions = list(replies), []

    def start(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def spent(self) -> dict[str, int]:
        return {}

    def reply(self, questions: list[Question]) -> list[Reply]:
        self.questions += questions
        return self.replies


def test_every_end_of_a_reply_has_a_name() -> None:
    judge = scorer({"kind": "vllm", "path": "nowhere"})
    model = Scripted(
        Reply(("fine",)),
        Reply(("and so o",), cut=frozenset([0])),
        Reply((), overlong=True),
        Reply(()),
        Reply(("\ud800",)),
    )
    judge._model = model
    judge.start()
    replies = judge.ask(questions("a", "b", "c", "d", "e", temperature=0.5))
    assert replies.schema.names == REPLIES.names
    assert replies["reply"].to_pylist() == ["fine", "and so o", "", "", "\ufffd"]
    assert replies["reply_end"].to_pylist() == ["stop", "length", "overlong", "missing", "stop"]
    assert set(replies["judge"].to_pylist()) == {"scripted"}
    asked = model.questions[1]
    assert asked == Question(({"role": "user", "content": "b"},), 1, temperature=0.5, max_new_tokens=9)


def test_a_model_that_loses_replies_is_refused() -> None:
    judge = scorer({"kind": "vllm", "path": "nowhere"})
    judge._model = Scripted(Reply(("only one",)))
    judge.start()
    with pytest.raises(RoleError, match="1 replies came back for 2 questions"):
        judge.ask(questions("a", "b"))


def test_nothing_is_asked_for_an_empty_table_and_another_table_is_refused() -> None:
    judge = scorer({"kind": "vllm", "path": "nowhere"})
    judge._model = Scripted(Reply(("never",)))
    judge.start()
    assert judge.ask(questions()).num_rows == 0
    with pytest.raises(SchemaError, match="questions for judge:pairwise:scripted"):
        judge.ask(pa.table({"x": [1]}))


def test_a_remote_model_is_asked_with_the_limit_of_the_question() -> None:
    server = StoryServer(lambda body: Say(completion("to " + body["messages"][0]["content"])))
    try:
        judge = scorer({"kind": "openai", "base_url": server.url, "model": "m"})
        judge.start()
        replies = judge.ask(questions("a", "b", max_new_tokens=77))
    finally:
        server.close()
    assert replies["reply"].to_pylist() == ["to a", "to b"]
    assert [body["max_completion_tokens"] for body in server.bodies] == [77, 77]
    assert set(replies["judge"].to_pylist()) == {judge._model.id}  # type: ignore[union-attr]


def test_what_a_remote_model_was_paid_for_comes_with_its_replies() -> None:
    server = StoryServer(lambda body: Say(completion("A", usage=(100, 2))))
    try:
        judge = scorer({"kind": "openai", "base_url": server.url, "model": "m"})
        judge.start()
        first, second = judge.ask(questions("a", "b", "c")), judge.score(shard(COMPLETIONS, [2]))
    finally:
        server.close()
    assert spent(first) == {"paid_requests": 3, "paid_input_tokens": 300, "paid_output_tokens": 6}
    assert spent(second) == {"paid_requests": 2, "paid_input_tokens": 200, "paid_output_tokens": 4}  # both orders


@pytest.mark.real
def test_a_pairwise_judge_in_vllm_writes_as_much_as_there_is_room_for(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    server = {"kind": "vllm", "path": str(policy), "dtype": "float32", "kv_cache_gib": 0.25}
    judge = scorer(server, max_prompt_tokens=1200)
    judge.start()
    try:
        room = 1200 + 1 + 1  # its own prompt and one letter, and one more that vLLM wants
        replies = judge.ask(
            questions("short", "x" * 1100, "y" * 1300, max_new_tokens=2048, temperature=1.0)
        ).to_pylist()
        assert [reply["reply_end"] for reply in replies][1:] == ["length", "overlong"]
        assert 0 < len(replies[1]["reply"]) < room - 1100
        short = judge.ask(questions("short", max_new_tokens=5, temperature=1.0)).to_pylist()[0]
        assert short["reply"] != "" and replies[0]["reply"].startswith(short["reply"][:1])
    finally:
        judge.sleep()
