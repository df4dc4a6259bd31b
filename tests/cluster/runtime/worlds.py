"""The smallest inputs on which every real engine has work: a random policy, a random PairRM, sixteen prompts."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from actors.scorers.pairrm.inputs import Room
from actors.scorers.pairrm.training import new_pairrm
from actors.tiny_policy import make_tiny_policy
from engine.config.load import dump_yaml

NUM_PROMPTS, NUM_HELDOUT, SHARD_SIZE, ITERATIONS, K = 16, 4, 4, 2, 3
NUM_SHARDS, NUM_STEPS = NUM_PROMPTS // SHARD_SIZE, NUM_PROMPTS // 4
STOPS = [2, 40, 41, 42, 43, 44, 45, 46]
"""EOS and seven more ids, so that some answers of a random policy end by themselves."""
MAX_NEW_TOKENS = 16


def make_world(folder: Path) -> Path:
    """Write policy/, pairrm/, prompts.jsonl and heldout.jsonl to `folder` and return it."""
    make_tiny_policy(folder / "policy", seed=3, eos_token_ids=STOPS)
    make_pairrm(folder / "pairrm")
    write_prompts(folder / "prompts.jsonl", "Question", NUM_PROMPTS)
    write_prompts(folder / "heldout.jsonl", "Held-out question", NUM_HELDOUT)
    return folder


def make_pairrm(folder: Path) -> None:
    """A random PairRM that distinguishes answers by their characters."""
    import torch
    from transformers import DebertaV2Tokenizer

    special = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    characters = [(c, -6.0) for c in dict.fromkeys(string.printable.strip() + "▁")]
    tokenizer = DebertaV2Tokenizer(vocab=special + characters)
    model = new_pairrm(tokenizer, hidden_size=32, num_heads=2, room=Room(source=64, answer=48), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # a fresh model's logits are near 0, where every comparison is a tie
    model.eval().save(folder)


def write_prompts(path: Path, word: str, count: int) -> None:
    lines = (json.dumps({"prompt": f"{word} number {i}?"}) + "\n" for i in range(count))
    path.write_text("".join(lines), encoding="utf-8")


def distinct_letters(messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """A rule for the evaluator: an answer is worth a quarter of a nat per different letter."""
    return [len(set(answer)) / 4 for answer in answers]


def real_values(world: Path, output: Path, name: str) -> dict[str, Any]:
    """vLLM, PairRM and two ranks of DeepSpeed on two CPU cores, as the values of a config."""
    return {
        "name": name,
        "output": str(output),
        "seed": 5,
        "iterations": ITERATIONS,
        "shard_size": SHARD_SIZE,
        "model": {"path": str(world / "policy"), "dtype": "float32"},
        "prompts": {"source": str(world / "prompts.jsonl"), "column": "prompt", "use": "all"},
        "sampling": {"num_samples": K, "max_new_tokens": MAX_NEW_TOKENS, "max_prompt_tokens": 48},
        "generator": {"cpus": 0.5, "kv_cache_gib": 0.1},
        "scorer": {"kind": "pairrm", "path": str(world / "pairrm"), "cpus": 0.25},
        "algorithm": {"name": "sppo", "eta": 5.0},
        "learner": {
            "num_ranks": 2,
            "cpus": 0.5,
            "zero_stage": 2,
            "batch_size": 4,
            "micro_batch_size": 2,
            "checkpoint_every": 2,
            "optimizer": {"name": "rmsprop", "lr": 1.0e-3},
        },
        "evaluation": {
            "prompts": {"source": str(world / "heldout.jsonl"), "column": "prompt", "use": "all"},
            "num_samples": 2,
            "scorer": {"kind": "rule", "function": "tests.cluster.runtime.worlds:distinct_letters", "cpus": 0.25},
        },
        "cluster": {"start_deadline_s": 240, "shard_deadline_s": 120, "step_deadline_s": 120},
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(dump_yaml(values), encoding="utf-8")
    return path
