"""Validation on real DeepSpeed, and its figures beside those of TRL's own trainer on the same model and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.chat import Chat
from actors.tiny_policy import make_tiny_policy
from engine.algorithms import DPO
from engine.config.prompts import PromptsConfig
from engine.config.run import ModelConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import ingest
from engine.evaluation.preferences import Validation
from engine.schema import REF_LOGPS, VALIDATION, append
from tests.actors.learner.test_learner import (  # noqa: F401 - fixtures
    Group,
    assert_bit_equal,
    llama,
    logs,
    on_disk,
    one,
    rows,
    train,
    two,
    with_ref_logps,
)

pytestmark = pytest.mark.real

PAIRS = Path(__file__).parents[3] / "recipes/configs/smoke_preferences.jsonl"


def validate(group: Group, held_out: dict, step: int) -> Validation:
    return Validation(pa.Table.from_pylist(group.call("validate", held_out, step), VALIDATION))


def held_out(group: Group, folder: Path, shard: pa.Table) -> dict:
    """The shard with the log-probabilities of the policy as opened."""
    folder.mkdir()
    return with_ref_logps(group, [shard], folder)[0]


@pytest.mark.parametrize("stage", [0, 3])
def test_validation_changes_no_bit_of_what_is_learned(two, llama, tmp_path, stage):  # noqa: F811
    train(two, llama, tmp_path / "unwatched", num_steps=3, zero_stage=stage)
    (tmp_path / "watched").mkdir()
    two.new(batch_size=4, micro_batch_size=2, zero_stage=stage)
    two.call("open", str(llama))
    other = held_out(two, tmp_path / "held out", rows((3, 4))[1])
    two.call("begin", with_ref_logps(two, rows((5, 0, 6)), tmp_path / "watched"), 0)
    before = validate(two, other, 0)
    assert before.metrics()["eval/rewards/margins"] == 0.0, "the policy is its own reference before the first step"
    assert before.metrics()["eval/rewards/accuracies"] == 0.5
    later = [validate(two, other, step) for step in (1, 2, 3)]
    assert len({validation.loss for validation in [before, *later]}) == 4
    two.call("save_weights", str(tmp_path / "watched" / "weights"), 3, [], [])
    assert_bit_equal(tmp_path / "unwatched" / "weights", tmp_path / "watched" / "weights")


@pytest.mark.parametrize("lora", [None, {"rank": 2, "between_iterations": "merge"}], ids=["whole", "adapter"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_learner_that_goes_back_to_its_best_step_saves_the_weights_of_that_step(two, llama, tmp_path, stage, lora):  # noqa: F811
    options = {"zero_stage": stage, "lora": lora}
    train(two, llama, tmp_path / "best", num_steps=2, **options)
    (tmp_path / "all").mkdir()
    two.new(batch_size=4, micro_batch_size=2, **options)
    two.call("open", str(llama))
    two.call("begin", with_ref_logps(two, rows((5, 0, 6)), tmp_path / "all"), 0)
    two.call("save_checkpoint", str(tmp_path / "checkpoint"), 2)
    two.call("advance", 3)
    assert two.call("load_checkpoint", str(tmp_path / "checkpoint")) == 2
    two.call("save_weights", str(tmp_path / "all" / "weights"), 2, [], [])
    assert_bit_equal(tmp_path / "best" / "weights", tmp_path / "all" / "weights")


def test_one_rank_and_two_ranks_measure_the_same(one, two, llama, tmp_path):  # noqa: F811
    figures = []
    for group, name in ((one, "one"), (two, "two")):
        group.new(batch_size=4, micro_batch_size=2, zero_stage=0)
        group.call("open", str(llama))
        other = held_out(group, tmp_path / name, rows((3, 5))[1])
        (tmp_path / f"{name} training").mkdir()
        group.call("begin", with_ref_logps(group, rows((5,)), tmp_path / f"{name} training"), 0)
        figures.append(validate(group, other, 2).metrics())
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "apo_zero", "nca_pair", "sigmoid_norm"])
def test_loss_and_accuracy_are_those_of_trls_trainer(one, tmp_path, loss):  # noqa: F811
    """TRL evaluates the weights that we published, against the same start model, on the same pairs."""
    start = make_tiny_policy(tmp_path / "start")
    chat = Chat(ModelConfig(path=str(start), dtype="float32"))
    prompts = ingest(PromptsConfig(source=str(PAIRS)), str(PAIRS), chat, 512, RequiredAnswers(2, 512, "test")).table
    algorithm = {"name": "dpo", "data": "dataset", "losses": {loss: 1}, "beta": 0.1}
    shard = DPO(**algorithm).heldout_rows(prompts).rows
    optimizer = {"name": "adamw", "lr": 1e-3, "eps": 1e-8}
    one.new(algorithm=algorithm, batch_size=4, micro_batch_size=2, zero_stage=0, optimizer=optimizer)
    one.call("open", str(start))
    logps = one.call("ref_logps", on_disk(shard, tmp_path / "rows.arrow"))
    other = on_disk(append(shard, REF_LOGPS, "test", ref_logps=logps), tmp_path / "held_out.arrow")
    training = append(shard.slice(0, 6), REF_LOGPS, "test", ref_logps=logps[:6])
    one.call("begin", [on_disk(training, tmp_path / "training.arrow")], 0)
    ours = validate(one, other, 2).metrics()
    one.call("save_weights", str(tmp_path / "weights"), 2, [], [])
    theirs = trl_figures(tmp_path / "weights", start, loss)
    names = ["loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"]
    names += ["logps/chosen", "logps/rejected"]
    assert ours["eval/rewards/accuracies"] > 0.0
    for name in names:
        assert ours[f"eval/{name}"] == pytest.approx(theirs[f"eval_{name}"], abs=1e-5, rel=1e-5), name


def trl_figures(policy: Path, reference: Path, loss: str) -> dict[str, Any]:
    """What DPOTrainer.evaluate() reports, in batches of two of the twelve pairs."""
    pytest.importorskip("trl")
    import json

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def say(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    records = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    pairs = [
        {"prompt": say("user", r["prompt"])} | {k: say("assistant", r[k]) for k in ("chosen", "rejected")}
        for r in records
    ]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for folder in (policy, reference)]
    arguments = DPOConfig(
        output_dir=str(policy.parent / "trl"),
        beta=0.1,
        loss_type=loss,
        per_device_eval_batch_size=2,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
    )
    dataset = Dataset.from_list(pairs)
    tokenizer = AutoTokenizer.from_pretrained(reference)
    trainer = DPOTrainer(
        *models, args=arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )
    return trainer.evaluate()
