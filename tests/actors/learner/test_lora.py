"""Adapters in the learner: what trains, what is saved, and that PEFT itself reads it back as the same policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from actors.export import merge_adapter
from actors.learner.lora import adapt, adapter_weights
from actors.learner.policy import load_policy
from actors.learner.versions import Versions
from engine.config.learner import LearnerConfig, LoRAConfig
from engine.config.run import ModelConfig
from engine.errors import ModelError, WeightsError
from engine.store.weights import read_adapter, weights_digest
from tests.actors.learner.test_learner import (
    FLAT,
    STEADY,
    Group,
    load,
    rows,
    token_logps,
    weights,
    with_ref_logps,
    write_llama,
)

LORA = {"rank": 4, "alpha": 8.0}
PROMPT, ANSWER = [1, 5, 9], [8, 3, 2, 7]
MODEL = ModelConfig(path="the/base", dtype="float32")
ADAMW = {"name": "adamw", "lr": 3e-2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


def versions(**lora) -> Versions:
    return Versions(LearnerConfig(lora=LoRAConfig(**{**LORA, **lora})), MODEL)


def move(policy, seed: int) -> None:
    """As if the adapter had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def logps(policy) -> list[float]:
    with torch.no_grad():
        return token_logps(policy.model, PROMPT, ANSWER).tolist()


def by_peft(base: Path, adapter: Path) -> list[float]:
    from peft import PeftModel

    with torch.no_grad():
        return token_logps(PeftModel.from_pretrained(load(base), adapter).eval(), PROMPT, ANSWER).tolist()


# Reading and writing versions, without DeepSpeed


def test_the_start_model_gets_a_fresh_adapter_that_changes_nothing_to_the_last_bit(llama):
    plain = load_policy(MODEL, llama, 8)
    adapted = versions().load(llama, None, seed=1)
    assert logps(adapted) == logps(plain)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 7 * 2 and all("lora_" in name for name in names)


def test_the_seed_alone_decides_how_a_fresh_adapter_begins_and_the_global_generator_is_left_alone(llama):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (adapter_weights(versions().load(llama, None, s).model, "trained") for s in (1, 1, 2))
    assert torch.rand(1) == expected
    name = next(n for n in one if n.endswith("lora_A.weight"))
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize(("between", "ranks"), [("continue", [4, 4, 4]), ("stack", [4, 8, 12])])
def test_a_saved_adapter_is_the_same_policy_for_peft_and_for_the_next_iteration(llama, tmp_path, between, ranks):
    files = versions(between_iterations=between)
    folder, base, known = llama, None, []
    for version, rank in enumerate(ranks):
        policy = files.load(folder, base, seed=version)
        if base:
            assert logps(policy) == pytest.approx(known, abs=1e-6), "opened as it was saved"
        move(policy, seed=version)
        known, folder, base = logps(policy), tmp_path / str(version), llama
        files.save(policy, folder, keep=True)
        assert read_adapter(folder).rank == rank
        assert by_peft(llama, folder) == pytest.approx(known, abs=1e-6)
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_base.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "the/base", "the config's words, not a path of this machine"


def test_only_the_newest_of_stacked_adapters_learns(llama, tmp_path):
    files = versions(between_iterations="stack")
    policy = files.load(llama, None, 0)
    move(policy, 0)
    files.save(policy, tmp_path / "one", keep=True)
    policy = files.load(tmp_path / "one", llama, 1)
    assert all(".trained." in name for name, p in policy.named_parameters() if p.requires_grad)
    below = adapter_weights(policy.model, "frozen")
    assert below and not any(p.requires_grad for p in below.values())


def test_the_same_adapter_is_the_same_bytes_wherever_its_base_lies(llama, tmp_path):
    moved = shutil.copytree(llama, tmp_path / "elsewhere")
    digests = set()
    for number, folder in enumerate((llama, moved)):
        files = versions()
        policy = files.load(folder, None, 3)
        move(policy, 3)
        files.save(policy, tmp_path / str(number), keep=True)
        digests.add(weights_digest(tmp_path / str(number)))
    assert len(digests) == 1


