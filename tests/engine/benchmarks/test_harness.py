"""lm-evaluation-harness in a run: its requests are committed, answered once, and its own code gives the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from engine.benchmarks.base import BenchmarkTables
from engine.benchmarks.harness.benchmark import Harness
from engine.benchmarks.harness.model import Answered, Collector, digest
from engine.benchmarks.harness.presets import Entry
from engine.benchmarks.harness.results import table
from engine.benchmarks.harness.tasks import harness_process, load_tasks
from engine.config.benchmarks import HarnessConfig
from engine.errors import DataError
from engine.schema import BENCHMARK_FILES, BENCHMARK_RESULTS
from engine.store import inspection
from engine.store.reader import RunReader
from tests.engine.benchmarks.harness_world import (
    WORDS,
    Tokenizing,
    TokenizingEngines,
    harness_config,
    tokenizer,
    write_tasks,
)
from tests.runs import DyingDisk, Killed, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def run_config(folder: Path, **changes: Any) -> Any:
    config = harness_config(folder, **changes)
    rule = {"kind": "rule", "function": "actors.fakes:utility"}
    return fake_config(
        folder, evaluation={"scorer": rule, "benchmarks": {"lm_eval": config.model_dump()}}, iterations=1
    )


def numbers(folder: Path, version: int) -> dict[str, float]:
    tables = RunReader(folder).tables(version, "lm_eval_results", BENCHMARK_RESULTS)
    return {row["metric"]: row["value"] for table in tables for row in table.to_pylist()}


def instance(kind: str, *arguments: Any, document: int = 0, number: int = 0, repeats: int = 1) -> Instance:
    return Instance(kind, {}, arguments, number, metadata=("task", document, repeats))  # type: ignore[arg-type]


# Requests


def hflm() -> HFLM:
    """The harness's own HFLM without a model: only what makes tokens of texts."""
    model = HFLM.__new__(HFLM)
    model.tokenizer, model.add_bos_token, model.custom_prefix_token_id = tokenizer(), None, None
    model.backend, model.enable_thinking = "causal", None
    model._loglikelihood_tokens = lambda requests, **_: [(context, ids) for _, context, ids in requests]  # type: ignore
    return model


PAIRS = [
    ("Question: who?\nAnswer:", " me"),
    ("a context that ends in spaces  ", "word"),
    ("", "no context at all"),
    ("<|bos|>begins with BOS", " then"),
    ("naïve “quotes” 日本", "語 🙂"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[0][:12]))
def test_requests_have_the_tokens_that_the_harnesss_own_model_gives_them(pair):
    request = instance("loglikelihood", *pair)
    (row,) = Collector(tokenizer(), None, 100).rows([request])
    ((context, continuation),) = hflm().loglikelihood([request], disable_tqdm=True)
    assert (row["context_token_ids"], row["continuation_token_ids"], row["num_cut"]) == (context, [continuation], 0)


@pytest.mark.parametrize("max_length", [7, 8, 9, 30])
def test_a_context_that_is_too_long_is_cut_on_the_left_as_the_harness_cuts_it(max_length):
    (row,) = Collector(tokenizer(), None, max_length).rows([instance("loglikelihood", "0123456789", "abcd")])
    whole = tokenizer().encode("0123456789abcd")
    read = whole[-(max_length + 1) :][:-1]  # HFLM._loglikelihood_tokens
    assert row["context_token_ids"] + row["continuation_token_ids"][0] == [*read, whole[-1]]
    assert row["num_cut"] == max(0, 14 - max_length - 1)


def test_a_written_continuation_keeps_room_for_its_tokens():
    (row,) = Collector(tokenizer(), None, 12).rows(
        [instance("generate_until", "0123456789", {"until": ["\n", ""], "max_gen_toks": 4})]
    )
    assert tokenizer().decode(row["context_token_ids"]) == "23456789"
    assert (row["num_cut"], row["until"], row["max_new_tokens"], row["num_samples"]) == (2, ["\n"], 4, 1)


def test_windows_of_a_text_predict_every_token_once():
    rows = Collector(tokenizer(), None, 4).rows([instance("loglikelihood_rolling", "0123456789")])
    predicted = [token for row in rows for token in row["continuation_token_ids"][0]]
    assert tokenizer().decode(predicted) == "0123456789"
    assert rows[0]["context_token_ids"] == [tokenizer().bos_token_id]
    assert max(len(row["context_token_ids"]) + len(row["continuation_token_ids"][0]) for row in rows) == 5


