"""Small models from one's own files: what is refused, how prompts are divided, and a tiny pair of models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.chat import Chat
from actors.tiny_policy import CHAT_TEMPLATE_WITHOUT_BOS, byte_level_tokenizer, learn_bpe
from engine.config.load import load
from engine.config.prompts import PromptsConfig
from engine.config.run import ModelConfig
from engine.data.ingest import ingest
from engine.errors import DataError
from recipes.prepare import small_models
from recipes.prepare.small_models import (
    ANSWERS,
    POLICY_ROLES,
    POLICY_TOKENS,
    PREFERENCES,
    Settings,
    build,
    read_columns,
    split,
)

CONFIG = Path("recipes/configs/real_prompts.yaml")
COLOURS = ("red", "blue", "grün", "白い", "🟣")
SMALL = Settings(
    heldout_share=0.2,
    vocabulary=400,
    hidden_size=32,
    num_layers=1,
    epochs=1,
    pairrm_hidden_size=32,
    pairrm_num_layers=1,
    pairrm_source_tokens=32,
    pairrm_answer_tokens=32,
    pairrm_steps=60,
    pairrm_lr=4e-3,
)


def write(file: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def story(folder: Path) -> tuple[Path, Path]:
    """Guests ask for things in a colour; a polite answer beats a rude one of the same length."""
    draw = random.Random(0)
    prompts = [f"Paint number {n} in {draw.choice(COLOURS)}, please." for n in range(60)]
    polite, rude = ([f"{word} painting number {n} now." for n in range(60)] for word in ("Gladly", "Sighs:"))
    left = [draw.random() < 0.5 for _ in prompts]
    answers = write(folder / "answers.parquet", prompt=prompts * 2, answer=polite + rude)
    pairs = write(
        folder / "pairs.parquet",
        prompt=prompts,
        answer_a=[p if is_left else r for p, r, is_left in zip(polite, rude, left, strict=True)],
        answer_b=[r if is_left else p for p, r, is_left in zip(polite, rude, left, strict=True)],
        p_a_wins=[0.95 if is_left else 0.05 for is_left in left],
    )
    return answers, pairs


def test_a_prompt_is_on_one_side_only_whatever_the_order_of_rows():
    answers = [(f"p{n % 40}", f"a{n}") for n in range(120)]
    pairs = [(f"p{n}", "a", "b", 1.0) for n in range(40)]
    training, heldout = split(answers, pairs, Settings())
    assert len(heldout.prompts) == 4
    assert len(training.prompts) == 36
    for side, other in ((training, heldout), (heldout, training)):
        asked = {row[0] for row in [*side.answers, *side.pairs]}
        assert asked == set(side.prompts)
        assert not asked & set(other.prompts)
    assert len(training.answers) + len(heldout.answers) == 120
    again = split(answers[::-1], pairs[::-1], Settings())[1]
    assert set(again.prompts) == set(heldout.prompts)
    assert set(split(answers, pairs, Settings(seed=1))[1].prompts) != set(heldout.prompts)


def test_a_split_without_preferences_on_one_side_is_refused():
    answers = [(f"p{n}", "a") for n in range(40)]
    with pytest.raises(DataError, match="both are needed"):
        split(answers, [("p1", "a", "b", 1.0)], Settings())


def test_every_bad_row_is_named_at_once(tmp_path):
    file = write(
        tmp_path / "pairs.parquet",
        prompt=["fine", " ", "fine", "fine"],
        answer_a=["a", "a", None, ""],
        answer_b=["b", "b", "b", "b"],
        p_a_wins=[0.5, 1.0, 1.5, float("nan")],
    )
    with pytest.raises(DataError) as error:
        read_columns(file, PREFERENCES)
    text = str(error.value)
    assert "row 2: prompt is ' '" in text
    assert "row 3: answer_a is None" in text
    assert "row 3: p_a_wins is 1.5; expected a number in [0, 1]" in text
    assert "row 4: p_a_wins is nan" in text
    assert "row 4: answer_a" not in text  # an empty answer can be judged
    assert "row 1" not in text


def test_a_missing_column_a_missing_file_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(DataError, match="lacks answer;"):
        read_columns(write(tmp_path / "a.parquet", prompt=["p"], reply=["r"]), ANSWERS)
    with pytest.raises(DataError, match="no rows"):
        read_columns(
            write(tmp_path / "b.parquet", prompt=pa.array([], "string"), answer=pa.array([], "string")), ANSWERS
        )
    (tmp_path / "c.parquet").write_text("prompt,answer\n")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        read_columns(tmp_path / "c.parquet", ANSWERS)
    with pytest.raises(DataError, match="cannot be read"):
        build(tmp_path, tmp_path / "none.parquet", tmp_path / "none.parquet", Settings())


def test_the_rule_that_longer_wins_is_right_for_the_longer_and_half_right_for_equals():
    from actors.scorers.pairrm.training import Pair

    pairs = [
        Pair("p", "long", "s", 0.9),
        Pair("p", "long", "s", 0.2),
        Pair("p", "ab", "cd", 1.0),
        Pair("p", "x", "", 0.5),
    ]
    assert small_models.longer_wins(pairs) == 0.5  # (1 + 0 + 1/2) / 3; even odds do not count


def test_the_tokenizer_writes_any_text_and_reads_it_back():
    merges = learn_bpe(["the tea is green, the cup is blue"] * 3, 300)
    tokenizer = byte_level_tokenizer(merges, POLICY_TOKENS, POLICY_ROLES, CHAT_TEMPLATE_WITHOUT_BOS)
    for text in ("zwölf Boxkämpfer", "日本語 и עברית", "a  b\n\n\tc 🙂 don't", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(" the tea").input_ids) < 8
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "tea"}], tokenize=False)
    assert tokenizer(rendered).input_ids[-1] == tokenizer.eos_token_id


def test_the_config_for_real_prompts_names_what_the_recipe_writes():
    config = load(CONFIG)
    assert (config.model.path, config.scorer.path) == ("runs/small/policy", "runs/small/pairrm")
    assert config.evaluation.prompts.source == "runs/small/heldout.jsonl"
    assert config.evaluation.scorer is None
    pools = sum(pool.cpus for pool in config.pools.values()) + config.learner.num_ranks * config.learner.cpus
    assert pools <= 2.0
    assert config.sampling.max_prompt_tokens + config.sampling.max_new_tokens <= Settings().max_positions


def test_all_public_instructions_fit_the_config_and_a_small_vocabulary(public_data, tmp_path):
    file = public_data / "alpaca_eval" / "instructions.parquet"
    texts = pq.read_table(file, columns=["instruction"])["instruction"].to_pylist()
    merges = learn_bpe(texts, Settings().vocabulary)
    tokenizer = byte_level_tokenizer(merges, POLICY_TOKENS, POLICY_ROLES, CHAT_TEMPLATE_WITHOUT_BOS)
    tokenizer.save_pretrained(tmp_path)
    config = load(CONFIG)
    prompts = PromptsConfig(source=str(file), column="instruction", use="all")
    chat = Chat(ModelConfig(path=str(tmp_path)))
    result = ingest(prompts, str(file), chat, config.sampling.max_prompt_tokens)
    assert result.table.num_rows == 805
    assert result.dropped == []


@pytest.mark.real
def test_models_of_a_small_story_judge_unseen_prompts_load_and_are_kept(tmp_path):
    from transformers import AutoModelForCausalLM

    from actors.scorers.pairrm.checkpoint import load_pairrm

    answers, pairs = story(tmp_path)
    figures = build(tmp_path / "models", answers, pairs, SMALL)
    assert figures["heldout_prompts"] == figures["pairrm_heldout_pairs"] == 12
    assert figures["pairrm_heldout_accuracy"] >= 11 / 12
    assert figures["longer_wins_heldout_accuracy"] == 0.5
    assert figures["sft_heldout_loss"] < figures["sft_first_loss"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "models/policy").config.head_dim == 32
    assert load_pairrm(tmp_path / "models/pairrm").inputs.room.source == 32
    texts = [(tmp_path / "models" / f"{name}.jsonl").read_text().splitlines() for name in ("prompts", "heldout")]
    assert len({json.loads(line)["prompt"] for part in texts for line in part}) == 60

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "models").rglob("*")}
    assert build(tmp_path / "models", answers, pairs, SMALL) == figures
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "models").rglob("*")}
    with pytest.raises(DataError, match="other settings; choose another folder"):
        build(tmp_path / "models", answers, pairs, Settings(seed=1))