def test_merging_between_iterations_publishes_a_whole_model_with_the_same_log_probabilities(llama, tmp_path):
    files = versions(between_iterations="merge")
    policy = files.load(llama, None, 0)
    move(policy, 0)
    files.save(policy, tmp_path / "one", keep=True)
    known = logps(policy)
    with torch.no_grad():
        assert token_logps(load(tmp_path / "one"), PROMPT, ANSWER).tolist() == pytest.approx(known, abs=1e-5)
    assert weights(tmp_path / "one").keys() == weights(llama).keys()
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert logps(files.load(tmp_path / "one", None, 1)) == pytest.approx(known, abs=1e-5)


def test_an_adapter_merged_afterwards_is_a_whole_model_with_the_same_log_probabilities(llama, tmp_path):
    files = versions(between_iterations="stack")
    policy = files.load(llama, None, 0)
    move(policy, 0)
    files.save(policy, tmp_path / "one", keep=True)
    merge_adapter(MODEL, llama, tmp_path / "one", tmp_path / "whole")
    with torch.no_grad():
        found = token_logps(load(tmp_path / "whole"), PROMPT, ANSWER).tolist()
    assert found == pytest.approx(logps(policy), abs=1e-5)
    assert found != pytest.approx(logps(load_policy(MODEL, llama, 8)), abs=1e-3)


def test_gradients_with_checkpointing_are_those_without(llama):
    found = []
    for checkpointing in (False, True):
        config = LearnerConfig(lora=LoRAConfig(**LORA), gradient_checkpointing=checkpointing)
        policy = Versions(config, MODEL).load(llama, None, 1)
        move(policy, 1)
        token_logps(policy.model, PROMPT, ANSWER).sum().backward()
        found.append({n: p.grad for n, p in policy.named_parameters() if p.requires_grad})
        assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)
    for name, gradient in found[0].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[1][name], gradient)


def test_an_adapter_of_another_base_is_refused_by_its_digest(llama, tmp_path):
    files = versions()
    files.save(files.load(llama, None, 0), tmp_path / "adapter", keep=True)
    other = shutil.copytree(llama, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"belongs to the base model [0-9a-f]{12}, not to [0-9a-f]{12}"):
        versions().load(tmp_path / "adapter", other, 0)


def test_an_adapter_whose_layers_are_not_those_of_the_config_is_refused_by_name(llama, tmp_path):
    files = versions()
    files.save(files.load(llama, None, 0), tmp_path / "adapter", keep=True)
    with pytest.raises(WeightsError, match=r"mlp\.down_proj\.lora_A\.weight is unexpected"):
        versions(target_modules=["q_proj"]).load(tmp_path / "adapter", llama, 0)
    with pytest.raises(WeightsError, match=r"rank 4 and alpha 8 does not fit learner\.lora\.rank = 3"):
        versions(rank=3).load(tmp_path / "adapter", llama, 0)


def test_layers_that_cannot_be_adapted_are_refused_by_name(llama):
    def inject(targets):
        adapt(load_policy(MODEL, llama, 8).model, LoRAConfig(target_modules=targets), None, 0)

    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no layer query; .* down_proj, .* q_proj"):
        inject(["q_proj", "query"])
    with pytest.raises(ModelError, match=r"learner\.lora\.target_modules = \['nothing'\]"):
        inject(["nothing"])


def test_an_adapter_where_a_whole_model_is_expected_says_what_to_do(llama, tmp_path):
    files = versions()
    files.save(files.load(llama, None, 0), tmp_path / "adapter", keep=True)
    with pytest.raises(ModelError, match=r"is a PEFT adapter of the/base, expected a whole model; merge it first"):
        files.load(tmp_path / "adapter", None, 0)
    with pytest.raises(ModelError, match=r"learner\.lora is not set"):
        Versions(LearnerConfig(), MODEL).load(tmp_path / "adapter", llama, 0)


# With DeepSpeed


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    group = Group(2, tmp_path_factory.mktemp("logs") / "two.txt")
    yield group
    group.stop()


def train(group: Group, folder: Path, source: Path, base: Path | None, version: int, **config) -> list[dict]:
    """One iteration from the version in `source`; the next one ends in folder / "weights"."""
    folder.mkdir(exist_ok=True)
    lora = {**LORA, **config.pop("lora", {})}
    settings = {"batch_size": 4, "micro_batch_size": 2, "lora": lora, "optimizer": ADAMW, "schedule": FLAT}
    group.new(**{**settings, **config})
    group.call("open", str(source), base and str(base), version)
    group.call("begin", with_ref_logps(group, rows((5, 0, 6)), folder), version)
    metrics = group.call("advance", 100)
    group.call("save_weights", str(folder / "weights"), 0, [PROMPT], [ANSWER])
    return metrics