def test_answers_to_one_question_share_a_row_and_other_contexts_have_their_own():
    same = [instance("loglikelihood", "question:", f" {word}", number=n) for n, word in enumerate(("one", "two"))]
    other = [instance("loglikelihood", f"{word} is", " it", document=1, number=n) for n, word in enumerate(("a", "b"))]
    rows = Collector(tokenizer(), None, 100).rows([*same, *other])
    assert [(row["document"], row["request"], len(row["digests"])) for row in rows] == [(0, 0, 2), (1, 0, 1), (1, 1, 1)]


def test_requests_that_cannot_be_asked_are_all_named_at_once():
    with pytest.raises(DataError) as error:
        Collector(tokenizer(), None, 8).rows(
            [
                instance("loglikelihood", "a", "b" * 9),
                instance("generate_until", "a", {"until": [], "num_beams": 4, "max_gen_toks": 2}, document=1),
                instance("generate_until", "a", {"until": [], "max_gen_toks": 8}, document=2),
            ]
        )
    text = str(error.value)
    assert "document 0: a continuation of 9 tokens" in text
    assert "document 1: generation_kwargs ['num_beams']" in text
    assert "document 2: 8 tokens are to be written" in text


# Answers


def answered(requests: list[Instance], **columns: Any) -> Answered:
    """Every row of these requests, answered by the same columns."""
    return Answered([row | columns for row in Collector(tokenizer(), None, 300).rows(requests)])


def test_answers_go_to_the_requests_that_they_belong_to():
    requests = [instance("loglikelihood", "q", f" {word}", number=n) for n, word in enumerate(("one", "two"))]
    model = answered(requests, logps=[-1.0, -2.0], greedy=[True, False])
    assert model.loglikelihood(requests[::-1]) == [(-2.0, False), (-1.0, True)]


def test_a_text_ends_before_the_first_of_its_ends_and_repeats_take_the_samples_in_turn():
    request = instance("generate_until", "q", {"until": ["END", "\n"], "temperature": 1.0}, repeats=2)
    model = answered([request], texts=["one\ntwo END", "three END four"])
    assert model.generate_until([request, request]) == ["one", "three "]


def test_greedy_repeats_are_the_same_text():
    request = instance("generate_until", "q", {"until": []}, repeats=3)
    assert answered([request], texts=["x"]).generate_until([request] * 3) == ["x"] * 3


def test_a_request_whose_text_changed_since_it_was_committed_has_no_answer():
    model = answered([instance("loglikelihood", "q", " one")], logps=[-1.0], greedy=[True])
    with pytest.raises(DataError, match="document 0: no answer to this request is committed"):
        model.loglikelihood([instance("loglikelihood", "q", " another")])


def test_a_chat_is_rendered_by_the_template_and_found_again_by_its_messages():
    messages = [{"role": "user", "content": "Who?"}]
    collector = Collector(tokenizer(), None, 100)
    request = instance("loglikelihood", collector.apply_chat_template(messages), " me")
    (row,) = collector.rows([request])
    assert tokenizer().decode(row["context_token_ids"]) == "<|bos|><|user|>Who?<|eos|><|assistant|>"
    model = Answered([row | {"logps": [-1.0], "greedy": [True]}])
    assert model.loglikelihood([instance("loglikelihood", model.apply_chat_template(messages), " me")]) == [
        (-1.0, True)
    ]


def test_the_digest_of_a_request_depends_on_every_text_of_it():
    assert len({digest(["a", "b"]), digest(["ab", ""]), digest(["a", "c"]), digest(["a", {"until": []}])}) == 4


# A run


