"""The share of instructions followed as a reward: a scorer that a program verifies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.scorers.builtin import build_scorer
from engine.config.scorer import IFEvalScorerConfig
from engine.errors import ConfigError, RoleError
from engine.schema import COMPLETIONS, NO_DATASET_COMPLETIONS, SCORES
from engine.store.reader import RunReader
from tests.runs import fake_config, play

PROMPT = "Write less than 3 words without commas."
ROW = {
    "prompt": PROMPT,
    "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
    "kwargs": [{"relation": "less than", "num_words": 3}, {}],
}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def completions(prompt: str, answers: list[str]) -> pa.Table:
    k = len(answers)
    row = {
        "prompt_id": "p",
        "messages": [{"role": "user", "content": prompt}],
        "prompt_text": prompt,
        "prompt_token_ids": [1],
        **NO_DATASET_COMPLETIONS,
        "completions": answers,
        "completion_token_ids": [[1]] * k,
        "completion_logps": [0.0] * k,
        "finish_reasons": ["stop"] * k,
        "seeds": [0] * k,
        "weights": "w",
        "num_from_policy": k,
    }
    return pa.Table.from_pylist([row], COMPLETIONS)


def test_answers_compare_by_the_share_of_instructions_that_they_follow(tmp_path):
    scorer = build_scorer(IFEvalScorerConfig(prompts=write(tmp_path / "p.jsonl", ROW), scale=4.0))
    scorer.start()
    (logits,) = scorer.score(completions(PROMPT, ["two words", "far, too many words", "one, two"]))["pair_logits"]
    np.testing.assert_array_equal(np.array(logits.as_py())[0], [0.0, 4.0, 2.0])


def test_the_id_names_the_instructions_the_strictness_and_the_scale(tmp_path):
    def identity(row: dict = ROW, **changes) -> str:
        return build_scorer(IFEvalScorerConfig(prompts=write(tmp_path / "p.jsonl", row), **changes)).identify()

    other = {**ROW, "kwargs": [{"relation": "less than", "num_words": 4}, {}]}
    assert len({identity(), identity(other), identity(strictness="loose"), identity(scale=1.0)}) == 4
    assert identity() == identity()


def test_a_prompt_without_instructions_is_named(tmp_path):
    scorer = build_scorer(IFEvalScorerConfig(prompts=write(tmp_path / "p.jsonl", ROW)))
    scorer.start()
    with pytest.raises(RoleError, match=r"1 prompts are not in .*first prompt_id p"):
        scorer.score(completions("another prompt", ["a", "b"]))


def test_one_prompt_with_two_lists_of_instructions_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="occur more than once"):
        build_scorer(IFEvalScorerConfig(prompts=write(tmp_path / "p.jsonl", ROW, ROW))).start()


@pytest.mark.usefixtures("memory_is_durable_enough")
def test_a_run_trains_on_the_prompts_of_the_file(tmp_path):
    source = write(tmp_path / "p.jsonl", *({**ROW, "key": n, "prompt": f"{PROMPT} {n}"} for n in range(4)))
    scorer = {"kind": "ifeval", "prompts": source}
    config = fake_config(
        tmp_path, scorer=scorer, prompts={"source": source, "use": "all"}, evaluation={"scorer": scorer}, iterations=1
    )
    (scores,) = {name for t in RunReader(play(config)).tables(0, "scores", SCORES) for name in t["scorer"].to_pylist()}
    assert scores.startswith("ifeval:")
