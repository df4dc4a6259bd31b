"""A run that trains adapters, from prompts to a merged model, with a driver killed in the middle of it.

One vLLM starts, in the run that is killed while its second iteration trains; what follows needs the learner alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.commands.cli import main
from engine.metrics.trackers import read_metrics
from engine.schema import COMPLETIONS, REF_LOGPS
from engine.store import inspection
from engine.store.run import RunStore
from engine.store.weights import read_adapter
from tests.cluster.runtime.drivers import committed, sppo, until
from tests.cluster.runtime.worlds import NUM_STEPS, make_world, real_values, write_config

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Run:
    config: Path
    folder: Path
    base: Path
    output: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Killed after a checkpoint of the second iteration, and finished by the same command."""
    root = tmp_path_factory.mktemp("lora")
    world = make_world(root / "world")
    values = real_values(world, root / "runs", "lora")
    del values["evaluation"]
    values["scorer"] = {"kind": "rule", "function": "tests.cluster.runtime.worlds:distinct_letters", "cpus": 0.25}
    values["learner"] |= {
        "num_ranks": 1,
        "checkpoint_every": 1,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "lora": {"rank": 4, "alpha": 8, "between_iterations": "stack"},
    }
    config = write_config(root / "lora.yaml", values)
    run = root / "runs/lora"
    with sppo(root / "first.log", "--config", str(config)) as driver:
        until(
            lambda: committed(run, kind="checkpoint", iteration=1),
            "a checkpoint of iteration 2",
            lambda: driver.process.poll() is None,
        )
        driver.kill()
    with sppo(root / "second.log", "--config", str(config)) as driver:
        assert driver.wait() == 0, driver.output
        return Run(config, run, world / "policy", driver.output)


@pytest.fixture(scope="module")
def store(finished: Run) -> Iterator[RunStore]:
    with RunStore(finished.folder) as opened:
        yield opened


def test_the_killed_run_goes_on_within_its_iteration_and_says_how_to_get_a_whole_model(finished: Run) -> None:
    assert "the learner continues after step" in finished.output
    assert f"an adapter of {finished.base}; a whole model: kumite merge {finished.folder} OUTPUT" in finished.output


def test_the_versions_are_small_adapters_of_the_start_model_whose_rank_grows(finished: Run, store: RunStore) -> None:
    start = store.policy(0)
    assert start is not None and start.base is None
    for version, rank in ((1, 4), (2, 8)):
        policy = store.policy(version)
        assert policy is not None and policy.base == finished.base
        known = read_adapter(policy.folder)
        assert (known.rank, known.alpha, known.base_digest) == (rank, 2 * rank, start.digest)
        assert not list(policy.folder.glob("model*")) and not list(policy.folder.glob("tokenizer*"))


def test_generator_and_learner_agree_on_the_answers_of_an_adapter(store: RunStore) -> None:
    answers = {
        row["prompt_id"]: row for table in store.tables(1, "completions", COMPLETIONS) for row in table.to_pylist()
    }
    ref_rows = [row for table in store.tables(1, "ref_logps", REF_LOGPS) for row in table.to_pylist()]
    assert ref_rows
    for row in ref_rows:
        answered = answers[row["prompt_id"]]
        assert answered["weights"] == store.recorded_digest(1)
        vllm = [answered["completion_logps"][index] for index in row["completion_index"]]
        assert row["ref_logps"] == pytest.approx(vllm, abs=1e-3)


def test_each_iteration_starts_from_a_log_ratio_of_exactly_zero(finished: Run) -> None:
    steps = [r for r in read_metrics(finished.folder / "metrics.jsonl") if r["kind"] == "step"]
    assert {r["iteration"] for r in steps} == {1, 2}
    for record in steps:
        assert record["log_ratio/max_abs"] == 0.0 or record["step"] > 1
        assert record["log_ratio/max_abs"] > 0.0 or record["step"] < NUM_STEPS


def test_an_undisturbed_iteration_ends_with_the_same_digest(finished: Run, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished.folder, tmp_path / "runs/lora"))
    lines = (again / "manifest.jsonl").read_text().splitlines(keepends=True)
    trains = next(i for i, line in enumerate(lines) if '"kind":"checkpoint"' in line and '"iteration":1' in line)
    (again / "manifest.jsonl").write_text("".join(lines[:trains]))
    with sppo(tmp_path / "log", "--config", str(finished.config), f"output={tmp_path / 'runs'}") as driver:
        assert driver.wait() == 0, driver.output
    assert "the learner continues" not in driver.output
    assert inspection.run_digest(again) == inspection.run_digest(finished.folder)


def test_merge_writes_a_whole_model_that_computes_what_the_last_adapter_does(
    finished: Run, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = store.policy(2)
    assert last is not None
    assert main(["merge", str(finished.folder), str(tmp_path / "whole")]) == 0
    assert "version 2" in capsys.readouterr().out
    ids = AutoTokenizer.from_pretrained(tmp_path / "whole")("A question?", return_tensors="pt")["input_ids"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(finished.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, last.folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert main(["merge", str(finished.folder), str(tmp_path / "whole")]) == 2
    assert "exists already" in capsys.readouterr().err
