"""The tearoom: its splits, its oracle (by hand), its controls, its tokenizers, and the world that is built from it."""

from __future__ import annotations

import hashlib
import json
import random
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from engine.config.load import load
from engine.errors import DataError
from recipes.experiments.tearoom import build as tearoom_build
from recipes.experiments.tearoom import world as tearoom
from recipes.experiments.tearoom.build import Settings

PROMPT = "Good evening! One matcha with lemon for my aunt, please."
CONFIG = Path("recipes/configs/demo.yaml")
SMALL = Settings(
    demonstrations=192, sft_epochs=1.0, preferences=64, judge_heldout=32, pairrm_steps=4, prompts=8, heldout=8
)


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def test_no_prompt_is_in_two_parts_and_held_out_prompts_are_many():
    split = Settings().split()
    parts = [split.demonstrations, split.preferences, split.judge_heldout, split.prompts, split.heldout]
    texts = [order.text for part in parts for order in part]
    assert len(texts) == len(set(texts)) == 9100
    assert len(split.heldout) >= 200


def test_the_same_seed_splits_the_same_and_another_seed_differently():
    assert Settings(seed=3).split() == Settings(seed=3).split()
    assert Settings(seed=3).split().heldout != Settings(seed=4).split().heldout


@pytest.mark.parametrize(
    ("answer", "utility"),
    [
        # drink 2 + extra 1 + time 1 + polite 1.5
        ("Of course! One matcha with lemon. Enjoy your evening.", 5.5),
        # the house drink and no extra: time 1 + polite 1.5
        ("Of course! One assam as usual. Enjoy your evening.", 2.5),
        # drink 2 + extra 1 + time 1, one rude sentence -1.5
        ("Whatever. One matcha with lemon. Enjoy your evening.", 2.5),
        # two rude sentences, nothing right
        ("Oh, hurry. Here is your assam as always. Now pay and leave.", -3.0),
        # naming two drinks is not listening: extra 1 + time 1 + polite 1.5
        ("Gladly, dear! One matcha assam with lemon. Enjoy your evening.", 3.5),
        # a word twice running -0.5, no end -1.0
        ("Of course! One matcha with lemon. Enjoy your your evening", 4.0),
        ("", -1.0),
    ],
)
def test_the_oracle_adds_up_its_merits(answer, utility):
    assert tearoom.oracle(ask(PROMPT), [answer]) == [utility]


def test_saying_a_good_answer_twice_gains_nothing():
    answer = "Of course! One matcha with lemon. Enjoy your evening."
    once, twice = tearoom.oracle(ask(PROMPT), [answer, f"{answer} {answer}"])
    assert twice == once


def test_the_oracle_reads_the_last_user_message_whatever_came_before():
    chat = [*ask("This morning it is cocoa with ice for me."), {"role": "assistant", "content": "Again?"}, *ask(PROMPT)]
    answers = ["One matcha with lemon.", "One cocoa with ice."]
    assert tearoom.oracle(chat, answers) == [3.0, 0.0]


def test_every_order_says_what_the_oracle_understands():
    for order in tearoom.orders():
        expected = {"drink": order.drink, "extra": order.extra, "time": order.time}
        assert tearoom.understand(order.text) == expected, order.text


def test_demonstrations_are_good_and_bad_and_their_length_does_not_reveal_which():
    draw = random.Random(0)
    orders = Settings().split().demonstrations
    answers = [tearoom.flawed_answer(order, tearoom.DEMONSTRATOR, draw) for order in orders]
    utilities = [tearoom.utility(order.text, answer) for order, answer in zip(orders, answers, strict=True)]
    assert min(utilities) == -3.0
    assert max(utilities) == 5.5
    assert 0.0 < statistics.fmean(utilities) < 2.0
    tokens = [len(re.findall(r"\w+|[^\w\s]", answer)) for answer in answers]
    assert abs(np.corrcoef(tokens, utilities)[0, 1]) < 0.1


def test_the_inverted_oracle_is_the_negative():
    answers = ["Again?", "Of course! One matcha with lemon. Enjoy your evening."]
    assert tearoom.inverted_oracle(ask(PROMPT), answers) == [-u for u in tearoom.oracle(ask(PROMPT), answers)]


def test_the_random_scorer_repeats_its_scores_which_have_nothing_to_do_with_quality():
    orders = Settings().split().prompts[:1000]
    draw = random.Random(0)
    answers = [tearoom.flawed_answer(order, tearoom.DEMONSTRATOR, draw) for order in orders]
    scores = [tearoom.random_scorer(ask(o.text), [a])[0] for o, a in zip(orders, answers, strict=True)]
    assert scores == [tearoom.random_scorer(ask(o.text), [a])[0] for o, a in zip(orders, answers, strict=True)]
    truth = [tearoom.utility(order.text, answer) for order, answer in zip(orders, answers, strict=True)]
    assert statistics.stdev(scores) == pytest.approx(2.0, abs=0.2)
    assert abs(np.corrcoef(scores, truth)[0, 1]) < 4 / np.sqrt(1000)  # four standard errors of no correlation


