"""The keys of adapters: what goes together, and what is said where it does not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from engine.config.learner import LearnerConfig, LoRAConfig
from engine.config.run import RunConfig

GPU = {"gpus": 1, "zero_stage": 2}


def run_config(lora: dict[str, Any], *, iterations: int = 3, **sections: Any) -> RunConfig:
    learner = {**sections.pop("learner", {}), "lora": lora}
    values = {
        "model": {"path": "some/model"},
        "prompts": {"source": "prompts.jsonl"},
        "scorer": {"kind": "rule", "function": "a:b"},
        "iterations": iterations,
    }
    return RunConfig.model_validate({**values, "learner": learner, **sections})


def test_without_the_key_all_weights_are_trained_and_served_whole() -> None:
    config = LearnerConfig()
    assert config.lora is None
    assert (
        RunConfig.model_validate(
            {"model": {"path": "m"}, "prompts": {"source": "p"}, "scorer": {"kind": "rule", "function": "a:b"}}
        ).served_rank
        == 0
    )


@pytest.mark.parametrize(("between", "rank"), [("continue", 16), ("stack", 48), ("merge", 0)])
def test_the_rank_that_generators_must_hold_follows_from_what_happens_between_iterations(between, rank) -> None:
    assert run_config({"between_iterations": between}).served_rank == rank


def test_a_stack_that_grows_beyond_what_vllm_serves_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValidationError, match=r"rank = 64 .* iterations = 9 ends at rank 576, vLLM serves at most 512"):
        run_config({"rank": 64, "between_iterations": "stack"}, iterations=9)
    run_config({"rank": 64, "between_iterations": "stack"}, iterations=8)
    run_config({"rank": 64, "between_iterations": "merge"}, iterations=9)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"dropout": 0.1}, "only 0 is possible: with dropout the log-ratio"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head: head and embeddings get no adapter"),
        ({"target_modules": ["model.embed_tokens"]}, "embed_tokens: head and embeddings get no adapter"),
        ({"target_modules": []}, "at least 1 item"),
        ({"rank": 0}, "greater than 0"),
        ({"quantize": "nf4", "between_iterations": "merge"}, "between_iterations = merge does not go with quantize"),
        ({"quantize": "int8"}, "nf4"),
    ],
)
def test_what_cannot_work_is_refused_by_key_and_value(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoRAConfig(**lora)


@pytest.mark.parametrize("resources", [{"gpus": 0, "zero_stage": 2}, {"gpus": 1, "zero_stage": 3}])
def test_four_bits_need_a_gpu_and_at_most_zero_2(resources: dict[str, int]) -> None:
    gpus, stage = resources.values()
    with pytest.raises(ValidationError, match=rf"nf4 with gpus = {gpus} and zero_stage = {stage}: .*set gpus = 1"):
        LearnerConfig(**resources, lora=LoRAConfig(quantize="nf4"))
    LearnerConfig(gpus=1, zero_stage=2, lora=LoRAConfig(quantize="nf4"))


def test_four_bits_in_the_learner_alone_need_a_stated_tolerance() -> None:
    with pytest.raises(ValidationError, match=r"needs generator\.probe_tolerance"):
        run_config({"quantize": "nf4"}, learner=GPU)
    run_config({"quantize": "nf4"}, learner=GPU, generator={"probe_tolerance": 0.3})