def test_every_version_is_measured_by_the_harnesss_own_metrics(tmp_path):
    folder = play(run_config(tmp_path), engines=TokenizingEngines())
    for version in (0, 1):
        found = numbers(folder, version)
        assert set(found) == {
            "word_choice/acc", "word_choice/acc_norm", "word_writing/exact_match", "word_text/bits_per_byte",
        }  # fmt: skip
    # Of an untrained fake every token costs three bits, and no BOS is predicted. Its first letter is the likeliest.
    start = numbers(folder, 0)
    assert start["word_text/bits_per_byte"] == pytest.approx(3.0, abs=1e-9)
    assert start["word_choice/acc"] == 1.0  # the shortest choice
    assert start["word_writing/exact_match"] == 0.5  # "aaa" is the target of one document of two
    (files,) = RunReader(folder).tables(0, "lm_eval_files", BENCHMARK_FILES)
    results = json.loads(dict(zip(*files.to_pydict().values(), strict=True))["results.json"])
    benchmark = Harness(harness_config(tmp_path), 2)
    stated = benchmark.provenance(BenchmarkTables(RunReader(folder), benchmark, 0))
    assert (stated["lm_eval"], stated["max_length"], len(stated["requests"])) == ("0.4.13", "4000", 16)
    assert results["n-samples"]["word_choice"] == {"original": 2, "effective": 2}
    assert results["results"]["word_choice"]["acc,none"] == 1.0


def test_the_harnesss_file_is_the_same_in_every_process(tmp_path, monkeypatch):
    found = {"configs": {"task": {"process_docs": "<function process_docs at 0x7f1a2dc662a0>"}}}
    monkeypatch.setattr(Harness, "_evaluate", lambda self, tables: found)
    (text,) = Harness(harness_config(tmp_path), 4).kept_files(None).values()  # type: ignore[arg-type]
    assert json.loads(text)["configs"]["task"]["process_docs"] == "<function process_docs>"


@pytest.mark.parametrize("k", [25, 60, 110])
def test_a_run_that_was_killed_measures_the_same(tmp_path, k):
    config = run_config(tmp_path)
    whole = play(config.model_copy(update={"name": "whole"}), engines=TokenizingEngines())
    with pytest.raises(Killed):
        play(config, DyingDisk(k), TokenizingEngines())
    resumed = play(config, engines=TokenizingEngines())
    assert inspection.run_digest(resumed) == inspection.run_digest(whole)


# Tasks and their data


def loaded(config: HarnessConfig) -> Any:
    with harness_process():
        return load_tasks(config)