def test_the_vocabulary_has_every_word_of_every_order_and_answer():
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {word for text in tearoom.texts() for word, _ in splitter.pre_tokenize_str(text)}
    draw = random.Random(0)
    answers = [tearoom.flawed_answer(order, tearoom.CROWD, draw, stray_drink=0.5) for order in tearoom.orders()[::7]]
    used = [order.text for order in tearoom.orders()[::3]] + answers
    assert {word for text in used for word, _ in splitter.pre_tokenize_str(text)} <= known


def test_the_demo_configuration_is_valid_and_divides_its_prompts_in_three():
    config = load(CONFIG)
    assert config.prompts.limit == 3 * 640 <= Settings().prompts
    assert config.evaluation.scorer.function == "recipes.experiments.tearoom.world:oracle"
    assert config.model.path == "runs/demo-world/policy"


def test_a_folder_with_a_world_of_other_settings_is_refused(tmp_path):
    (tmp_path / "world.json").write_text(json.dumps({"settings": {"seed": 7}}), encoding="utf-8")
    with pytest.raises(DataError, match="choose another folder or delete this one"):
        tearoom_build.build(tmp_path, Settings(seed=0))


def test_the_command_line_reports_another_world_as_a_usage_error(tmp_path, capsys):
    (tmp_path / "world.json").write_text(json.dumps({"settings": {"seed": 7}}), encoding="utf-8")
    assert tearoom_build.main([str(tmp_path), "--seed", "0"]) == DataError.exit_code
    assert "choose another folder" in capsys.readouterr().err


def digests(folder: Path) -> dict[str, str]:
    files = [
        f for f in sorted(folder.rglob("*")) if f.suffix in {".safetensors", ".jsonl"} or f.name == "tokenizer.json"
    ]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.real
def test_the_same_settings_make_the_same_files(tmp_path):
    tearoom_build.build(tmp_path / "a", SMALL)
    tearoom_build.build(tmp_path / "b", SMALL)
    first = digests(tmp_path / "a")
    assert len(first) >= 7
    assert first == digests(tmp_path / "b")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tearoom_build.build(folder, Settings())
    return folder


@pytest.mark.real
def test_the_world_starts_flawed_with_a_judge_that_agrees_with_the_oracle(world):
    figures = json.loads((world / "world.json").read_text(encoding="utf-8"))["figures"]
    assert figures["pairrm_heldout_agreement"] >= 0.85
    assert figures["pairrm_heldout_pairs"] >= 500
    assert figures["start_utility_greedy"] < 0 < figures["start_utility_sampled"] < 2
    assert 8 <= figures["start_tokens_sampled"] <= 16


@pytest.mark.real
def test_a_complete_world_is_kept_as_it_is(world):
    before = {file: file.stat().st_mtime_ns for file in world.rglob("*") if file.is_file()}
    written = json.loads((world / "world.json").read_text(encoding="utf-8"))
    assert tearoom_build.build(world, Settings()) == written["figures"]
    assert before == {file: file.stat().st_mtime_ns for file in world.rglob("*") if file.is_file()}


@pytest.mark.real
def test_the_policy_folder_renders_chats_and_decodes_exactly(world):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    text = tokenizer.apply_chat_template(ask(PROMPT), add_generation_prompt=True, tokenize=False)
    assert text == f"<|user|>{PROMPT}<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    assert model.config.head_dim == 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.real
def test_the_inverted_pairrm_gives_exactly_the_negative_logits(world):
    from actors.scorers.pairrm.checkpoint import load_pairrm
    from actors.scorers.pairrm.inputs import Candidates
    from actors.scorers.pairrm.model import score_candidates

    answers = ["Of course! One matcha with lemon. Enjoy your evening.", "Again? One assam as usual. Now pay and leave."]
    prompts = [Candidates("p", PROMPT, answers)]
    logits, inverted = (
        score_candidates(load_pairrm(world / name), prompts, 4096)[0].logits for name in ("pairrm", "pairrm_inverted")
    )
    assert logits[0, 1] > 1.0
    np.testing.assert_array_equal(inverted, -logits)


def test_the_held_out_prompts_are_a_benchmark_in_alpaca_evals_form(tmp_path):
    tearoom_build._write_benchmark(tmp_path / "alpaca_eval.json", Settings())
    rows = json.loads((tmp_path / "alpaca_eval.json").read_text())
    assert [row["instruction"] for row in rows] == [order.text for order in Settings().split().heldout]
    assert min(tearoom.utility(row["instruction"], row["output"]) for row in rows) > 0
