"""A judge's model behind vLLM's own OpenAI-compatible server on this machine; the reference is transformers.

One server serves the whole module.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.openai_client import OpenAIModel
from actors.tiny_policy import make_tiny_policy
from engine.config.judge import OpenAIServer
from engine.errors import RoleError

pytestmark = pytest.mark.real

KEY = "a-key-of-this-test"


def question(content: str, **keys) -> Question:
    return Question(({"role": "user", "content": content},), **({"seed": 5} | keys))


CHOICE = question("Which is better?", choices=("A", "B"))
FREE = question("Say something.", temperature=1.0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(process: subprocess.Popen, url: str, log_file: Path) -> None:
    """Poll until the server answers; fail the test if it ended or does not answer within fifteen minutes."""
    deadline = time.monotonic() + 900
    while True:
        assert process.poll() is None, f"vLLM ended:\n{log_file.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"vLLM does not answer:\n{log_file.read_text()[-4000:]}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)  # pause of a polling loop with a deadline


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), seed=3)


@pytest.fixture(scope="module")
def vllm_url(policy, tmp_path_factory) -> Iterator[str]:
    """vLLM's own server on this machine, which requires a key."""
    port, log_file = free_port(), tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {
        "VLLM_API_KEY": KEY,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-model-len", "512"]
    with log_file.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log_file)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # the engine's process, should its parent have left it behind
            os.killpg(process.pid, signal.SIGKILL)


def real_model(url: str, **keys) -> OpenAIModel:
    config = OpenAIServer(base_url=url, **({"model": "tiny", "api_key_env": "JUDGE_KEY"} | keys))
    made = OpenAIModel(config, 12)
    made.start()
    return made


def letters_by_transformers(policy: Path, questions: list[Question]) -> list[dict[str, float]]:
    """log p(letter | A or B) of each question, in nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, logps_of_letters = AutoTokenizer.from_pretrained(policy), []
    network = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
    for question in questions:
        text = tokenizer.apply_chat_template(list(question.messages), add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            logps = network(ids).logits[0, -1, letters].log_softmax(-1)
        logps_of_letters.append(dict(zip("AB", logps.tolist(), strict=True)))
    return logps_of_letters


def test_vllms_own_server_gives_the_probabilities_that_transformers_computes(vllm_url, policy, tmp_path):
    questions = [question(f"question {i}", choices=("A", "B")) for i in range(4)]
    made = real_model(vllm_url, choice_mode="guided", cache=str(tmp_path))
    replies = made.reply(questions)
    for reply, expected in zip(replies, letters_by_transformers(policy, questions), strict=True):
        assert reply.choice_logps == pytest.approx(expected, abs=1e-3)
        assert reply.texts == (max(expected, key=expected.__getitem__),)
    assert made.spending.requests == 4
    assert made.spending.input_tokens > 40
    again = real_model(vllm_url, choice_mode="guided", cache=str(tmp_path))
    assert (again.reply(questions), again.spending.requests) == (replies, 0)


def test_vllms_own_server_keeps_to_a_json_schema(vllm_url):
    (reply,) = real_model(vllm_url, choice_mode="json_schema").reply([CHOICE])
    assert reply.texts[0] in CHOICE.choices
    assert sum(math.exp(logp) for logp in reply.choice_logps.values()) == pytest.approx(1.0)


def test_vllms_own_server_draws_the_same_texts_from_the_same_seeds(vllm_url):
    asked = question("Say something.", num_samples=3, temperature=1.0)
    first, second = (real_model(vllm_url).reply([asked])[0] for _ in range(2))
    assert first == second
    assert len(set(first.texts)) == 3


def test_vllms_own_server_refuses_a_missing_key_and_an_unknown_model_and_says_what_is_too_long(vllm_url):
    with pytest.raises(RoleError, match="status 401"):
        real_model(vllm_url, api_key_env=None).reply([FREE])
    with pytest.raises(RoleError, match=r"status 404; check server\.model"):
        real_model(vllm_url, model="other").reply([FREE])
    long = question("long " * 500)
    assert real_model(vllm_url).reply([long]) == [Reply((), overlong=True)]
