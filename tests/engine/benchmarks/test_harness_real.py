"""Our generators against the harness's own HFLM: the same weights, tasks and rows give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from actors.chat import Chat
from actors.generator import Generator
from actors.tiny_policy import make_tiny_policy
from engine.benchmarks.harness.benchmark import Harness
from engine.benchmarks.harness.tasks import harness_process, load_tasks
from engine.config.benchmarks import HarnessConfig
from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import DataError
from engine.store.weights import write_checksums

pytestmark = pytest.mark.real

MAX_LENGTH = 500
"""Shorter than some of the prompts, so that they are cut."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=1024)


@pytest.fixture(scope="module")
def generator(policy: Path) -> Iterator[Generator]:
    config = GeneratorConfig(kv_cache_gib=0.25, engine_args={"block_size": 32})
    model = ModelConfig(path=str(policy), dtype="float32")
    generator = Generator(config, model, SamplingConfig(max_new_tokens=8, max_prompt_tokens=8), 0, room=MAX_LENGTH + 1)
    generator.load(policy, write_checksums(policy))
    yield generator
    generator.close()


class Tables:
    """Committed tables of one version."""

    version = 0

    def __init__(self, inputs: list[pa.Table], responses: list[pa.Table]):
        self._inputs, self._responses = inputs, responses

    def input(self) -> Iterator[pa.Table]:
        return iter(self._inputs)

    def of(self, stage: str, schema: pa.Schema) -> Iterator[pa.Table]:
        return iter(self._responses)


def config(data: Path, **changes: Any) -> HarnessConfig:
    """Two documents of five tasks, with examples before them."""
    rows = data / "benchmarks"
    mmlu = {"test": str(rows / "mmlu_test_20_per_subject.parquet"), "dev": str(rows / "mmlu_dev.parquet")}
    arc = {split: str(rows / f"arc_challenge_{split}.parquet") for split in ("test", "validation")}
    return HarnessConfig(
        tasks=[
            {"task": "arc_challenge", "num_fewshot": 2},
            {"task": "hellaswag", "num_fewshot": 1},
            {"task": "winogrande", "num_fewshot": 1},
            {"task": "gsm8k", "num_fewshot": 1, "generation_kwargs": {"until": ["\n", "a"], "max_gen_toks": 12}},
            "mmlu_stem_tasks",
        ],
        data={
            "arc_challenge": arc,
            "hellaswag": {"validation": str(rows / "hellaswag_validation_first1000.parquet")},
            "winogrande": {"validation": str(rows / "winogrande_xl_validation.parquet")},
            "gsm8k": str(rows / "gsm8k_test.parquet"),
            "mmlu_stem_tasks": mmlu,
        },
        limit=2,
        max_length=MAX_LENGTH,
        log_samples=True,
        **changes,
    )


@pytest.mark.parametrize("as_chat", [False, True])
def test_likelihoods_texts_and_metrics_equal_those_of_the_harnesss_own_model(generator, policy, public_data, as_chat):
    settings = config(public_data, apply_chat_template=as_chat)
    harness = Harness(settings, 16)
    inputs = harness.inputs(Chat(ModelConfig(path=str(policy))))
    tables = Tables(inputs, [generator.respond(shard) for shard in inputs])
    ours = harness._evaluate(tables)  # type: ignore[arg-type]
    model = HFLM(pretrained=str(policy), dtype="float32", device="cpu", batch_size=1, max_length=MAX_LENGTH)
    with harness_process():
        tasks = load_tasks(settings)
        theirs: Any = evaluate(
            lm=model,
            task_dict={"tasks": tasks.tasks, "groups": tasks.groups},
            limit=settings.limit,
            apply_chat_template=as_chat,
            fewshot_as_multiturn=True,
        )
    assert len(theirs["samples"]) == 4 + 19
    for task, rows in theirs["samples"].items():
        for mine, row in zip(ours["samples"][task], rows, strict=True):
            for (answer,), (expected,) in zip(mine["resps"], row["resps"], strict=True):
                assert_same(answer, expected, f"{task} {row['doc_id']}")
    assert ours["results"] == theirs["results"]
    assert any(row["num_cut"] for table in inputs for row in table.to_pylist())


def assert_same(answer: Any, expected: Any, where: str) -> None:
    if isinstance(expected, str):
        assert answer == expected, where
    else:
        assert answer[0] == pytest.approx(expected[0], abs=1e-4), where
        assert answer[1] == expected[1], where


def test_a_preset_says_which_of_its_tasks_have_no_data(generator, policy, public_data):
    rows = {"validation": str(public_data / "benchmarks/winogrande_xl_validation.parquet")}
    settings = HarnessConfig(preset="open_llm_leaderboard", data={"winogrande": rows}, limit=2, max_length=MAX_LENGTH)
    harness = Harness(settings, 16)
    inputs = harness.inputs(Chat(ModelConfig(path=str(policy))))
    results = harness.results(Tables(inputs, [generator.respond(shard) for shard in inputs]))  # type: ignore[arg-type]
    measured = [result.metric for result in results if result.value == result.value]
    assert measured == ["winogrande/acc"]
    assert [result.metric for result in results] == [
        "arc_challenge/acc_norm", "truthfulqa_mc2/acc", "winogrande/acc", "gsm8k/exact_match,strict-match",
        "hellaswag/acc_norm", "mmlu/acc", "average",
    ]  # fmt: skip
    assert "5-shot; the first 2 documents of each task; few-shot examples from validation" in results[2].note
    assert results[1].note.startswith("not measured: no data")


def test_an_unknown_task_is_named_with_the_nearest(policy):
    with pytest.raises(
        DataError, match="arc_chalenge: no task, group or file of lm_eval has this name; nearest: arc_ch"
    ):
        Harness(HarnessConfig(tasks=["arc_chalenge"]), 4).inputs(Chat(ModelConfig(path=str(policy))))
