"""Every algorithm learns over fake roles: what the data or the scorer prefers becomes likelier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.fakes import letter_logps
from engine.algorithms import ALGORITHMS
from engine.schema import REF_LOGPS
from engine.store import inspection
from engine.store.run import RunStore
from tests.runs import fake_config, play

PAIR, DEMONSTRATION = {"chosen": "aaab", "rejected": "bbc"}, {"completion": "aaab"}
LABELS = [{"completion": "aaab", "label": True}, {"completion": "bbcb", "label": False}]
WORLDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "sppo": ({"name": "sppo"}, []),
    "dpo": ({"name": "dpo"}, []),
    "dpo-start": ({"name": "dpo", "reference": "start"}, []),
    "dpo-mixed": ({"name": "dpo", "losses": {"ipo": 1.0, "sft": 0.1}, "beta": 0.2}, []),
    "self_rewarding": ({"name": "self_rewarding", "length_tier": 0.3}, []),
    "dpo-given": ({"name": "dpo", "data": "dataset"}, [PAIR]),
    "spac": ({"name": "spac"}, [PAIR]),
    "spin": ({"name": "spin"}, [DEMONSTRATION]),
    "kto": ({"name": "kto"}, [PAIR]),
    "kto-labels": ({"name": "kto", "data": "labels"}, LABELS),
}
"""{name: (parameters, columns of the prompts' answers)}; without such answers a rule prefers the letter "a"."""


pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Its name, and the folder of a run of two iterations."""
    folder = tmp_path_factory.mktemp(request.param)
    algorithm, brought = WORLDS[request.param]
    changes: dict[str, Any] = {"algorithm": algorithm}
    if brought:
        source = folder / "data.jsonl"
        rows = [{"prompt": f"{i}?", **brought[i % len(brought)]} for i in range(8)]
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        changes |= {"prompts": {"source": str(source), "use": "all"}, "scorer": None}
    return request.param, play(fake_config(folder, **changes))


def test_there_is_a_world_for_every_algorithm() -> None:
    assert {algorithm["name"] for algorithm, _ in WORLDS.values()} == set(ALGORITHMS)


def test_what_is_preferred_becomes_likelier(world: tuple[str, Path]) -> None:
    _, run = world
    likes = [np.exp(letter_logps(run / folder))[0] for folder in ("start", "weights/001", "weights/002")]
    assert likes[0] == pytest.approx(1 / 8)
    assert likes[0] < likes[1] < likes[2]


def test_log_ratios_compare_with_the_policy_that_the_config_names(world: tuple[str, Path]) -> None:
    name, run = world
    reference = letter_logps(run / ("start" if name == "dpo-start" else "weights/001"))
    with RunStore(run) as store:
        rows = [row for table in store.tables(1, "ref_logps", REF_LOGPS) for row in table.to_pylist()]
    assert rows
    for row in rows:
        expected = [sum(reference[token] for token in answer if token < 8) for answer in row["completion_token_ids"]]
        assert row["ref_logps"] == pytest.approx(expected, abs=1e-12)


def test_the_start_policy_as_reference_is_opened_again_if_roles_take_turns(tmp_path: Path) -> None:
    algorithm = {"name": "dpo", "reference": "start"}
    alone = play(
        fake_config(tmp_path / "turns", algorithm=algorithm, cluster={"backend": "local", "placement": "colocated"})
    )
    together = play(fake_config(tmp_path / "together", algorithm=algorithm))
    assert inspection.run_digest(alone) == inspection.run_digest(together)
