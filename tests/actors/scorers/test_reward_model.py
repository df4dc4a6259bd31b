"""Reward models rate answers as transformers does alone, whatever the batch, and refuse what is no reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from actors.scorers.builtin import build_scorer
from actors.tiny_policy import make_tiny_policy
from engine.config.scorer import RewardModelConfig
from engine.errors import ModelError, RoleError
from engine.schema import SCORES
from tests.actors.scorers.test_builtin import completions

ANSWERS = [["Yes.", "No, and for three reasons that I explain below.", "Yes."], ["", "Perhaps!"]]


def write_decoder(folder: Path, seed: int = 0, labels: int = 1, **changes: Any) -> str:
    """A random Llama with one output, a byte-level tokenizer and a chat template."""
    make_tiny_policy(folder)
    (folder / "model.safetensors").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_labels=labels, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def write_encoder(folder: Path) -> str:
    """A random BERT with one output, whose tokenizer has no chat template."""
    characters = [*"abcdefghijklmnopqrstuvwxyz.,!?0123456789"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=80)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=96, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scored(path: str, answers: list[list[str]] = ANSWERS, **config: Any) -> list[dict[str, Any]]:
    scorer = build_scorer(RewardModelConfig(path=path, **config))
    scorer.start()
    table = scorer.score(completions(answers))
    assert table.schema.equals(SCORES)
    return table.to_pylist()


def alone(path: str, row: int, answer: str) -> float:
    """The reward by transformers' own classes, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    question = f"question {row}"
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    else:
        inputs = tokenizer(question, answer, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits.item()


@pytest.mark.parametrize("write", [write_decoder, write_encoder], ids=["decoder with a chat template", "encoder"])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_rewards_are_those_of_transformers_and_logits_their_differences(write, batch_tokens: int, tmp_path: Path):
    path = write(tmp_path / "model")
    for number, row in enumerate(scored(path, batch_tokens=batch_tokens)):
        expected = [alone(path, number, answer) for answer in ANSWERS[number]]
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
        assert np.array(row["pair_logits"]) == pytest.approx(np.subtract.outer(expected, expected), abs=2e-5)
        assert row["num_truncated"] == 0
    assert scored(path)[0]["scores"][0] == scored(path)[0]["scores"][2]


def test_a_model_without_a_padding_token_reads_one_answer_at_a_time(tmp_path: Path):
    path = write_decoder(tmp_path / "model")
    expected = [row["scores"] for row in scored(path)]
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    for row, rewards in zip(scored(path), expected, strict=True):
        assert row["scores"] == pytest.approx(rewards, abs=1e-5)


def test_a_conversation_that_is_too_long_loses_its_beginning_and_is_counted(tmp_path: Path):
    decoder, encoder = write_decoder(tmp_path / "decoder"), write_encoder(tmp_path / "encoder")
    long = "x" * 200
    (row,) = scored(decoder, [["a", f"{long}a", f"{long}ya"]], max_tokens=60)
    assert row["num_truncated"] == 6  # each of the six comparisons has a text that was cut
    assert len(set(row["scores"])) == 3
    (same,) = scored(decoder, [[f"{long}a", f"{long}{long}a"]], max_tokens=60)
    assert same["scores"][0] == same["scores"][1]
    (row,) = scored(encoder, [["a", "b", "x " * 200]])  # 80 tokens, as its tokenizer says
    assert row["num_truncated"] == 4


def test_control_tokens_that_an_answer_spells_are_text(tmp_path: Path):
    decoder, encoder = write_decoder(tmp_path / "decoder"), write_encoder(tmp_path / "encoder")
    for path, token in ((decoder, "<|eos|>"), (encoder, "[SEP]")):
        scorer = build_scorer(RewardModelConfig(path=path))
        scorer.start()
        plain, forged = (scorer._encode([{"role": "user", "content": "q"}], text).ids for text in ("ab", f"a{token}b"))
        special = AutoTokenizer.from_pretrained(path).convert_tokens_to_ids(token)
        assert forged.count(special) == plain.count(special)


def test_the_id_follows_weights_and_settings(tmp_path: Path):
    path = write_decoder(tmp_path / "model")
    ids = {scored(path)[0]["scorer"], scored(path, max_tokens=60)[0]["scorer"]}
    assert scored(path)[0]["scorer"] in ids and len(ids) == 2
    write_decoder(tmp_path / "other", seed=1)
    assert scored(str(tmp_path / "other"))[0]["scorer"] not in ids


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path):
    policy = make_tiny_policy(tmp_path / "policy")
    with pytest.raises(ModelError, match=r"its files lack score\.weight; expected a reward model, not its base"):
        scored(str(policy))
    with pytest.raises(ModelError, match=r"it has 3 outputs; expected one"):
        scored(write_decoder(tmp_path / "three", labels=3))
    with pytest.raises(ModelError, match=r"scorer\.path = .*nowhere: no such folder"):
        scored(str(tmp_path / "nowhere"))
    pickled = tmp_path / "pickled"
    write_decoder(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        scored(str(pickled))


def test_rewards_that_are_not_finite_name_their_prompt(tmp_path: Path):
    path = write_decoder(tmp_path / "model")
    model = LlamaForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        model.score.weight.fill_(torch.inf)
    model.save_pretrained(path)
    with pytest.raises(RoleError, match=r"the reward of an answer to p\d is (nan|inf|-inf)"):
        scored(path)


@pytest.mark.real
def test_what_trls_reward_trainer_writes_is_a_scorer_that_prefers_what_it_was_trained_to(tmp_path: Path):
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    policy = make_tiny_policy(tmp_path / "policy", spread=0.05)
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "chosen": [{"role": "assistant", "content": "good " * (1 + i % 3)}],
            "rejected": [{"role": "assistant", "content": "evil " * (1 + i % 2)}],
        }
        for i in range(64)
    ]
    options = RewardConfig(
        output_dir=str(tmp_path / "trained"), max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", gradient_checkpointing=False, logging_steps=30,
    )  # fmt: skip
    trainer = RewardTrainer(model=str(policy), args=options, train_dataset=Dataset.from_list(pairs))
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    answers = [["good good", "evil evil"]] * 5
    rows = scored(str(tmp_path / "trained"), answers)
    for number, row in enumerate(rows):
        assert row["scores"] == pytest.approx(
            [alone(str(tmp_path / "trained"), number, a) for a in answers[0]], abs=1e-4
        )
        assert row["scores"][0] > row["scores"][1]
