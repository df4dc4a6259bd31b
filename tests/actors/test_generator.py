"""The generator with a real vLLM: what it samples, what it says about it, and which weights it serves.

One engine serves the whole module; it costs about 15 s to start. The expected values are those of transformers.
"""

from __future__ import annotations

import inspect
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.generator import Generator, _check_answers
from actors.tiny_policy import make_tiny_policy
from actors.vllm_engine import Sample, SampleRequest
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import ConfigError, RoleError, WeightsError
from engine.loop.weight_probe import compare_probe, probe_batch
from engine.schema import COMPLETIONS, NO_DATASET_COMPLETIONS, PROMPTS, arrow_safe
from engine.seeds import derive_seed
from engine.store.weights import write_checksums

SAMPLING = SamplingConfig(num_samples=5, temperature=0.7, top_p=0.9, max_new_tokens=24, max_prompt_tokens=40)
STOPS = [2, 40, 41, 42, 43, 44, 45, 46]
"""EOS of the tokenizer, and seven more ids in generation_config.json so that answers of 24 tokens do stop."""
RUN_SEED = 11
NUM_PROMPTS = 24


@dataclass
class World:
    """Three folders of weights, the prompts, and the one engine."""

    first: Path
    second: Path
    digests: dict[Path, str]
    prompts: pa.Table
    generator: Generator

    def load(self, folder: Path) -> None:
        self.generator.load(folder, self.digests[folder])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("weights")
    folders = [
        make_tiny_policy(root / name, seed, eos_token_ids=STOPS) for seed, name in enumerate(("first", "second"))
    ]
    # Blocks smaller than the prompts, so that vLLM's prefix cache has something to keep.
    config = GeneratorConfig(kv_cache_gib=0.25, engine_args={"block_size": 32})
    generator = Generator(config, ModelConfig(path=str(folders[0]), dtype="float32"), SAMPLING, RUN_SEED)
    digests = {folder: write_checksums(folder) for folder in folders}
    yield World(folders[0], folders[1], digests, make_prompts(folders[0], NUM_PROMPTS), generator)
    generator.close()


@pytest.fixture
def generator(world: World) -> Generator:
    """The engine with the first folder's weights, also after an earlier test loaded others."""
    world.load(world.first)
    return world.generator


@pytest.fixture(scope="module")
def completions(world: World) -> list[dict[str, Any]]:
    world.load(world.first)
    return world.generator.generate(world.prompts, iteration=1).to_pylist()


