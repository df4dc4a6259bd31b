"""Every configuration in recipes/configs loads, and says what the paper or the scripts say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from actors.learner.batches import lr_at
from engine.config.load import config_digest, diff, dump, load
from engine.config.run import RunConfig
from engine.config.scorer import PairRMConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "recipes" / "configs"
FILES = sorted(path.name for path in CONFIGS.glob("*.y*ml"))


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_config_loads_and_survives_being_written_and_read(name, tmp_path):
    config = load(CONFIGS / name)
    (tmp_path / "copy.yaml").write_text(dump(config))
    assert load(tmp_path / "copy.yaml") == config


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("demo.yaml", "9957173f428035d3993659d05f4e0355f221a5ad7350a8f71cce944df8451a3f"),
        ("smoke_spin.yaml", "7a0547ff4a243efd8d8f44c352b1858c9b3835ad1a1b697bc36079a5d52a9582"),
        ("sppo_llama3_8b.yaml", "9c1252f773663429adbd775d7e7e0260ae9c453d1abe45b3db39e16d35b9a37f"),
    ],
)
def test_a_run_that_was_begun_with_a_shipped_config_can_be_resumed(name, digest):
    """Another digest means: a key, a default or a value that determines results was changed."""
    assert config_digest(load(CONFIGS / name)) == digest


def test_the_published_recipes_are_among_them():
    assert {"sppo_llama3_8b.yaml", "sppo_llama3_8b_scripts.yaml", "smoke_sppo.yaml"} <= set(FILES)


def paper() -> RunConfig:
    return load(CONFIGS / "sppo_llama3_8b.yaml")


def test_the_paper_recipe_has_the_papers_numbers():
    config = paper()
    assert (config.iterations, config.sampling.num_samples, config.algorithm.eta) == (3, 5, 1000.0)
    assert (config.sampling.temperature, config.sampling.top_p) == (1.0, 1.0)
    assert (config.learner.optimizer.name, config.learner.optimizer.lr) == ("rmsprop", 5e-7)
    assert (config.learner.schedule.scheduler_total_epochs, config.learner.schedule.stop_after_epochs) == (18, 1)
    assert config.learner.batch_size == 64 == config.learner.num_ranks * config.learner.micro_batch_size


def test_in_the_paper_recipe_every_sampled_token_is_scored_and_trained_on():
    """PairRM's checkpoint has room for 1224 + 412 + 412 tokens; room that the prompt leaves goes to the answers."""
    config = paper()
    assert isinstance(config.scorer, PairRMConfig)
    assert config.sampling.max_new_tokens <= 412 + (1224 - config.sampling.max_prompt_tokens) // 2
    assert config.sampling.max_prompt_tokens + config.sampling.max_new_tokens == 1024


def test_on_one_node_of_eight_gpus_each_role_of_the_paper_recipe_fits_alone():
    config = paper()
    roles = (config.generator, config.scorer)
    assert config.cluster.placement == "colocated"
    assert all(role.num_replicas * role.gpus <= 8 for role in roles)
    assert config.learner.num_ranks * config.learner.gpus <= 8


def test_the_scripts_recipe_differs_from_the_papers_only_where_the_scripts_do():
    changes = diff(paper().model_dump(), load(CONFIGS / "sppo_llama3_8b_scripts.yaml").model_dump())
    assert changes == [
        "name: 'sppo-llama3-8b' -> 'sppo-llama3-8b-scripts'",
        "sampling.temperature: 1.0 -> 0.7",
        "sampling.top_p: 1.0 -> 0.9",
        "sampling.max_new_tokens: 512 -> 2048",
        "scorer.source: 'plain' -> 'templated'",
        "algorithm.ties: 'drop' -> 'keep'",
        "algorithm.estimator: 'pairwise' -> 'bt_aggregate'",
        "learner.micro_batch_size: 8 -> 2",
        "learner.schedule.scheduler_total_epochs: 18.0 -> 1.0",
    ]


def test_the_smoke_config_needs_no_gpu_and_finds_its_prompts():
    config = load(CONFIGS / "smoke_sppo.yaml")
    assert config.generator.gpus == config.scorer.gpus == config.learner.gpus == 0
    lines = (ROOT / config.prompts.source).read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    assert len(set(prompts)) == 12


def test_every_value_of_the_published_recipe_says_where_it_comes_from():
    unexplained = []
    text = (CONFIGS / "sppo_llama3_8b.yaml").read_text().splitlines()
    for number, line in enumerate(text):
        is_value = re.match(r"^\s+(lr|eta|num_samples|temperature|top_p|scheduler_total_epochs|warmup_ratio):", line)
        if is_value and "#" not in line and not text[number - 1].strip().startswith("#"):
            unexplained.append(line)
    assert unexplained == []


def test_the_deployment_files_are_yaml_without_secrets():
    for path in (ROOT / "cluster" / "deploy").glob("*.yaml"):
        assert YAML(typ="safe").load(path)
        assert not re.search(r"hf_[A-Za-z0-9]{20}|BEGIN [A-Z ]*PRIVATE KEY", path.read_text())


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("smoke")])
def test_the_first_step_of_a_smoke_run_has_a_learning_rate(name):
    learner = load(CONFIGS / name).learner
    schedule = learner.schedule
    steps = 12 // learner.batch_size
    rate = lr_at(0, peak=1.0, total_steps=steps, warmup_steps=schedule.warmup(steps), kind=schedule.kind)
    assert rate > 0.0, "the only step of a short iteration would change nothing"
