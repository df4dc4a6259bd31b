"""The plan of a run, before anything starts, against arithmetic done by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.plan import estimates
from cluster.plan.machines import GIB, machines
from cluster.plan.plan import Plan, host_bytes, make_plan
from engine.config.load import load
from engine.config.run import RunConfig
from engine.errors import ConfigError, ModelError, PlanError
from tests.runs import fake_config

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "recipes/configs/sppo_llama3_8b.yaml"
PARAMETERS = 8.03e9


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def paper(*overrides: str) -> RunConfig:
    return load(PAPER, list(overrides))


def planned(*overrides: str) -> Plan:
    config = paper(*overrides)
    return make_plan(config, config.cluster.stated)


def line(plan: Plan, word: str) -> str:
    return next(text.strip() for text in plan.lines if text.strip().startswith(word))


def test_the_published_recipe_fits_the_node_that_it_states():
    plan = planned()
    plan.check()
    assert line(plan, "cluster") == "cluster    as stated, 1 node: 96 CPUs, 8 GPUs"
    assert line(plan, "placement") == "placement  colocated: the roles share the same resources, one role at a time"
    for role in ("generator (vllm)", "scorer (pairrm)", "learner (deepspeed)"):
        assert line(plan, f"8 x {role}") == f"8 x {role}: 4 CPUs, 1 GPUs each"


def test_its_work_by_hand():
    """20,000 prompts x 5 answers, 5 x 4 ordered pairs each; 20,000 / 64 = 312.5 steps, three times."""
    assert line(planned(), "work") == (
        "work       3 iterations x 20,000 prompts: 100,000 answers, 400,000 comparisons, "
        "up to 313 optimizer steps each, 939 in all"
    )


def test_its_memory_by_hand():
    """bfloat16 weights 2, float32 gradients 4, master 4 and RMSprop 4 = 14 bytes x 8.03e9 / 8 ranks = 13.1 GiB.

    vLLM: 0.85 x 80 = 68 GiB less 8.03e9 x 2 = 15.0 GiB of weights. PairRM: 435e6 x 4 = 1.6 GiB.
    """
    plan = planned()
    assert line(plan, "learner:") == "learner: 13.1 GiB of 80.0 GiB, 66.9 GiB left for activations"
    assert line(plan, "generator:").startswith("generator: 15.0 GiB, which leaves up to 53.0 GiB of 80 GiB")
    assert line(plan, "scorer:").startswith("scorer: 1.6 GiB of 80.0 GiB")


def test_its_host_memory_by_hand():
    """Eight ranks on one node read 8.03e9 x 2 bytes each before ZeRO-3 divides them: 119.7 GiB."""
    assert line(planned(), "host memory").startswith("host memory: up to 119.7 GiB of 1,000 GiB on one node")


def test_its_disk_by_hand():
    """Weights 3 x 16.06e9; checkpoints 2 x 10 bytes x 8.03e9; 300,000 answers x 512 tokens x 6 bytes."""
    parts = estimates.disk_bytes(paper(), PARAMETERS)
    assert parts == {"weights": 48.18e9, "2 learner checkpoints": 160.6e9, "tables": 921.6e6}
    assert line(planned(), "disk").startswith("disk       up to 195.3 GiB of 2,000.0 GiB free (weights 44.9 GiB")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, 2 + 2 + 8), (1, 2 + 4 + 8 / 8), (2, 2 + 4 / 8 + 8 / 8), (3, (2 + 4 + 8) / 8)],
)
def test_each_zero_stage_divides_one_part_more_among_eight_ranks(stage, expected):
    learner = paper(f"learner.zero_stage={stage}").learner
    assert estimates.learner_bytes(learner, "bfloat16", 1.0) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "dtype", "expected"), [("adamw", "bfloat16", 18 / 8), ("adamw", "float32", 16 / 8)])
def test_adamw_keeps_two_numbers_and_float32_needs_no_master_copy(name, dtype, expected):
    learner = paper(f"learner.optimizer.name={name}").learner
    assert estimates.learner_bytes(learner, dtype, 1.0) == pytest.approx(expected)


def test_an_offloaded_optimizer_moves_from_the_gpu_to_the_host():
    config = paper("learner.offload_optimizer=true", "learner.optimizer.name=adamw")
    assert estimates.learner_bytes(config.learner, "bfloat16", 1.0) == pytest.approx(6 / 8)
    assert estimates.offloaded_bytes(config.learner, "bfloat16", 1.0) == pytest.approx(12 / 8)
    # 8 ranks x max(2 bytes while loading, 12 / 8 bytes afterwards)
    assert host_bytes(config, machines(config, config.cluster.stated), 1.0) == {"learner": pytest.approx(16.0)}


def test_ranks_on_two_nodes_load_half_as_much_on_each():
    config = paper("cluster.stated.nodes=2", "cluster.stated.gpus=4")
    make_plan(config, config.cluster.stated).check()
    assert host_bytes(config, machines(config, config.cluster.stated), 1.0) == {"learner": 8.0}


# What does not fit is named


def problems(*overrides: str) -> str:
    plan = planned(*overrides)
    with pytest.raises(PlanError) as caught:
        plan.check()
    assert len(plan.problems) == str(caught.value).count("\n  - ")
    return str(caught.value)


def test_small_gpus_hold_the_learner_in_stage_3_but_not_in_stage_2():
    planned("cluster.stated.gpu_gib=24").check()
    text = problems("cluster.stated.gpu_gib=24", "learner.zero_stage=2")
    # 2 + (4 + 8) / 8 = 3.5 bytes x 8.03e9 = 26.2 GiB
    assert "learner: 26.2 GiB per replica, its share of a GPU has 24.0 GiB" in text


def test_gpus_too_small_for_the_weights_are_named_with_the_way_out():
    text = problems("cluster.stated.gpu_gib=16")
    assert "generator: 15.0 GiB of weights per GPU, gpu_memory_utilization = 0.85 of 16 GiB allows 13.6 GiB" in text
    assert "tensor_parallel_size" in text
    divided = ("generator.tensor_parallel_size=2", "generator.gpus=2", "generator.num_replicas=4")
    planned("cluster.stated.gpu_gib=16", "cluster.stated.gpus=16", *divided).check()


def test_half_the_gpus_are_not_enough_and_the_error_names_the_roles():
    text = problems("cluster.stated.gpus=4")
    assert "8 GPUs needed (8 bundles of 1 shared by all roles: generator 8, scorer 8, learner 8), 4 available" in text
    assert "cluster.placement=colocated" in text


def test_disaggregated_eight_gpus_are_not_enough_either():
    assert "24 GPUs needed (generator 8, scorer 8, learner 8), 8 available" in problems(
        "cluster.placement=disaggregated"
    )


def test_a_replica_that_no_node_can_hold_is_named():
    wide = ("generator.num_replicas=1", "generator.tensor_parallel_size=8", "generator.gpus=8")
    assert "generator: 8 GPUs needed on one node, a node has 4" in problems(
        "cluster.stated.nodes=2", "cluster.stated.gpus=4", *wide
    )


def test_a_small_disk_and_a_small_host_are_named_with_both_numbers():
    text = problems("cluster.stated.disk_gib=100", "cluster.stated.memory_gib=64")
    assert "disk: up to 195.3 GiB needed under runs, 100.0 GiB free" in text
    assert "host memory: up to 119.7 GiB needed on one node while models load" in text


# What is there, and what cannot be known


def test_a_real_run_ignores_the_stated_cluster(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr("cluster.plan.machines._visible_gpus", lambda: 1.0)
    plan = make_plan(paper())
    assert line(plan, "cluster") == "cluster    this machine: 3 CPUs, 1 GPUs"
    assert any("8 GPUs needed" in problem for problem in plan.problems)


@pytest.mark.parametrize("how", ["config", "environment"])
def test_a_plan_for_a_cluster_does_not_check_this_machine(monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    overrides = ["cluster.address=ray://head:10001"] if how == "config" else []
    plan = make_plan(paper(*overrides))
    assert line(plan, "cluster") == "cluster    ray://head:10001, asked when the run connects"
    assert not [problem for problem in plan.problems if "needed" in problem and "disk" not in problem]


def test_without_a_count_of_the_prompts_the_plan_counts_per_thousand():
    text = line(planned("prompts.expected=null"), "work")
    assert text == (
        "work       unknown until the prompts are read; per 1,000 prompts and iteration: "
        "5,000 answers, 20,000 comparisons, up to 16 optimizer steps"
    )


def test_a_limit_bounds_what_is_expected():
    assert estimates.count_prompts(paper("prompts.limit=500").prompts) == 1500
    assert estimates.prompts_per_iteration(paper("prompts.limit=500")) == 500
    assert estimates.count_prompts(paper("prompts.limit=500", "prompts.expected=null").prompts) == 1500


@pytest.mark.parametrize(("use", "each"), [("parts", 4), ("all", 8)])
def test_prompts_of_a_file_are_counted(tmp_path, use, each):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "x"}\n\n' * 8)
    config = fake_config(tmp_path, prompts={"source": str(file), "use": use, "expected": 99})
    assert estimates.prompts_per_iteration(config) == each


def test_parameters_are_counted_from_the_headers_of_all_shards(tmp_path):
    save_file({"a": np.zeros((3, 5), np.float16), "b": np.zeros(7)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros((2, 2, 2))}, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    assert estimates.count_parameters(str(tmp_path)) == 15 + 7 + 8
    assert estimates.count_parameters(str(tmp_path / "absent")) is None


def test_a_damaged_model_file_is_named_before_anything_starts(tmp_path):
    save_file({"a": np.zeros((3, 5), np.float32)}, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file .*copy the file again"):
        planned(f"model.path={tmp_path}", "model.num_parameters=null")


def test_a_model_that_is_not_here_leaves_its_memory_unknown(tmp_path):
    plan = planned("model.num_parameters=null")
    assert line(plan, "memory").startswith("memory     unknown")
    assert "model.num_parameters" in line(plan, "memory")


def test_on_a_machine_without_gpus_everything_counts_as_host_memory(tmp_path):
    """float32: two ranks in stage 0 hold 16 bytes per parameter (AdamW keeps two numbers); vLLM 4 and a cache."""
    config = fake_config(
        tmp_path,
        generator={"kv_cache_gib": 2.0},
        learner={"zero_stage": 0, "num_ranks": 2, "batch_size": 2, "cpus": 0.5, "optimizer": {"name": "adamw"}},
        cluster={"backend": "ray"},
    )
    there = machines(config, None)
    assert host_bytes(config, there, 1e6) == {"learner": 2 * 16e6, "generator": 4e6 + 2 * GIB}


def test_a_containers_limit_is_the_memory_that_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    monkeypatch.setattr("cluster.plan.machines.CGROUP_LIMIT", tmp_path / "memory.max")
    assert machines(fake_config(tmp_path), None).memory_gib == 1.0
    (tmp_path / "memory.max").write_text("max\n")
    assert machines(fake_config(tmp_path), None).memory_gib != 1.0


def test_the_expectations_of_the_plan_change_no_result():
    from engine.config.load import config_digest

    other = paper("prompts.expected=1", "model.num_parameters=1", "cluster.stated=null")
    assert config_digest(other) == config_digest(paper())


def keys_of(plan: Plan) -> set[str]:
    return {text.split()[0] for text in plan.lines if not text.startswith(" ")}


def test_a_plan_of_fakes_is_complete_as_well(tmp_path):
    values: dict[str, Any] = {"cluster": {"backend": "local"}}
    plan = make_plan(fake_config(tmp_path, **values))
    plan.check()
    assert keys_of(plan) == {"cluster", "placement", "work", "batch", "memory", "disk"}
    assert line(plan, "placement") == "placement  one after the other, in this process"


JUDGE = {
    "kind": "judge",
    "server": {"kind": "vllm", "path": "somewhere/judge-70b", "tensor_parallel_size": 4, "num_parameters": 70e9},
    "prompt": str(ROOT / "recipes/judges/pairwise.txt"),
    "gpus": 4,
    "num_replicas": 2,
}


def judged(**changes: Any) -> RunConfig:
    """The paper's recipe with an LLM judge in PairRM's place."""
    return RunConfig.model_validate(paper().model_dump() | {"scorer": {**JUDGE, **changes}})


def test_a_judge_of_70_billion_by_hand():
    """70e9 x 2 bytes / 4 GPUs = 32.6 GiB each."""
    config = judged()
    plan = make_plan(config, config.cluster.stated)
    assert line(plan, "2 x scorer") == "2 x scorer (judge): 1 CPUs, 4 GPUs each"
    assert line(plan, "scorer: 32.6 GiB").startswith("scorer: 32.6 GiB, which leaves up to ")
    assert "400,000 comparisons" in line(plan, "work")
    unknown = judged(server={**JUDGE["server"], "num_parameters": None})
    assert "server.num_parameters is not set" in line(make_plan(unknown, unknown.cluster.stated), "scorer: unknown")
    large = judged(server={**JUDGE["server"], "num_parameters": 400e9})
    assert any(
        p.startswith("scorer: 186.3 GiB of weights per GPU") for p in make_plan(large, large.cluster.stated).problems
    )


def test_what_a_judge_is_asked_by_hand():
    """20,000 prompts x 5 answers: 10 pairs in one order; or 3 judgements of each answer."""
    assert estimates.num_verdicts(judged(orders="random"), 20_000, 5) == (200_000, "comparisons")
    points = judged(mode="pointwise", prompt=str(ROOT / "recipes/judges/additive_rubric.txt"))
    assert estimates.num_verdicts(points, 20_000, 5) == (300_000, "judgements")


def test_stages_that_begin_with_the_second_iteration_are_planned_for(tmp_path):
    """8 prompts x 3 answers of the policy and 3 of the start; 2 judgements of each, by this policy and the last."""
    rubric = str(ROOT / "recipes/judges/additive_rubric.txt")
    judge = {"kind": "judge", "server": {"kind": "policy"}, "mode": "pointwise", "prompt": rubric, "num_judgements": 2}
    mended = {"name": "self_rewarding", "consistency": "per_prompt", "soft_labels": True, "rejected_from": "start"}
    config = fake_config(tmp_path, iterations=2, scorer=judge, algorithm=mended)
    answers = 8 * 2 * 3
    assert f"{answers:,} answers, {answers * 2 * 2:,} judgements" in line(make_plan(config), "work")


def test_a_policy_that_judges_itself_needs_no_pool_of_its_own(tmp_path):
    config = fake_config(tmp_path, scorer={"kind": "judge", "server": {"kind": "policy"}, "prompt": JUDGE["prompt"]})
    plan = make_plan(config)
    assert "generator (vllm, also the judge)" in line(plan, "2 x generator")
    assert not any("scorer" in text for text in plan.lines)
    assert estimates.scorer_bytes(config.scorer) == 0


def test_a_judges_prompt_is_read_before_anything_starts():
    config = judged(prompt=str(ROOT / "recipes/judges/additive_rubric.txt"))
    with pytest.raises(ConfigError, match=r"has no \{answer_a\} in its user part"):
        make_plan(config, config.cluster.stated)
