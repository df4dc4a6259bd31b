"""A judge's model behind a remote server: good servers, failing ones and lying ones, limits, cache, and the key."""

from __future__ import annotations

import logging
import math
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.openai_client import OpenAIModel
from actors.scorers.judge.openai_protocol import choice_logps
from engine.config.judge import OpenAIServer
from engine.errors import ConfigError, RoleError
from tests.actors.scorers.judge.story_server import Say, Story, StoryServer, completion

KEY = "sk-test-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
ASK = "Which is better?"
FREE = Question(({"role": "user", "content": ASK},), seed=5, temperature=0.7)
CHOICE = Question(({"role": "user", "content": ASK},), seed=5, choices=("A", "B"))
LETTERS = [("A", -0.5, {"A": -0.5, "B": -1.5, "The": -3.0})]

Serve = Callable[[Story], StoryServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[StoryServer] = []

    def start(story: Story) -> StoryServer:
        servers.append(StoryServer(story))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Seconds that the openai client would have waited before each retry, instead of waiting."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr("anyio.sleep", sleep)
    return seconds


def model(server: StoryServer, **keys) -> OpenAIModel:
    keys = {"max_retries": 2, "timeout_s": 30.0, "api_key_env": "JUDGE_KEY"} | keys
    made = OpenAIModel(OpenAIServer(base_url=server.url, model="judge-1", **keys), 64)
    made.start()
    return made


def in_turn(*says: Say) -> Story:
    """Each answer once, then the last one again and again."""
    left = list(says)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def distinct(n: int, of: Question = FREE) -> list[Question]:
    return [Question(({"role": "user", "content": f"question {i}"},), i, of.choices) for i in range(n)]


GOOD = Say(completion("fine"))


# What is asked and answered


def test_replies_come_back_in_the_order_of_their_questions(serve):
    server = serve(lambda body: Say(completion("to " + body["messages"][0]["content"])))
    replies = model(server).reply(distinct(20))
    assert [reply.texts for reply in replies] == [(f"to question {i}",) for i in range(20)]


def test_a_request_holds_what_was_asked_and_nothing_of_this_machine(serve, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of this machine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: of this machine")
    server = serve(in_turn(GOOD))
    model(server).reply([FREE])
    headers, body = server.requests[0]
    assert body == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": ASK}],
        "temperature": 0.7,
        "seed": 5,
        "max_completion_tokens": 64,
    }
    assert {name.lower() for name in headers} == {
        *("host", "accept", "accept-encoding", "connection", "content-type", "content-length"),
        *("user-agent", "authorization", "x-stainless-raw-response"),
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "of this machine" not in str(headers)


def test_without_a_named_key_no_key_is_sent(serve):
    server = serve(in_turn(GOOD))
    model(server, api_key_env=None).reply([FREE])
    assert "authorization" not in {name.lower() for name in server.requests[0][0]}


def test_several_samples_are_one_request(serve):
    server = serve(in_turn(Say(completion("one", "two", "three"))))
    question = Question(FREE.messages, 5, num_samples=3, temperature=0.7)
    assert model(server).reply([question]) == [Reply(("one", "two", "three"))]
    assert server.bodies[0]["n"] == 3


def test_a_server_that_gives_one_sample_at_a_time_is_asked_for_the_rest_with_other_seeds(serve):
    server = serve(lambda body: Say(completion(f"seed {body['seed']}")))
    question = Question(FREE.messages, 5, num_samples=3, temperature=0.7)
    assert model(server).reply([question])[0].texts == ("seed 5", "seed 6", "seed 7")
    assert [body.get("n") for body in server.bodies] == [3, 2, None]


def test_samples_that_the_server_withholds_are_missing_and_counted(serve):
    server = serve(in_turn(Say(completion("one", None, "three"))))
    made = model(server)
    assert made.reply([Question(FREE.messages, 5, num_samples=3, temperature=1.0)])[0].texts == ("one", "three")
    assert made.counts["withheld"] == 1


def test_samples_that_ran_into_the_limit_are_marked_also_behind_one_that_was_withheld(serve):
    body = completion("one", None, "three", "four")
    for sample, reason in zip(body["choices"], ("stop", "content_filter", "length", "stop"), strict=True):
        sample["finish_reason"] = reason
    question = Question(FREE.messages, 5, num_samples=4, temperature=1.0)
    made = model(serve(in_turn(Say(body))))
    assert made.reply([question]) == [Reply(("one", "three", "four"), cut=frozenset({1}))]


def test_a_choice_is_whole_although_its_one_token_reached_the_limit(serve):
    body = completion("A", logprobs=LETTERS)
    body["choices"][0]["finish_reason"] = "length"
    assert model(serve(in_turn(Say(body)))).reply([CHOICE])[0].cut == frozenset()


def test_the_id_names_server_and_model(serve):
    server = serve(in_turn(GOOD))
    assert model(server).id == f"openai:{server.url.split('/')[2]}:judge-1"


# Choices


def test_a_choice_is_read_from_the_likeliest_first_tokens(serve):
    server = serve(in_turn(Say(completion("A", logprobs=LETTERS))))
    (reply,) = model(server).reply([CHOICE])
    total = math.exp(-0.5) + math.exp(-1.5)
    assert reply.texts == ("A",)
    assert reply.choice_logps == pytest.approx({"A": -0.5 - math.log(total), "B": -1.5 - math.log(total)})
    expected = {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 0.0}
    assert server.bodies[0].items() >= expected.items()


def test_variants_in_case_and_space_are_one_choice():
    listed = [("A", math.log(0.3)), (" a", math.log(0.1)), ("B", math.log(0.2)), ("b\n", math.log(0.2)), ("AB", -5.0)]
    assert choice_logps(("A", "B"), listed) == pytest.approx({"A": math.log(0.5), "B": math.log(0.5)})


def test_case_counts_where_only_case_tells_the_choices_apart():
    listed = [("yes", math.log(0.6)), (" YES", math.log(0.2))]
    assert choice_logps(("yes", "YES"), listed) == pytest.approx({"yes": math.log(0.75), "YES": math.log(0.25)})


def test_a_choice_that_is_not_listed_gets_the_most_that_the_list_leaves_it():
    # The list leaves 0.04 of 1, its least probable entry has 0.06.
    listed = [("A", math.log(0.9)), ("The", math.log(0.06))]
    assert choice_logps(("A", "B"), listed) == pytest.approx({"A": math.log(0.9 / 0.94), "B": math.log(0.04 / 0.94)})
    # Now 0.3 would be left, but each entry that is not listed has at most 0.1.
    listed = [("A", math.log(0.6)), ("The", math.log(0.1))]
    assert choice_logps(("A", "B"), listed)["B"] == pytest.approx(math.log(0.1 / 0.7))


def test_impossible_choices_have_no_probability_rather_than_an_error():
    assert choice_logps(("A", "B"), [("A", 0.0), ("B", -9999.0)]) == {"A": 0.0, "B": -math.inf}


def test_vllm_is_asked_for_structured_outputs(serve):
    server = serve(in_turn(Say(completion("B", logprobs=[("B", -0.1, {"B": -0.1, "A": -2.4})]))))
    (reply,) = model(server, choice_mode="guided", length_key="max_tokens").reply([CHOICE])
    assert server.bodies[0]["structured_outputs"] == {"choice": ["A", "B"]}
    assert server.bodies[0]["max_tokens"] == 16
    assert reply.texts == ("B",)
    assert reply.choice_logps["B"] > reply.choice_logps["A"]


@pytest.mark.parametrize(
    "tokens",
    [
        [('{"', {}), ("choice", {}), ('":"', {}), ("B", {"B": -0.2, "A": -1.7}), ('"}', {})],
        [('{"choice"', {}), (": ", {}), ('"B', {'"B': -0.2, '"A': -1.7, "null": -9.0}), ('"}', {})],
        [('{"choice": "', {}), ('B"}', {'B"}': -0.2, 'A"}': -1.7})],
    ],
)
def test_within_json_the_choice_is_found_however_the_text_is_cut_into_tokens(serve, tokens):
    logprobs = [(token, top.get(token, 0.0), top) for token, top in tokens]
    text = "".join(token for token, _ in tokens)
    server = serve(in_turn(Say(completion(text, logprobs=logprobs))))
    (reply,) = model(server, choice_mode="json_schema").reply([CHOICE])
    assert reply.texts == ("B",)
    assert reply.choice_logps["B"] - reply.choice_logps["A"] == pytest.approx(1.5)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["choice"]["enum"] == ["A", "B"]


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (completion("A"), ("A",)),
        (completion(" a."), ()),
        (completion("Neither", logprobs=[("Neither", -0.1, {"Neither": -0.1, "Both": -3.0})]), ()),
        (completion("B", logprobs=[("B", 3.5, {"B": 3.5})]), ("B",)),
        (completion("B", logprobs=[("B", math.nan, {"B": math.nan})]), ("B",)),
        (completion("B", logprobs=[]), ("B",)),
        ({"choices": [{"message": {"content": "B"}, "logprobs": {"content": "lies"}}]}, ("B",)),
    ],
    ids=["none", "no choice", "others", "above 0", "NaN", "empty", "wrong shape"],
)
def test_without_usable_logprobs_of_the_choices_their_probabilities_are_unknown_not_guessed(serve, body, texts):
    made = model(serve(in_turn(Say(body))))
    assert made.reply([CHOICE]) == [Reply(texts, None)]
    assert made.counts["no_logprobs"] == 1


