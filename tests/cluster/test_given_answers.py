"""A whole run on a data set of preferences: fake roles, a real file, and no answer of the policy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from actors.fakes import letter_logps
from engine.algorithm import Algorithm, Batch, Selection, row_of
from tests.runs import fake_config, play


@pytest.fixture(autouse=True)
def memory_is_durable_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Offline(Algorithm):
    """DPO at its barest: chosen before rejected, from the data set alone."""

    name: Literal["offline"] = "offline"

    @property
    def given(self) -> int:
        return 2

    @property
    def min_samples(self) -> int:
        return 1

    def stages(self, iteration: int) -> tuple[str, ...]:
        return ()

    def select(self, table: pa.Table) -> Selection:
        rows = [
            row_of(prompt, [-1, -2], prompt["given_token_ids"], prompt["given_win_rates"])
            for prompt in table.to_pylist()
        ]
        return Selection.of(rows, {}, "offline")

    def loss(self, batch: Batch) -> Any:
        return -(batch.log_ratio[:, 0] - batch.log_ratio[:, 1]).sigmoid().log()

    def reward_scale(self) -> float:
        return 1.0


def test_a_data_set_of_preferences_trains_without_any_answer_of_the_policy(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{i}?", "chosen": "aaa", "rejected": "bc"} for i in range(8)]
    source.write_text("".join(f"{json.dumps(pair)}\n" for pair in [*pairs, {**pairs[0], "rejected": "aaa"}]))
    config = fake_config(tmp_path, prompts={"source": str(source), "use": "all"}, iterations=1)
    folder = play(config.model_copy(update={"algorithm": Offline()}))
    assert "identical 1" in (folder / "metrics.jsonl").read_text()
    logps = letter_logps(folder / "weights" / "001")
    assert logps[0] == max(logps) > logps[1]
