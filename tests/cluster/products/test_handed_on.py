"""What a run hands on, used by the libraries and commands that it is meant for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.tiny_policy import make_tiny_policy
from cluster.commands.cli import main
from engine.schema import REF_LOGPS
from engine.store.reader import RunReader
from tests.runs import fake_config, play

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preferences of a run without empty answers, which neither trainer accepts."""
    folder = tmp_path_factory.mktemp("preferences")
    run = play(fake_config(folder, algorithm={"name": "sppo", "empty": "exclude"}))
    assert main(["export", str(run), str(folder / "set"), "--what", "preferences"]) == 0
    return folder / "set"


def test_trl_trains_on_the_exported_set_unchanged(preferences: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    make_tiny_policy(tmp_path / "policy", seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    data = load_dataset(str(preferences))
    options = {"learning_rate": 1e-3, "max_steps": 8, "logging_steps": 1, "bf16": False, "use_cpu": True, "seed": 0}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path / "out"), per_device_train_batch_size=4, report_to="none", **options),
        train_dataset=data["train_iteration_1"],
        eval_dataset=data["test_iteration_1"],
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "policy"),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < 0.6
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert trainer.evaluate()["eval_loss"] != pytest.approx(losses[0], abs=1e-3)


def test_kumite_trains_on_the_exported_set(preferences: Path, tmp_path: Path) -> None:
    command = [sys.executable, "recipes/dpo.py", "--config", "recipes/configs/smoke_dpo.yaml", f"output={tmp_path}"]
    command += [
        "name=again",
        f"prompts.source={preferences}",
        "prompts.split=train_iteration_2",
        "cluster.backend=local",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    store = RunReader(tmp_path / "again")
    assert store.versions == [0, 1] and store.recorded_digest(0) != store.recorded_digest(1)
    rates = [rate for table in store.tables(0, "ref_logps", REF_LOGPS) for rate in table["win_rate"].to_pylist()]
    assert rates and all(0.5 < chosen < 1 and 0 < rejected < 0.5 for chosen, rejected in rates)