# Servers that fail


def test_a_busy_server_is_given_the_time_it_asks_for(serve, pauses):
    server = serve(in_turn(Say("busy", 429, {"Retry-After": "7"}), Say("busy", 503), GOOD))
    made = model(server)
    assert made.reply([FREE])[0].texts == ("fine",)
    assert pauses == [7.0, pytest.approx(1.0, rel=0.25)]
    assert made.counts["retries"] == 2


def test_pauses_double_up_to_eight_seconds_and_are_spread(serve, pauses):
    made = model(serve(in_turn(Say("busy", 503))), max_retries=6)
    assert made.reply([FREE]) == [Reply(())]
    assert pauses == [pytest.approx(longest * 0.875, rel=1 / 7) for longest in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)]
    assert made.spending.requests == 7


@pytest.mark.parametrize("wish", ["3600", "Fri, 31 Dec 2199 23:59:59 GMT"])
def test_a_wish_for_an_hours_pause_ends_the_run_instead_of_looking_like_a_hang(serve, pauses, wish):
    server = serve(in_turn(Say("busy", 503), Say("busy", 429, {"Retry-After": wish})))
    with pytest.raises(RoleError, match=rf"does not want to be asked again soon .*Retry-After: {wish}.*again later"):
        model(server).reply([FREE])
    assert len(server.requests) == 2
    assert len(pauses) == 1