def make_prompts(folder: Path, count: int) -> pa.Table:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for i in range(count):
        messages = [{"role": "user", "content": f"Question number {i:03d} of the test" + "?" * (i % 3)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append(
            {"prompt_id": f"id{i}", "messages": messages, "prompt_text": text, "prompt_token_ids": ids}
            | NO_DATASET_COMPLETIONS
        )
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def transformers_logps(folder: Path, prompt: list[int], answer: list[int]) -> list[float]:
    """The log-probabilities of `answer` by another implementation of the same model, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer].tolist()


# Without an engine


def test_importing_and_constructing_a_generator_loads_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from actors.generator import Generator; from engine.config.run import *;"
        "g = Generator(GeneratorConfig(), ModelConfig(path='nowhere'), SamplingConfig(), 0); g.sleep(); g.close();"
        "assert g.serving() is None; assert not {'torch', 'vllm', 'transformers', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_engine_arguments_that_other_keys_decide_are_refused_all_at_once() -> None:
    config = GeneratorConfig(engine_args={"logprobs_mode": "processed_logprobs", "model": "x", "max_num_seqs": 4})
    with pytest.raises(ConfigError) as caught:
        Generator(config, ModelConfig(path="x"), SAMPLING, 0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "generator.engine_args.logprobs_mode",
        "generator.engine_args.model",
    ]


def test_a_generator_without_weights_says_so() -> None:
    idle = Generator(GeneratorConfig(), ModelConfig(path="x"), SAMPLING, 0)
    with pytest.raises(RoleError, match="no weights are loaded; call load"):
        idle.generate(PROMPTS.empty_table(), 0)
    with pytest.raises(RoleError, match="no weights are loaded"):
        idle.token_logps([[1]], [[2]])


def test_lone_surrogates_become_replacement_characters_and_nothing_else_changes() -> None:
    assert arrow_safe("a\ud83d b\udfff \0 é \U0001f600 \u202e") == "a\ufffd b\ufffd \0 é \U0001f600 \u202e"
    assert pa.array([arrow_safe("\ud800")]).to_pylist() == ["\ufffd"]


def test_too_few_answers_or_one_that_was_aborted_or_is_nan_name_their_prompt() -> None:
    good = Sample("text", [5, 2], -1.0, "stop")
    _check_answers("id7", [good, good], 2)
    with pytest.raises(RoleError, match="prompt id7 has 1 of 2 answers"):
        _check_answers("id7", [good], 2)
    with pytest.raises(RoleError, match="answer 1 to prompt id7 ended by 'abort'"):
        _check_answers("id7", [good, Sample("", [], 0.0, "abort")], 2)
    with pytest.raises(RoleError, match="answer 0 to prompt id7 has log-probability nan"):
        _check_answers("id7", [Sample("", [5], math.nan, "length"), good], 2)


# With one engine


@pytest.mark.real
def test_a_benchmark_may_ask_longer_prompts_for_shorter_answers(generator: Generator, world: World) -> None:
    row = world.prompts.slice(0, 1).to_pylist()[0]
    longer = row | {"prompt_token_ids": [*row["prompt_token_ids"], *row["prompt_token_ids"]][:56]}
    assert len(longer["prompt_token_ids"]) == 56 > SAMPLING.max_prompt_tokens
    prompts = pa.Table.from_pylist([longer], schema=PROMPTS)
    answers = generator.generate(prompts, iteration=0, num_samples=1, max_new_tokens=8).to_pylist()[0]
    assert 0 < len(answers["completion_token_ids"][0]) <= 8
    with pytest.raises(RoleError, match="expected prompts of 1 to 40 tokens"):
        generator.generate(prompts, iteration=0)
    with pytest.raises(RoleError, match="expected prompts of 1 to 55 tokens"):
        generator.generate(prompts, iteration=0, num_samples=1, max_new_tokens=9)


@pytest.mark.real
def test_every_prompt_gets_k_answers_and_the_table_says_where_they_come_from(
    world: World, completions: list[dict[str, Any]]
) -> None:
    assert [row["prompt_id"] for row in completions] == [f"id{i}" for i in range(NUM_PROMPTS)]
    for row in completions:
        base = derive_seed(RUN_SEED, "sample", 1, row["prompt_id"])
        assert row["seeds"] == [base, base + 1, base + 2, base + 3, base + 4]
        assert row["weights"] == world.digests[world.first]
        assert len(row["completions"]) == len(row["completion_logps"]) == len(row["finish_reasons"]) == 5


@pytest.mark.real
def test_answers_differ_between_samples_and_between_prompts(completions: list[dict[str, Any]]) -> None:
    answers = [tuple(ids) for row in completions for ids in row["completion_token_ids"]]
    assert len(set(answers)) > 0.95 * len(answers)


@pytest.mark.real
def test_an_answer_ends_with_a_stop_token_exactly_where_it_stopped_by_itself(
    completions: list[dict[str, Any]],
) -> None:
    ends = set()
    for row in completions:
        for ids, reason in zip(row["completion_token_ids"], row["finish_reasons"], strict=True):
            assert not set(ids[:-1]) & set(STOPS)
            if reason == "stop":
                ends.add(ids[-1])
                assert ids[-1] in STOPS
            else:
                assert reason == "length"
                assert len(ids) == SAMPLING.max_new_tokens
                assert ids[-1] not in STOPS
    assert len(ends) >= 4, "the tokenizer's EOS is not the only one that stops"


@pytest.mark.real
def test_texts_are_the_decoded_answers_without_special_or_stop_tokens(
    world: World, completions: list[dict[str, Any]]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.first)
    for row in completions:
        for text, ids, reason in zip(
            row["completions"], row["completion_token_ids"], row["finish_reasons"], strict=True
        ):
            body = ids[:-1] if reason == "stop" else ids
            # An incomplete character at the very end may be shown as U+FFFD or be left out.
            assert text.rstrip("\ufffd") == tokenizer.decode(body, skip_special_tokens=True).rstrip("\ufffd")


@pytest.mark.real
def test_answer_logps_are_the_models_own_though_sampling_was_at_temperature_0_7_and_top_p_0_9(
    world: World, completions: list[dict[str, Any]]
) -> None:
    for row in completions[:6]:
        for ids, logp in zip(row["completion_token_ids"], row["completion_logps"], strict=True):
            expected = sum(transformers_logps(world.first, row["prompt_token_ids"], ids))
            assert logp == pytest.approx(expected, abs=1e-4)


@pytest.mark.real
def test_sample_i_is_what_a_single_request_with_its_recorded_seed_gives(
    generator: Generator, completions: list[dict[str, Any]]
) -> None:
    assert generator._engine is not None
    row = completions[3]
    singles = generator._engine.sample(
        [SampleRequest(row["prompt_token_ids"], 1, seed, SAMPLING.temperature) for seed in row["seeds"]]
    )
    assert [answers[0].token_ids for answers in singles] == row["completion_token_ids"]


@pytest.mark.real
def test_answers_do_not_depend_on_the_shard_its_order_or_its_size(
    world: World, generator: Generator, completions: list[dict[str, Any]]
) -> None:
    order = list(range(NUM_PROMPTS))[::-1]
    parts = [generator.generate(world.prompts.take(part), iteration=1) for part in (order[:3], order[3:10], order[10:])]
    again = {row["prompt_id"]: row for part in parts for row in part.to_pylist()}
    for row in completions:
        assert again[row["prompt_id"]]["completion_token_ids"] == row["completion_token_ids"]
        assert again[row["prompt_id"]]["completion_logps"] == pytest.approx(row["completion_logps"], abs=1e-4)


@pytest.mark.real
def test_another_iteration_or_purpose_gives_other_answers(world: World, generator: Generator) -> None:
    few = world.prompts.slice(0, 4)
    tables = [generator.generate(few, 1), generator.generate(few, 2), generator.generate(few, 1, purpose="evaluation")]
    seen = [json.dumps(table["completion_token_ids"].to_pylist()) for table in tables]
    assert len(set(seen)) == 3


@pytest.mark.real
def test_greedy_answers_are_the_likeliest_tokens_and_ignore_the_seed(world: World, generator: Generator) -> None:
    few = world.prompts.slice(0, 2)
    one, two = (generator.generate(few, i, 1, 0.0, "evaluation").to_pylist() for i in (1, 2))
    assert [row["completion_token_ids"] for row in one] == [row["completion_token_ids"] for row in two]
    assert one[0]["seeds"] != two[0]["seeds"]
    ids = one[0]["completion_token_ids"][0]
    logps = transformers_logps(world.first, one[0]["prompt_token_ids"], ids)
    assert one[0]["completion_logps"] == pytest.approx([sum(logps)], abs=1e-4)
    with pytest.raises(ConfigError, match="temperature = 0 with 5 samples"):
        generator.generate(few, 1, temperature=0.0)


@pytest.mark.real
def test_a_prompt_beyond_its_limit_is_refused_by_name_and_an_empty_shard_is_no_error(
    world: World, generator: Generator
) -> None:
    row = world.prompts.slice(0, 1).to_pylist()[0] | {"prompt_id": "long one", "prompt_token_ids": [5] * 41}
    table = pa.concat_tables([world.prompts.slice(1, 1), pa.Table.from_pylist([row], schema=PROMPTS)])
    with pytest.raises(RoleError, match=r"1 to 40 tokens .* not long one \(41\)"):
        generator.generate(table, 1)
    empty = generator.generate(world.prompts.slice(0, 0), 1)
    assert empty.num_rows == 0
    assert empty.schema.equals(COMPLETIONS)


@pytest.mark.real
def test_a_full_load_of_seeded_prompts_does_not_kill_the_engine(world: World, generator: Generator) -> None:
    """More prompt tokens than vLLM reads in one step: on CPU a prompt read in chunks was fatal."""
    rows = [
        row | {"prompt_id": f"{i}", "prompt_token_ids": [1, 3] + [47 + (i * 7 + j) % 200 for j in range(38)]}
        for i, row in enumerate(world.prompts.slice(0, 1).to_pylist() * 150)
    ]
    table = generator.generate(pa.Table.from_pylist(rows, schema=PROMPTS), 1)
    assert table.num_rows == 150


@pytest.mark.real
def test_the_probe_equals_transformers_and_changes_with_the_weights(world: World, generator: Generator) -> None:
    batch = probe_batch(world.prompts, range(5, 261), RUN_SEED, max_length=64)
    expected = {
        folder: [
            transformers_logps(folder, prompt, answer)
            for prompt, answer in zip(batch.prompt_token_ids, batch.completion_token_ids, strict=True)
        ]
        for folder in (world.first, world.second)
    }
    served = generator.token_logps(batch.prompt_token_ids, batch.completion_token_ids)
    assert compare_probe(expected[world.first], served, 1e-5, replica="generator 0") <= 1e-5

    world.load(world.second)
    assert generator.serving() == world.digests[world.second]
    served = generator.token_logps(batch.prompt_token_ids, batch.completion_token_ids)
    assert compare_probe(expected[world.second], served, 1e-5, replica="generator 0") <= 1e-5
    with pytest.raises(WeightsError, match="generator 0: log-probabilities differ"):
        compare_probe(expected[world.first], served, 1e-3, replica="generator 0")


@pytest.mark.real
def test_a_probe_that_does_not_fit_is_refused(generator: Generator) -> None:
    with pytest.raises(RoleError, match=r"row 1 has 40 prompt and 25 answer tokens; .* at most 64"):
        generator.token_logps([[5], [5] * 40], [[6], [6] * 25])


@pytest.mark.real
def test_an_answer_that_fills_its_room_has_log_probabilities(generator: Generator) -> None:
    (logps,) = generator.token_logps([[5] * 40], [[6] * 24])
    assert len(logps) == 24


@pytest.mark.real
def test_new_weights_answer_at_once_without_leftovers_of_the_old_ones_cache(world: World, generator: Generator) -> None:
    few = world.prompts.slice(0, 3)
    generator.generate(few, 1)
    world.load(world.second)
    row = generator.generate(few, 1).to_pylist()[0]
    assert row["weights"] == world.digests[world.second]
    expected = sum(transformers_logps(world.second, row["prompt_token_ids"], row["completion_token_ids"][0]))
    assert row["completion_logps"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.real
def test_new_weights_with_tied_embeddings_reach_the_output_layer(world: World, tmp_path: Path) -> None:
    # On CPU vLLM multiplies with a packed copy of the output layer, which only a tensor of its own would refresh.
    world.generator.sleep()
    folders = [make_tiny_policy(tmp_path / name, seed, tied=True) for seed, name in enumerate(("first", "second"))]
    batch = probe_batch(world.prompts, range(5, 261), RUN_SEED, max_length=64, num_tokens=4)
    config = GeneratorConfig(kv_cache_gib=0.1)
    generator = Generator(config, ModelConfig(path=str(folders[0]), dtype="float32"), SAMPLING, RUN_SEED)
    try:
        for folder in folders:
            generator.load(folder, write_checksums(folder))
            served = generator.token_logps(batch.prompt_token_ids, batch.completion_token_ids)
            for prompt, answer, logps in zip(batch.prompt_token_ids, batch.completion_token_ids, served, strict=True):
                assert logps == pytest.approx(transformers_logps(folder, prompt, answer), abs=1e-4)
    finally:
        generator.close()


@pytest.mark.real
def test_a_folder_that_lacks_a_tensor_is_refused_by_name_and_the_old_weights_stay(
    world: World, generator: Generator, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(world.second, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        generator.load(folder, write_checksums(folder))
    assert generator.serving() == world.digests[world.first]


@pytest.mark.real
def test_a_folder_that_was_altered_after_its_digest_is_refused_and_the_file_is_named(
    world: World, generator: Generator, tmp_path: Path
) -> None:
    folder = shutil.copytree(world.second, tmp_path / "altered")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"changed: model\.safetensors"):
        generator.load(folder, world.digests[world.second])
    assert generator.serving() == world.digests[world.first]


@pytest.mark.real
def test_a_folder_with_other_stop_tokens_is_refused(world: World, generator: Generator, tmp_path: Path) -> None:
    folder = shutil.copytree(world.second, tmp_path / "stops")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    with pytest.raises(WeightsError, match=r"stop at token ids \[2\], .* stop at \[2, 40, 41"):
        generator.load(folder, write_checksums(folder))
    assert generator.serving() == world.digests[world.first]


@pytest.mark.real
def test_after_sleep_the_memory_is_free_and_load_brings_the_same_answers_back(
    world: World, generator: Generator, completions: list[dict[str, Any]]
) -> None:
    import psutil

    awake = psutil.Process().memory_info().rss
    generator.sleep()
    freed = awake - psutil.Process().memory_info().rss
    assert freed > 0.2 * 2**30, "the key-value cache alone is 0.25 GiB"
    assert generator.serving() is None
    with pytest.raises(RoleError, match="also after sleep"):
        generator.generate(world.prompts, 1)
    world.load(world.first)
    again = generator.generate(world.prompts, iteration=1).to_pylist()
    assert [row["completion_token_ids"] for row in again] == [row["completion_token_ids"] for row in completions]
    assert [row["completions"] for row in again] == [row["completions"] for row in completions]


@pytest.mark.real
def test_vllm_still_has_every_call_that_the_engine_uses() -> None:
    import vllm
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def parameters(function: Any) -> set[str]:
        return set(inspect.signature(function).parameters)

    assert {"prompts", "sampling_params", "use_tqdm"} <= parameters(vllm.LLM.generate)
    assert {"method", "kwargs"} <= parameters(vllm.LLM.collective_rpc)
    assert {"level"} <= parameters(vllm.LLM.sleep)
    assert {"tags"} <= parameters(vllm.LLM.wake_up)
    assert callable(vllm.LLM.reset_prefix_cache)
    assert {"n", "seed", "top_k", "logprobs", "prompt_logprobs", "flat_logprobs", "detokenize", "stop"} <= parameters(
        vllm.SamplingParams
    )
    assert "logprob_token_ids" in parameters(vllm.SamplingParams)
    assert {"index", "text", "token_ids", "cumulative_logprob", "finish_reason"} <= parameters(CompletionOutput)
    assert {"outputs", "prompt_logprobs"} <= parameters(RequestOutput)
    assert "weights_path" in parameters(GPUModelRunner.reload_weights)