def words(folder: Path, name: str = "words.jsonl", count: int = 6) -> str:
    path = folder / name
    rows = [{**WORDS[0], "question": f"{name} {n}", "subject": ("a", "b")[n % 2]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_take_the_place_of_a_tasks_data_and_its_examples_are_never_the_question(tmp_path):
    path = write_tasks(tmp_path)["word_choice"]
    config = HarnessConfig(tasks=[path], num_fewshot=3, data={path: words(tmp_path, "mine.jsonl")})
    task = loaded(config).tasks["word_choice"]
    task.build_all_requests(rank=0, world_size=1)
    contexts = {request.doc_id: request.args[0] for request in task.instances}
    assert len(contexts) == 6
    for number, context in contexts.items():
        assert context.count(f"mine.jsonl {number}\n") == 1
        assert context.count("mine.jsonl") == 4


def test_a_missing_split_is_replaced_and_the_table_says_so(tmp_path):
    path = write_tasks(tmp_path)["word_choice"]
    entry = {"task": path, "fewshot_split": "train", "num_fewshot": 1}
    files = {"test": words(tmp_path, "t.jsonl"), "validation": words(tmp_path, "v.jsonl")}
    found = loaded(HarnessConfig(tasks=[entry], data={path: files}))
    assert found.notes == {path: "few-shot examples from validation, as there is no file for train"}
    with pytest.raises(DataError, match="no file for the split test, which is evaluated; there are other"):
        loaded(HarnessConfig(tasks=[entry], data={path: {"other": files["test"]}}))


def test_unknown_tasks_and_missing_files_are_named_together(tmp_path):
    path = write_tasks(tmp_path)["word_choice"]
    with pytest.raises(DataError) as error:
        loaded(HarnessConfig(tasks=[path, "no_such.yaml"], include_path=str(tmp_path), data={path: "nowhere.parquet"}))
    assert "nowhere.parquet: no such file" in str(error.value)
    assert "no_such.yaml: no task, group or file of lm_eval has this name" in str(error.value)


def test_a_file_without_the_columns_of_the_task_is_named(tmp_path):
    path, other = write_tasks(tmp_path)["word_choice"], tmp_path / "other.jsonl"
    other.write_text(json.dumps({"query": "?"}) + "\n")
    with pytest.raises(
        DataError, match=r"word_choice\.yaml: UndefinedError: 'question' is undefined; do the files have the columns"
    ):
        loaded(HarnessConfig(tasks=[path], data={path: str(other)}))


def test_data_that_is_gone_after_it_was_answered_is_named(tmp_path):
    found = loaded(harness_config(tmp_path, "word_choice"))
    with pytest.raises(DataError, match="the answers to word_text are committed, but its data cannot be read any more"):
        found.keep({"word_choice", "word_text"})


def test_a_task_that_is_named_twice_is_refused(tmp_path):
    path = write_tasks(tmp_path)["word_choice"]
    with pytest.raises(DataError, match="word_choice is named twice"):
        loaded(HarnessConfig(tasks=[path, {"task": path, "num_fewshot": 1}]))


def test_answers_in_files_are_not_measured_by_likelihoods(tmp_path):
    class WithoutTokenizer:
        pass

    with pytest.raises(DataError, match="asks the policy itself"):
        Harness(harness_config(tmp_path), 4).inputs(WithoutTokenizer())  # type: ignore[arg-type]


def test_a_shard_holds_so_many_contexts(tmp_path):
    shards = Harness(harness_config(tmp_path), 4).inputs(Tokenizing())
    assert [shard.num_rows for shard in shards] == [4, 2]


# The table


def evaluated(**values: float) -> dict[str, Any]:
    """What the harness returns for tasks with an accuracy each."""
    return {
        "results": {name: {"alias": name, "acc,none": value, "acc_stderr,none": 0.1} for name, value in values.items()},
        "n-samples": {name: {"original": 9, "effective": 4} for name in values},
        "n-shot": dict.fromkeys(values, 5),
        "group_subtasks": {},
        "entries": {name: [name] for name in values},
        "missing": {},
        "notes": {},
    }


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> HarnessConfig:
    lines = (Entry("one", headline="acc"), Entry("two", headline="acc"))
    monkeypatch.setattr("engine.benchmarks.harness.results.PRESETS", {"open_llm_leaderboard": lines})
    return HarnessConfig(preset="open_llm_leaderboard")


def test_a_published_table_ends_with_the_mean_of_its_lines(preset):
    results = table(preset, evaluated(one=0.5, two=0.75, other=0.1), {"one": 3})
    assert [(r.metric, r.value) for r in results] == [
        ("one/acc", 0.5), ("two/acc", 0.75), ("average", 0.625), ("other/acc", 0.1),
    ]  # fmt: skip
    assert results[0].stderr == 0.1
    assert results[0].num == 4
    assert results[0].note == "5-shot; 3 contexts were cut on the left"


def test_a_trial_on_the_first_documents_says_so(preset):
    trial = preset.model_copy(update={"limit": 4})
    assert table(trial, evaluated(one=0.5, two=0.75), {})[0].note == "5-shot; the first 4 documents of each task"


def test_a_line_without_data_says_so_and_there_is_no_average(preset):
    found = evaluated(one=0.5) | {"missing": {"two": "ConnectionError: no hub"}}
    one, two, average = table(preset, found, {})
    assert (one.value, math.isnan(two.value), math.isnan(average.value)) == (0.5, True, True)
    assert two.note == "not measured: no data (ConnectionError: no hub)"
    assert average.note == "not computed: no data for two; the mean of the other 1 is 0.5000"


def test_a_group_counts_the_documents_of_its_tasks(preset):
    found = evaluated(one=0.5, two=0.5)
    found["results"]["group"] = {"acc,none": 0.5, "acc_stderr,none": "N/A"}
    found["group_subtasks"] = {"group": ["inner"], "inner": ["one", "two"]}
    group = next(r for r in table(preset, found, {}) if r.metric == "group/acc")
    assert (group.num, math.isnan(group.stderr)) == (8, True)


def test_a_config_without_tasks_or_with_a_nameless_one_is_refused():
    with pytest.raises(ValueError, match="name at least one task"):
        HarnessConfig()
    with pytest.raises(ValueError, match="does not say which"):
        HarnessConfig(tasks=[{"num_fewshot": 1}])
