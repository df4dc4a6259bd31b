"""New prompts from old ones: what the filters refuse, what a request holds, and that it comes to an end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from actors.tiny_policy import make_tiny_policy
from engine.errors import DataError
from recipes.prepare.self_instruct import (
    Pool,
    Settings,
    cleaned,
    collect,
    main,
    read_seeds,
    request,
    rouge_l,
    vllm_writer,
)

SEEDS = [f"Write {n} words about {thing}." for n, thing in enumerate(["tea", "rain", "bees", "salt", "owls", "ink"], 3)]


def pool(**changes) -> Pool:
    return Pool(SEEDS, Settings("model", "seeds", **changes))


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # "police kill the gunman" has "police the gunman" in common with the reference: 2 * 3 / (4 + 4)
    assert rouge_l(["police", "killed", "the", "gunman"], ["police", "kill", "the", "gunman"]) == 0.75
    assert rouge_l(["a"], ["b"]) == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Draw a graph of the tides.", "keyword"),
        ("Hi", "length"),
        ("", "length"),
        ("- list all of the planets", "opening"),
        ("Write 3 words about tea!", "similar"),
        ("Explain why the tide rises twice a day.", "kept"),
    ],
)
def test_each_filter_refuses_what_it_is_for(text, reason):
    prompts = pool()
    assert prompts.offer(text) == (reason == "kept")
    assert prompts.counts == {reason: 1}


def test_what_was_kept_is_too_similar_to_be_kept_again():
    prompts = pool()
    assert prompts.offer("Explain why the tide rises twice a day.")
    assert not prompts.offer("Explain why the tide rises twice a night.")


def test_a_request_shows_six_seeds_and_two_own_prompts():
    prompts = pool()
    for text in ("Explain why the tide rises.", "Name a river in Peru and its length.", "Sum up Hamlet for a child."):
        assert prompts.offer(text)
    shots = prompts.shots(random.Random(0))
    assert sorted(shots[:6]) == sorted(SEEDS) and set(shots[6:]) <= set(prompts.own) and len(shots) == 8
    assert request(shots).endswith("\nTask 9:")


def test_only_the_first_task_of_a_reply_counts():
    assert cleaned(" Count the bees.\nTask 10: Count the owls.") == "Count the bees."
    assert cleaned("Task 9: Count the bees.") == "Count the bees."


def test_collecting_ends_with_the_number_asked_for_and_is_the_same_each_time():
    def write(requests: list[str], seeds: list[int]) -> list[str]:
        return [f"Tell the story of number {seed} in {seed % 97} and {seed % 89} parts" for seed in seeds]

    results = []
    for _ in range(2):
        prompts = pool(num=5, max_similarity=0.9)
        collect(prompts, Settings("model", "seeds", num=5, max_similarity=0.9), write)
        results.append(prompts.own)
    assert len(results[0]) == 5 and results[0] == results[1]


def test_a_model_that_only_repeats_itself_is_an_error_with_counts():
    with pytest.raises(DataError, match=r"only 1 of 5 prompts after 2 rounds.*similar"):
        collect(pool(), Settings("m", "s", num=5, max_rounds=2), lambda requests, seeds: ["Sing of the sea."] * 64)


def test_seeds_without_text_are_named(tmp_path: Path):
    file = tmp_path / "seeds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "a"}, {"prompt": ""}, {"x": 1}]))
    with pytest.raises(DataError, match=r"3 rows, of which \[2, 3\]"):
        read_seeds(file, 1)


def test_nothing_is_overwritten(tmp_path: Path, capsys):
    (tmp_path / "new.jsonl").write_text("mine\n")
    assert main([str(tmp_path / "new.jsonl"), "--model", "m", "--seeds", "s"]) != 0
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "new.jsonl").read_text() == "mine\n"


@pytest.mark.real
def test_vllm_writes_the_same_replies_to_the_same_requests(tmp_path: Path):
    make_tiny_policy(tmp_path)
    write = vllm_writer(Settings(str(tmp_path), "seeds", dtype="float32", max_prompt_tokens=512, max_new_tokens=16))
    requests = [request(SEEDS), request(SEEDS[:3])]
    replies = write(requests, [1, 2])
    assert len(replies) == 2 and replies[0] != replies[1]
    assert write(requests[::-1], [2, 1]) == replies[::-1]
