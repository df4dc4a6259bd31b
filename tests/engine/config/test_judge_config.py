"""A remote judge's configuration: where it may send what, and that secrets are named, never given."""

from __future__ import annotations

import traceback

import pytest

from engine.config.base import is_secret_name
from engine.config.load import config_digest, dump, load
from engine.errors import ConfigError
from engine.report.summary import highlights

KEY = "sk-proj-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
RULE = {
    "model": {"path": "m"},
    "prompts": {"source": "p.jsonl"},
    "scorer": {"kind": "rule", "function": "package.module:function"},
}
HELDOUT_WIN_RATES = RULE | {
    "scorer": {
        "kind": "judge",
        "prompt": "recipes/judges/pairwise.txt",
        "server": {"kind": "openai", "base_url": "https://api.example.com/v1/", "model": "judge-1"},
    }
}


def problems(*overrides: str, base: dict = HELDOUT_WIN_RATES) -> str:
    """What is said of these overrides, wherever it might be printed, tracebacks included."""
    with pytest.raises(ConfigError) as caught:
        load(overrides=overrides, base=base)
    said = "".join(traceback.format_exception(caught.value))
    assert KEY not in said
    return "\n".join(caught.value.problems)


def test_a_remote_judge_needs_an_address_and_a_model_and_nothing_else():
    server = load(base=HELDOUT_WIN_RATES).scorer.server
    assert (server.base_url, server.host, server.is_local) == ("https://api.example.com/v1", "api.example.com", False)
    assert (server.api_key_env, server.cache, server.max_requests) == (None, None, None)


def test_a_report_names_the_model_that_judged():
    assert highlights(load(base=HELDOUT_WIN_RATES))["scorer.kind"] == "judge (pairwise, judge-1)"


def test_what_is_stored_of_the_key_is_the_name_of_its_variable():
    config = load(overrides=["scorer.server.api_key_env=JUDGE_API_KEY"], base=HELDOUT_WIN_RATES)
    assert "api_key_env: JUDGE_API_KEY" in dump(config)


@pytest.mark.parametrize("value", [KEY, "AKIA1234567890ABCDEF", "my-key", "lower_case", "", "A" * 70])
def test_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(value):
    said = problems(f"scorer.server.api_key_env='{value}'")
    assert "scorer.server.api_key_env: expected the NAME of an environment variable" in said
    assert not value or value not in said


def test_who_writes_api_key_learns_where_its_name_goes():
    said = problems(f"scorer.server.api_key={KEY}")
    assert "scorer.server.api_key: unknown key; here it is scorer.server.api_key_env, the NAME of" in said


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://api.example.com", "expected a URL such as"),
        ("api.example.com/v1", "expected a URL such as"),
        ("https:///v1", "expected a URL such as"),
        ("https://api.example.com:99999/v1", "expected a URL such as"),
        (f"https://user:{KEY}@api.example.com/v1", "from the URL"),
        (f"https://api.example.com/v1?key={KEY}", "from the URL"),
        ("http://api.example.com/v1", "would travel unencrypted"),
        ("http://10.0.0.5:8000/v1", "would travel unencrypted"),
        ("http://127.0.0.1.example.com/v1", "would travel unencrypted"),
    ],
)
def test_an_address_that_is_none_or_gives_things_away_is_refused(url, words):
    assert words in problems(f"scorer.server.base_url='{url}'")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"])
def test_this_machine_may_be_asked_without_encryption(url):
    assert load(overrides=[f"scorer.server.base_url='{url}'"], base=HELDOUT_WIN_RATES).scorer.server.is_local


def test_another_machine_may_be_asked_without_encryption_where_that_is_declared():
    overrides = ["scorer.server.base_url='http://gpu7:8000/v1'", "scorer.server.allow_insecure_http=true"]
    assert not load(overrides=overrides, base=HELDOUT_WIN_RATES).scorer.server.is_local


def test_a_limit_in_dollars_needs_both_prices():
    said = problems("scorer.server.max_cost_usd=5", "scorer.server.usd_per_million_input_tokens=1")
    assert "max_cost_usd = 5 needs usd_per_million_output_tokens" in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scorer.num_replicas=2", "raise server.max_concurrency"),
        ("scorer.gpus=1", "computes elsewhere"),
        ("scorer.max_prompt_tokens=100", "max_prompt_tokens: without effect"),
    ],
)
def test_what_means_nothing_for_a_remote_model_is_refused(override, words):
    assert words in problems(override)


def test_raising_a_limit_does_not_make_another_run():
    digest = config_digest(load(base=HELDOUT_WIN_RATES))
    for change in ("max_requests=9", "cache=c", "timeout_s=5", "api_key_env=OTHER_KEY", "max_concurrency=1"):
        assert config_digest(load(overrides=[f"scorer.server.{change}"], base=HELDOUT_WIN_RATES)) == digest
    assert config_digest(load(overrides=["scorer.server.choice_mode=guided"], base=HELDOUT_WIN_RATES)) != digest
    assert config_digest(load(overrides=["scorer.server.model=judge-2"], base=HELDOUT_WIN_RATES)) != digest


@pytest.mark.parametrize("name", ["api_key", "apiKey", "openai-api-key", "token", "hf_token", "auth_token", "password"])
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "tokenizer", "token_budget", "pad_token", "eos_token", "api_key_env", "keys", "sort_key"]
)
def test_names_that_only_sound_alike_are_left_alone(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"scorer.arguments.api_key={KEY}", "scorer.arguments: api_key: looks like a secret"),
        ("scorer.arguments={client: {password: hunter2}}", "scorer.arguments: client.password: looks like"),
        (f"scorer.arguments={{headers: [{KEY}]}}", "scorer.arguments: headers.0: looks like a secret"),
        ("generator.engine_args.hf_token=abc", "generator.engine_args: hf_token: looks like a secret"),
    ],
)
def test_a_secret_among_free_arguments_is_refused_and_not_repeated(override, words):
    said = problems(override, base=RULE)
    assert words in said
    assert "give the NAME of an environment variable" in said
    assert "hunter2" not in said


def test_free_arguments_may_name_a_secret_or_say_that_there_is_one():
    overrides = ["scorer.arguments.api_key_env=MY_KEY", "generator.engine_args.hf_token=true"]
    config = load(overrides=overrides, base=RULE)
    assert config.scorer.arguments == {"api_key_env": "MY_KEY"}
    assert config.generator.engine_args == {"hf_token": True}


def test_a_judge_engine_takes_no_secret_either():
    server = {"kind": "vllm", "path": "m", "engine_args": {"api_key": KEY}}
    base = RULE | {"scorer": HELDOUT_WIN_RATES["scorer"] | {"server": server}}
    assert "scorer.server.engine_args: api_key: looks like a secret" in problems(base=base)