@pytest.mark.parametrize("nonsense", ["soon", "-1", "nan", ""])
def test_a_wish_that_makes_no_sense_leaves_the_pause_as_it_is(serve, pauses, nonsense):
    server = serve(in_turn(Say("busy", 429, {"Retry-After": nonsense}), GOOD))
    assert model(server).reply([FREE])[0].texts == ("fine",)
    assert pauses == [pytest.approx(0.5, rel=0.25)]


def test_an_unreadable_body_is_asked_for_once_more_but_not_where_retries_are_off(serve):
    server = serve(in_turn(FAILING["sends other JSON"][0]))
    for max_retries, requests in ((5, 2), (0, 1)):
        made = model(server, max_retries=max_retries)
        assert made.reply([FREE]) == [Reply(())]
        assert (made.spending.requests, made.counts["retries"]) == (requests, requests - 1)


FAILING = {
    "hangs": (Say(hang=True), "timeout"),
    "never ends": (Say(drip=True), "timeout"),
    "closes mid-body": (Say(completion("half"), cut=True), "connection"),
    "is broken": (Say("<h1>Bad gateway</h1>", 502, {"Content-Type": "text/html"}), "status 502"),
    "sends a page": (Say("<html>hello</html>", headers={"Content-Type": "text/html"}), "unreadable"),
    "sends a page as JSON": (Say("<html>hello</html>"), "unreadable"),
    "sends other JSON": (Say({"result": "A"}), "unreadable"),
    "sends a list": (Say("[1, 2]"), "unreadable"),
    "sends no choices": (Say({"choices": []}), "unreadable"),
    "sends a number as text": (Say({"choices": [{"message": {"content": 3}}]}), "unreadable"),
    "sends deep JSON": (Say("[" * 100_000), "unreadable"),
    "sends bad gzip": (Say("not gzip", headers={"Content-Encoding": "gzip"}), "connection"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_server_that_fails_is_asked_again_and_then_the_reply_is_missing_and_counted(serve, caplog, name):
    say, kind = FAILING[name]
    server = serve(in_turn(say))
    made = model(server, timeout_s=0.3 if kind == "timeout" else 30.0, max_retries=1)
    assert made.reply([FREE]) == [Reply(())]
    assert made.spending.requests == 2
    assert made.counts[f"lost/{kind}"] == 1
    assert f"questions without a reply: 1 {kind}" in caplog.text


@pytest.mark.parametrize("name", ["closes mid-body", "sends a page", "is broken"])
def test_a_server_that_recovers_costs_nothing_but_a_retry(serve, name):
    assert model(serve(in_turn(FAILING[name][0], GOOD))).reply([FREE]) == [Reply(("fine",))]


def test_json_is_read_with_any_content_type(serve):
    server = serve(in_turn(Say(completion("fine"), headers={"Content-Type": "text/html"})))
    assert model(server).reply([FREE]) == [Reply(("fine",))]


def test_a_refused_connection_loses_the_reply(serve):
    server = serve(in_turn(GOOD))
    made = model(server)
    server._http.server_close()
    server._http.shutdown()
    assert made.reply([FREE]) == [Reply(())]
    assert made.counts["lost/connection"] == 1


def test_a_server_that_is_down_is_given_up_long_before_every_question_was_tried(serve):
    server = serve(in_turn(Say("no", 503)))
    with pytest.raises(
        RoleError, match=r"8 questions in a row got no reply .* Last: status 503: no\. Spent .*requests"
    ):
        model(server, max_concurrency=2).reply(distinct(100))
    assert len(server.requests) < 40


REFUSALS = {
    "wrong key": (401, {"error": {"message": f"Incorrect key {KEY}"}}, r"status 401; check the key in JUDGE_KEY"),
    "not allowed": (403, {"error": {"message": "no"}}, r"status 403; check the key in JUDGE_KEY"),
    "no such model": (404, {"error": {"message": "no model judge-1"}}, r"status 404; check server.model"),
    "bad request": (400, {"error": {"message": "no logprobs here"}}, r"choice_mode.*It says: no logprobs here"),
    "redirect": (307, "", r"status 307, which sends clients elsewhere"),
    "no money": (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, r"status 429.*It says: pay"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_ends_the_run_at_once_and_names_server_and_model(serve, name):
    status, body, words = REFUSALS[name]
    elsewhere = serve(in_turn(GOOD))
    server = serve(in_turn(Say(body, status, {"Location": elsewhere.url + "/chat/completions"})))
    with pytest.raises(RoleError, match=words) as caught:
        model(server, max_concurrency=1).reply(distinct(10))
    assert server.url in str(caught.value)
    assert "judge-1" in str(caught.value)
    # The client cannot distinguish a used-up quota from a busy server until its retries are used up.
    assert len(server.requests) == (3 if name == "no money" else 1)
    assert elsewhere.requests == []


def test_a_prompt_that_is_too_long_for_the_model_is_a_reply_that_says_so(serve):
    error = {"error": {"message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded"}}
    server = serve(lambda body: Say(error, 400) if "question 1" in str(body) else GOOD)
    assert model(server).reply(distinct(3)) == [Reply(("fine",)), Reply((), overlong=True), Reply(("fine",))]


def test_a_prompt_that_the_server_filters_costs_its_own_verdict_alone(serve):
    server = serve(
        lambda body: Say({"error": {"code": "content_filter"}}, 400) if "1" in str(body["messages"]) else GOOD
    )
    made = model(server)
    assert [reply.texts for reply in made.reply(distinct(3))] == [("fine",), (), ("fine",)]
    assert made.counts["lost/filtered"] == 1


# Concurrency, limits, cache


def test_never_more_requests_at_once_than_declared(serve):
    together = threading.Barrier(3)

    def story(_: dict) -> Say:
        return GOOD

    server = serve(story)
    tell = server._tell

    def tell_when_three_are_here(handler, say):
        together.wait(timeout=30)  # passes only if three requests really are under way at once
        tell(handler, say)

    server._tell = tell_when_three_are_here
    assert model(server, max_concurrency=3).reply(distinct(12)) == [Reply(("fine",))] * 12
    assert server.most_at_once == 3


def test_the_limit_on_requests_is_exact_and_counts_retries(serve, tmp_path):
    server = serve(in_turn(Say("busy", 503), GOOD))
    made = model(server, max_requests=5, cache=str(tmp_path))
    with pytest.raises(RoleError, match=r"max_requests = 5 is reached. Spent since the start: 5 requests") as caught:
        made.reply(distinct(10))
    assert f"replies so far are kept in {tmp_path}" in str(caught.value)
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_tokens_total": 40}, r"max_tokens_total = 40 is reached.*4 requests, 40 tokens in, 8 out"),
        (
            {"max_cost_usd": 1e-4, "usd_per_million_input_tokens": 2.0, "usd_per_million_output_tokens": 10.0},
            r"max_cost_usd = 0.0001 is reached.*3 requests.*0.0001 USD",
        ),
    ],
)
def test_limits_on_tokens_and_money_stop_the_asking_and_say_what_was_spent(serve, limit, words):
    server = serve(in_turn(GOOD))
    with pytest.raises(RoleError, match=words):
        model(server, max_concurrency=1, **limit).reply(distinct(10))


def test_a_limit_on_tokens_needs_a_server_that_counts_them(serve):
    server = serve(in_turn(Say(completion("fine", usage=None))))
    with pytest.raises(RoleError, match="reports no token usage"):
        model(server, max_tokens_total=100).reply([FREE])
    assert model(server).reply([FREE]) == [Reply(("fine",))]


def test_after_a_limit_nothing_that_was_paid_for_is_asked_again(serve, tmp_path):
    server = serve(lambda body: Say(completion("to " + body["messages"][0]["content"])))
    with pytest.raises(RoleError, match="max_requests = 6"):
        model(server, max_requests=6, max_concurrency=2, cache=str(tmp_path)).reply(distinct(10))
    assert len(server.requests) == 6
    again = model(server, cache=str(tmp_path))
    assert [reply.texts for reply in again.reply(distinct(10))] == [(f"to question {i}",) for i in range(10)]
    assert (len(server.requests), again.counts["cached"], again.spending.requests) == (10, 6, 4)


def test_a_kept_reply_needs_no_server_at_all(serve, tmp_path):
    server = serve(in_turn(Say(completion("A", logprobs=LETTERS))))
    first = model(server, cache=str(tmp_path)).reply([CHOICE])
    server.story = in_turn(Say("gone", 500))
    assert model(server, cache=str(tmp_path)).reply([CHOICE]) == first
    assert len(server.requests) == 1


def test_another_question_seed_model_or_mode_is_not_the_kept_one(serve, tmp_path):
    server = serve(in_turn(Say(completion("A", logprobs=LETTERS))))
    model(server, cache=str(tmp_path)).reply([CHOICE])
    model(server, cache=str(tmp_path)).reply([Question(CHOICE.messages, 6, CHOICE.choices)])
    model(server, cache=str(tmp_path), choice_mode="guided").reply([CHOICE])
    model(server, cache=str(tmp_path)).reply([Question(FREE.messages, 5)])
    assert len(server.requests) == 4


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"sha256": "0", "body": "{}"}', b"\xff"])
def test_a_damaged_kept_reply_is_asked_again_and_mended(serve, tmp_path, damage):
    server = serve(in_turn(GOOD))
    model(server, cache=str(tmp_path)).reply([FREE])
    (kept,) = tmp_path.rglob("*.json")
    kept.write_bytes(damage)
    for _ in range(2):
        assert model(server, cache=str(tmp_path)).reply([FREE]) == [Reply(("fine",))]
    assert len(server.requests) == 2


def test_what_cannot_be_read_is_not_kept(serve, tmp_path):
    model(serve(in_turn(FAILING["sends other JSON"][0])), cache=str(tmp_path)).reply([FREE])
    assert list(tmp_path.rglob("*")) == []


def test_a_cache_folder_that_cannot_be_written_says_so(serve, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RoleError, match=r"server.cache = .*file: cannot be written"):
        model(serve(in_turn(GOOD)), cache=str(tmp_path / "file")).reply([FREE])


# The key


def test_a_missing_key_variable_is_named(serve, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="api_key_env = JUDGE_KEY: no such variable"):
        model(serve(in_turn(GOOD)))


def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n" + KEY)
    with pytest.raises(ConfigError, match="cannot be sent in a header") as caught:
        model(serve(in_turn(GOOD)))
    assert KEY not in str(caught.value)


def test_the_key_is_forgotten_while_the_judge_sleeps(serve):
    made = model(serve(in_turn(GOOD)))
    made.sleep()
    assert KEY not in str(vars(made))
    with pytest.raises(RoleError, match="call start"):
        made.reply([FREE])
    made.start()
    assert made.reply([FREE]) == [Reply(("fine",))]


def test_the_key_is_nowhere_but_in_the_header_even_if_the_server_repeats_it(serve, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(
        in_turn(
            Say(f"try later, {KEY}", 503, {"Set-Cookie": "harmless"}),
            Say(completion(f"your key is {KEY}")),
            Say({"error": {"message": f"bad key {KEY}"}}, 401),
        )
    )
    made = model(server, cache=str(tmp_path), max_concurrency=1)
    texts = made.reply([FREE])[0].texts
    with pytest.raises(RoleError) as caught:
        made.reply(distinct(1))
    message = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=False).format())
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert texts == ("your key is [key]",)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers, _ in server.requests)
    assert len(caplog.records) > 5
    for place in (message, repr(made), str(made.counts), str(made.spending), caplog.text, kept, made.id):
        assert KEY not in place
    assert KEY not in "".join(repr(record.__dict__) for record in caplog.records)


def test_a_refusal_quotes_a_short_excerpt_of_the_servers_words(serve):
    server = serve(in_turn(Say({"error": {"message": "your prompt was: " + "word " * 1000}}, 400)))
    with pytest.raises(RoleError) as caught:
        model(server).reply([FREE])
    assert len(str(caught.value)) < 600


def test_a_refusal_holds_no_terminal_escape_sequences(serve):
    server = serve(in_turn(Say({"error": {"message": "\x1b]0;mine\x07\x1b[2Jno"}}, 400)))
    with pytest.raises(RoleError) as caught:
        model(server).reply([FREE])
    assert r"\x1b]0;mine\x07\x1b[2Jno" in str(caught.value) and "\x1b" not in str(caught.value)
