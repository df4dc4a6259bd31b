"""IFEval: instructions that a program checks, by the harness's checkers, on any prompts of google's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeChat, FakeEngines
from cluster.run.job import Job
from engine.benchmarks.base import BenchmarkTables
from engine.benchmarks.ifeval.benchmark import IFEval
from engine.benchmarks.ifeval.checks import Task, followed, read_tasks
from engine.config.benchmarks import IFEvalConfig
from engine.errors import DataError
from engine.schema import BENCHMARK_RESULTS, IFEVAL_ANSWERS
from engine.store.reader import Policy, RunReader
from tests.runs import fake_config

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

ROWS = [
    {
        "key": 1000,
        "prompt": "Describe rain in less than 3 sentences. Use no commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
        "kwargs": [{}, {"relation": "less than", "num_sentences": 3}],
    },
    {
        "key": 1001,
        "prompt": "Say it in small letters.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "less than", "num_words": 3, "prompt_to_repeat": None}],
    },
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("ifeval") / "input_data.jsonl", ROWS)


@pytest.mark.parametrize(
    ("answer", "strict", "loose"),
    [
        ("Rain falls. It is wet.", [True, True], [True, True]),
        ("Rain falls, softly. It is wet. Dr. No said so.", [False, False], [False, False]),
        ("Sure, here it is:\nRain falls. It is wet.", [False, True], [True, True]),
        ("Mr. Smith met Dr. Jones at 5 p.m. in Washington.", [True, True], [True, True]),
        ("", [False, False], [False, False]),
    ],
)
def test_an_answer_follows_instructions_strictly_or_in_a_variant(source, answer, strict, loose):
    """Sentences are counted by Punkt's model, which knows that "Mr." does not end one."""
    assert followed(read_tasks(source)[0], answer) == {"strict": strict, "loose": loose}


def test_punkt_has_the_parameters_that_nltk_distributes(source):
    import nltk

    read_tasks(source)  # puts the model in place
    parameters = nltk.tokenize.punkt.PunktTokenizer("english")._params
    counts = [len(getattr(parameters, name)) for name in ("abbrev_types", "sent_starters", "collocations")]
    assert counts == [156, 39, 37]
    assert len(parameters.ortho_context) == 20366


def test_the_language_of_the_same_text_is_always_the_same():
    task = Task("0", "x", ("language:response_language",), ({"language": "en"},))
    assert len({str(followed(task, "Text no")) for _ in range(8)}) == 1


def test_rows_that_cannot_be_checked_are_all_named(tmp_path):
    rows = [
        {**ROWS[0], "prompt": " "},
        {**ROWS[0], "instruction_id_list": []},
        {**ROWS[0], "kwargs": [{}]},
        {**ROWS[0], "instruction_id_list": ["no:such"], "kwargs": [{}]},
        {**ROWS[1], "kwargs": [{"relation": "nearly", "num_words": 3}]},
        ROWS[1],
        ROWS[1],
    ]
    with pytest.raises(DataError) as error:
        read_tasks(write(tmp_path / "bad.jsonl", rows))
    text = str(error.value)
    for part in ("`prompt`", "`instruction_id_list`", "expected 2 objects in `kwargs`", "'no:such' is unknown"):
        assert part in text
    assert "'length_constraints:number_words' does not take" in text
    assert "key 1001 occurs a second time" in text


# A run


def config(folder: Path, source: str, **benchmark: Any) -> Any:
    scorer = {"kind": "rule", "function": "actors.fakes:utility"}
    section = {"prompts": source, "max_new_tokens": 8, **benchmark}
    return fake_config(folder, evaluation={"scorer": scorer, "benchmarks": {"ifeval": section}}, iterations=1)


def test_a_run_measures_every_version_and_writes_googles_files(tmp_path, source):
    with Job(config(tmp_path, source), Console(quiet=True), engines=FakeEngines()) as job:
        job.play()
        job.report("finished")
    run = RunReader(tmp_path / "run")
    (results,) = run.tables(1, "ifeval_results", BENCHMARK_RESULTS)
    numbers = {row["metric"]: (row["value"], row["num"]) for row in results.to_pylist()}
    (answers,) = run.tables(1, "ifeval_answers", IFEVAL_ANSWERS)
    marks = answers["strict"].to_pylist()
    assert numbers["prompt_level_strict_acc"] == (sum(map(all, marks)) / 2, 2)
    assert numbers["inst_level_strict_acc"] == (pytest.approx(sum(map(sum, marks)) / 3), 3)
    assert set(numbers) == {f"{n}_level_{s}_acc" for n in ("prompt", "inst") for s in ("strict", "loose")}
    folder = tmp_path / "run/report/benchmarks/ifeval/run-1"
    lines = [json.loads(line) for line in (folder / "eval_results_strict.jsonl").read_text().splitlines()]
    assert [line["follow_instruction_list"] for line in lines] == marks
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in ROWS]


def test_what_the_numbers_rest_on_is_stated(tmp_path, source):
    config_ = config(tmp_path, source)
    with Job(config_, Console(quiet=True), engines=FakeEngines()) as job:
        job.play()
        benchmark = IFEval(config_.evaluation.benchmarks.ifeval, 2)
        stated = benchmark.provenance(BenchmarkTables(job.store, benchmark, 0))
    assert stated["prompts"].startswith("2 of input_data.jsonl, ")
    assert stated["sampling"] == "greedy, at most 8 tokens"
    assert stated["checkers"] == "lm_eval 0.4.13"


def test_a_prompt_without_room_is_an_error_before_anything_runs(tmp_path, source):
    with (
        Job(config(tmp_path, source, max_prompt_tokens=30), Console(quiet=True), engines=FakeEngines()) as job,
        pytest.raises(DataError, match=r"key 1000: 54 tokens; evaluation\.benchmarks\.ifeval\.max_prompt_tokens is 30"),
    ):
        job.play()


# Answers in files


def answered(folder: Path, source: str, rows: list[dict[str, Any]]) -> list[list[bool]]:
    """Which instructions the answers in a file follow."""
    benchmark = IFEval(IFEvalConfig(prompts=source), 8)
    inputs = benchmark.inputs(FakeChat())
    (table,) = benchmark.answers(Path(write(folder / "a.jsonl", rows)), inputs, Policy(0, folder, "d", []))[
        "ifeval_answers"
    ]
    return table.cast(IFEVAL_ANSWERS)["strict"].to_pylist()


def test_answers_in_googles_form_are_checked_without_a_policy(tmp_path, source):
    rows = [{"prompt": row["prompt"], "response": "Rain, falls."} for row in reversed(ROWS)]
    assert answered(tmp_path, source, rows) == [[False, True], [True]]


def test_a_file_that_lacks_answers_is_refused(tmp_path, source):
    with pytest.raises(DataError, match="lacks answers to 1 of 2 prompts, first 'Say it in small"):
        answered(tmp_path, source, [{"prompt": ROWS[0]["prompt"], "response": ""}])
