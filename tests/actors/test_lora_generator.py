"""The generator with adapters on a real vLLM: hot-loaded, never mixed up, checked by log-probabilities.

One engine serves the module. The expected values are those of PEFT on transformers. Texts show nothing here, because a
small adapter may not change them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from actors.generator import Generator
from actors.tiny_policy import make_tiny_policy
from engine.config.learner import LearnerConfig, LoRAConfig
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ConfigError, ModelError, RoleError, WeightsError
from engine.store.weights import write_checksums
from tests.actors.test_generator import make_prompts, transformers_logps

SAMPLING = SamplingConfig(num_samples=2, max_new_tokens=12, max_prompt_tokens=40)
PROMPTS, ANSWERS = [[1, 3, 50, 60, 70], [1, 3, 80]], [[90, 91, 2, 33], [120, 5]]
MODEL = ModelConfig(path="the/base", dtype="float32")


@dataclass
class World:
    base: Path
    digests: dict[Path, str]
    prompts: pa.Table
    generator: Generator

    def serve(self, folder: Path) -> None:
        self.generator.load(folder, self.digests[folder], None if folder == self.base else self.base)


def make_adapter(base: Path, folder: Path, seed: int, size: float, rank: int = 4) -> Path:
    """An adapter of `base` in the learner's own format; `size` is the standard deviation of B."""
    import torch

    from actors.learner.versions import Versions

    files = Versions(LearnerConfig(lora=LoRAConfig(rank=rank, alpha=8)), MODEL)
    policy = files.load(base, None, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    files.save(policy, folder, keep=True)
    return folder


def peft_logps(base: Path, adapter: Path) -> list[list[float]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(answer)), answer].tolist())
    return found


def gap(ours: list[list[float]], theirs: list[list[float]]) -> float:
    pairs = [(a, b) for left, right in zip(ours, theirs, strict=True) for a, b in zip(left, right, strict=True)]
    return max(abs(a - b) for a, b in pairs)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base, two adapters far from it, one so small that greedy texts stay the same, and one of a higher rank."""
    root = tmp_path_factory.mktemp("adapters")
    base = make_tiny_policy(root / "base", 0)
    made = {"one": (1, 0.03, 4), "two": (2, 0.03, 4), "tiny": (3, 1e-4, 4), "grown": (4, 0.03, 12)}
    return {"base": base} | {name: make_adapter(base, root / name, *how) for name, how in made.items()}


@pytest.fixture(scope="module")
def world(adapters: dict[str, Path]) -> Iterator[World]:
    generator = Generator(GeneratorConfig(kv_cache_gib=0.1), MODEL, SAMPLING, 7, lora_rank=12)
    digests = {folder: write_checksums(folder) for folder in adapters.values()}
    yield World(adapters["base"], digests, make_prompts(adapters["base"], 6), generator)
    generator.close()


@pytest.mark.real
def test_every_version_answers_with_pefts_log_probabilities_in_any_order(world, adapters):
    expected = {name: peft_logps(world.base, folder) for name, folder in adapters.items() if name != "base"}
    expected["base"] = [transformers_logps(world.base, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    for name in ("base", "one", "two", "one", "grown", "base", "tiny", "one"):
        world.serve(adapters[name])
        assert world.generator.serving() == world.digests[adapters[name]]
        served = world.generator.token_logps(PROMPTS, ANSWERS)
        assert gap(served, expected[name]) < 1e-4, name
        others = [other for other in expected if other != name and {name, other} != {"base", "tiny"}]
        assert all(gap(served, expected[other]) > 1e-2 for other in others), name


@pytest.mark.real
def test_versions_with_equal_texts_are_distinguished_by_their_log_probabilities(world, adapters):
    texts, logps = [], []
    for name in ("base", "tiny"):
        world.serve(adapters[name])
        table = world.generator.generate(world.prompts, 1, num_samples=1, temperature=0.0)
        assert set(table["weights"].to_pylist()) == {world.digests[adapters[name]]}
        texts.append(table["completion_token_ids"].to_pylist())
        logps.append(world.generator.token_logps(PROMPTS, ANSWERS))
    assert texts[0] == texts[1], "no text gives the small adapter away"
    assert gap(*logps) > 1e-4
    with pytest.raises(WeightsError, match="log-probabilities differ from the learner's"):
        world.generator._config = world.generator._config.model_copy(update={"probe_tolerance": 1e-5})
        folder = adapters["base"]
        world.generator.deliver(str(folder), world.digests[folder], PROMPTS, ANSWERS, logps[1])


@pytest.mark.real
def test_sampled_answers_carry_the_adapters_log_probabilities(world, adapters):
    world.serve(adapters["one"])
    row = world.generator.generate(world.prompts, 1).to_pylist()[0]
    [logps] = world.generator.token_logps([row["prompt_token_ids"]], [row["completion_token_ids"][0]])
    assert row["completion_logps"][0] == pytest.approx(sum(logps), abs=1e-4)
    world.serve(adapters["two"])
    [other] = world.generator.token_logps([row["prompt_token_ids"]], [row["completion_token_ids"][0]])
    assert sum(other) != pytest.approx(sum(logps), abs=1e-2)


@pytest.mark.real
def test_a_foreign_adapter_or_model_is_refused_and_the_old_version_stays(world, adapters, tmp_path):
    world.serve(adapters["one"])
    other_model = make_tiny_policy(tmp_path / "other_model", 9)
    foreign = make_adapter(other_model, tmp_path / "foreign", 1, 0.03)
    before = world.generator.token_logps(PROMPTS, ANSWERS)
    with pytest.raises(WeightsError, match="belongs to the base model"):
        world.generator.load(foreign, write_checksums(foreign), world.base)
    with pytest.raises(WeightsError, match=r"whole model .* serves adapters of"):
        world.generator.load(other_model, write_checksums(other_model))
    with pytest.raises(ModelError, match="is a PEFT adapter of the/base"):
        world.generator.load(adapters["two"], world.digests[adapters["two"]])
    large = make_adapter(world.base, tmp_path / "large", 1, 0.03, rank=13)
    with pytest.raises(WeightsError, match="adapter of rank 13, but this generator serves ranks up to 12"):
        world.generator.load(large, write_checksums(large), world.base)
    altered = shutil.copytree(adapters["two"], tmp_path / "altered")
    (altered / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"changed: adapter_config\.json"):
        world.generator.load(altered, world.digests[adapters["two"]], world.base)
    assert world.generator.serving() == world.digests[adapters["one"]]
    assert gap(world.generator.token_logps(PROMPTS, ANSWERS), before) < 1e-6


@pytest.mark.real
def test_after_sleep_an_adapter_can_be_the_first_thing_that_is_loaded(world, adapters):
    world.serve(adapters["two"])
    before = world.generator.generate(world.prompts, 2)
    world.generator.sleep()
    assert world.generator.serving() is None
    world.serve(adapters["two"])
    assert world.generator.generate(world.prompts, 2).equals(before)


def test_an_adapter_for_a_generator_of_whole_models_is_refused(adapters):
    generator = Generator(GeneratorConfig(), MODEL, SAMPLING, 0)
    with pytest.raises(RoleError, match=r"is an adapter, but this engine serves whole models"):
        generator.load(adapters["one"], write_checksums(adapters["one"]), adapters["base"])


def test_engine_arguments_about_adapters_are_decided_by_the_learners_section():
    with pytest.raises(ConfigError, match=r"generator\.engine_args\.max_lora_rank: decided by other keys"):
        Generator(GeneratorConfig(engine_args={"max_lora_rank": 8}), MODEL, SAMPLING, 0)