@pytest.fixture(scope="module")
def trained(two, llama, tmp_path_factory) -> dict[int, tuple[list[dict], Path]]:
    """Metrics and adapter of one iteration, by ZeRO stage."""
    results = {}
    for stage in (0, 2, 3):
        folder = tmp_path_factory.mktemp(f"zero{stage}")
        results[stage] = train(two, folder, llama, None, 0, zero_stage=stage, optimizer=STEADY), folder / "weights"
    return results


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_trains_the_same_adapter_from_a_log_ratio_of_exactly_zero(trained, stage):
    metrics, folder = trained[stage]
    assert metrics[0]["log_ratio/max_abs"] == 0.0
    assert metrics[-1]["log_ratio/max_abs"] > 1e-4
    for name, tensor in tensors(trained[0][1]).items():
        torch.testing.assert_close(tensors(folder)[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.real
@pytest.mark.parametrize("between", ["continue", "stack"])
def test_the_next_iteration_goes_on_where_peft_says_the_last_one_ended(two, llama, tmp_path, between):
    lora = {"between_iterations": between}
    train(two, tmp_path / "one", llama, None, 0, lora=lora, zero_stage=3)
    first = tmp_path / "one/weights"
    metrics = train(two, tmp_path / "two", first, llama, 1, lora=lora, zero_stage=3)
    assert metrics[0]["log_ratio/max_abs"] == 0.0
    second = tmp_path / "two/weights"
    [ours] = two.call("token_logps", [PROMPT], [ANSWER])
    assert ours == pytest.approx(by_peft(llama, second), abs=1e-5)
    assert by_peft(llama, second) != pytest.approx(by_peft(llama, first), abs=1e-3)
    if between == "stack":
        for name, tensor in tensors(first).items():
            whole = tensors(second)[name]
            part = whole[:4] if "lora_A" in name else whole[:, :4]
            assert torch.equal(part, tensor), "the earlier adapter is in there unchanged"


@pytest.mark.real
def test_merging_under_zero_3_publishes_what_the_ranks_computed_with(two, llama, tmp_path):
    train(two, tmp_path, llama, None, 0, lora={"between_iterations": "merge"}, zero_stage=3)
    [ours] = two.call("token_logps", [PROMPT], [ANSWER])
    with torch.no_grad():
        assert ours == pytest.approx(token_logps(load(tmp_path / "weights"), PROMPT, ANSWER).tolist(), abs=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (3, "float32"), (1, "bfloat16")])
def test_a_learner_that_restarts_from_a_checkpoint_saves_the_same_adapter_bit_for_bit(
    two, llama, tmp_path, stage, dtype
):
    config = {"zero_stage": stage, "dtype": dtype, "lora": {"between_iterations": "stack"}}
    train(two, tmp_path / "one", llama, None, 0, **config)
    start, folder = tmp_path / "one/weights", tmp_path / "two"
    unbroken = train(two, folder, start, llama, 1, **config)
    shards = [{"table": str(folder / f"ref_logps{i}.arrow")} for i in range(3)]
    for resumed in (False, True):
        two.call("open", str(start), str(llama), 1)
        two.call("begin", shards, 1)
        if not resumed:
            two.call("advance", 1)
            two.call("save_checkpoint", str(tmp_path / "checkpoint"), 1)
    assert two.call("load_checkpoint", str(tmp_path / "checkpoint")) == 1
    assert two.call("advance", 100) == unbroken[1:]
    two.call("save_weights", str(tmp_path / "resumed"), 0, [], [])
    assert weights_digest(tmp_path / "resumed") == weights_digest(folder / "weights")
    some = weights(llama)["model.embed_tokens.weight"].flatten()[:64].to(getattr(torch, dtype))
    frozen = bytes(some.view(torch.uint8).tolist())
    files = [path.read_bytes() for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()]
    assert files and not any(frozen in content for content in files), "the frozen base is in no checkpoint"
