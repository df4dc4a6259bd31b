"""A whole run on a data set of preferences: fake roles, a real file, and no sampled completion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.fakes import letter_logps
from tests.runs import fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def test_a_data_set_of_preferences_trains_without_any_answer_of_the_policy(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{i}?", "chosen": "aaa", "rejected": "bc"} for i in range(8)]
    source.write_text("".join(f"{json.dumps(pair)}\n" for pair in [*pairs, {**pairs[0], "rejected": "aaa"}]))
    prompts, algorithm = {"source": str(source), "use": "all"}, {"name": "dpo", "data": "dataset"}
    folder = play(fake_config(tmp_path, prompts=prompts, algorithm=algorithm, iterations=1))
    assert "identical 1" in (folder / "metrics.jsonl").read_text()
    logps = letter_logps(folder / "weights" / "001")
    assert logps[0] == max(logps) > logps[1]
