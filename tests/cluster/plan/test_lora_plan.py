"""Estimates for adapters before anything starts; a run without adapters has nothing to merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands.cli import main
from cluster.plan import estimates
from cluster.plan.plan import make_plan
from engine.config.run import RunConfig
from tests.engine.store.test_adapters import WIDTH, make_base
from tests.runs import fake_config, finished


def planned(base: Path, **lora) -> RunConfig:
    return RunConfig.model_validate(
        {
            "iterations": 3,
            "model": {"path": str(base), "dtype": "float32"},
            "prompts": {"source": "p", "expected": 10},
            "scorer": {"kind": "rule", "function": "a:b"},
            "learner": {"zero_stage": 2, "optimizer": {"name": "adamw"}, "lora": {"rank": 2, **lora}},
        }
    )


def test_adapters_are_counted_inside_the_blocks_only(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    assert estimates.trained_parameters(planned(base), None) == 2 * (16 + WIDTH)
    assert estimates.trained_parameters(planned(base, target_modules=["up_proj"]), None) == 2 * (16 + WIDTH)
    assert estimates.trained_parameters(planned(tmp_path / "nowhere"), None) is None


def test_frozen_weights_need_neither_gradients_nor_optimizer_states(tmp_path: Path) -> None:
    config = planned(tmp_path)
    # 100 frozen and 10 trained weights, 10 gradients, AdamW's two numbers for each of the 10: float32 all
    assert estimates.learner_bytes(config.learner, "float32", 100.0, 10.0) == 4 * (100 + 10 + 10 + 20)
    quantized = config.learner.model_copy(update={"lora": config.learner.lora.model_copy(update={"quantize": "nf4"})})
    assert estimates.learner_bytes(quantized, "float32", 100.0, 10.0) == pytest.approx(52 + 4 * (10 + 10 + 20))


@pytest.mark.parametrize(("between", "numbers"), [("continue", 3 * 48), ("stack", 6 * 48), ("merge", 3 * 392)])
def test_the_disk_for_weights_follows_from_what_each_version_is(tmp_path: Path, between: str, numbers: int) -> None:
    base = make_base(tmp_path / "base")
    config = planned(base, between_iterations=between)
    parts = estimates.disk_bytes(config, estimates.count_parameters(str(base)))
    assert parts["weights"] == 4 * numbers
    assert parts["2 learner checkpoints"] == 2 * 48 * (4 + 8)


def test_the_plan_says_what_learns(tmp_path: Path) -> None:
    lines = make_plan(planned(make_base(tmp_path / "base"))).lines
    assert any("frozen; adapters of rank 2 train 4.8e-05 million" in line for line in lines)


def test_there_is_nothing_to_merge_in_a_run_of_whole_models(tmp_path: Path, capsys) -> None:
    run = finished(fake_config(tmp_path / "runs"))
    assert main(["merge", str(run), str(tmp_path / "whole")]) == 2
    assert "version 2 is a whole model already" in capsys.readouterr().err
    assert main(["merge", str(tmp_path), str(tmp_path / "whole")]) == 2
    assert not (tmp_path / "whole").exists()
