"""Answers side by side: the same instructions for every policy, in tables that no answer can turn into markup."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.fakes import FakeEngines
from cluster.evaluation.candidates import read_sources
from cluster.evaluation.evaluation import Evaluation
from cluster.evaluation.results import write_results
from engine.benchmarks import benchmarks
from engine.benchmarks.base import BenchmarkTables
from engine.benchmarks.side_by_side.benchmark import side_by_side
from engine.benchmarks.side_by_side.comparison import Answer, compare, to_csv, to_frame, to_html, to_markdown
from engine.config.evaluate import EvaluateConfig
from engine.config.run import RunConfig
from engine.errors import DataError
from engine.schema import BENCHMARK_RESULTS
from engine.store.reader import RunReader
from tests.engine.benchmarks.alpaca_world import INSTRUCTIONS, RULE, write_json
from tests.runs import PROMPTS, fake_config, play

HOSTILE = '</pre><script>alert("x")</script>\n```\n# heading\x1b[31m'


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    path = write_json(folder / "novel.json", INSTRUCTIONS)
    return {"prompts": path, "limit": 5, "max_new_tokens": 5, "max_prompt_tokens": 60} | changes


def config(folder: Path, **changes: Any) -> RunConfig:
    evaluation = {"prompts": PROMPTS, "scorer": RULE, "benchmarks": {"side_by_side": section(folder, **changes)}}
    return fake_config(folder, iterations=1, evaluation=evaluation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, memory_is_durable_enough: None) -> Path:
    return play(config(tmp_path_factory.mktemp("run")))


def tables(folder: Path, version: int) -> BenchmarkTables:
    (benchmark,) = benchmarks(config(folder.parent))
    return BenchmarkTables(RunReader(folder), benchmark, version)


def test_every_version_stands_beside_the_others_with_lengths_and_scores(folder: Path) -> None:
    comparisons = side_by_side({"start": tables(folder, 0), "trained": tables(folder, 1)})
    assert [c.instruction for c in comparisons] == [item["instruction"] for item in INSTRUCTIONS[:5]]
    for item, one in zip(INSTRUCTIONS, comparisons, strict=False):
        assert list(one.answers) == ["start", "trained"]
        assert one.seen == "no"
        for answer in one.answers.values():
            difference = answer.text.count("a") - item["output"].count("a")
            assert answer.score == pytest.approx(1 / (1 + math.exp(-difference)))
    results = {
        row["metric"]: row
        for table in RunReader(folder).tables(1, "side_by_side_results", BENCHMARK_RESULTS)
        for row in table.to_pylist()
    }
    assert results["score"]["num"] == 5
    assert results["trained_on"]["value"] == 0
    assert results["truncated"]["value"] == sum(c.answers["trained"].is_truncated for c in comparisons)


def test_kumite_eval_writes_all_policies_into_the_same_files(folder: Path, tmp_path: Path) -> None:
    answers = [{"instruction": i["instruction"], "output": "aaaa", "generator": "m"} for i in INSTRUCTIONS]
    done = []
    for source in read_sources([str(folder), write_json(tmp_path / "sharp.json", answers)], tmp_path):
        values = {"name": "eval", "output": str(tmp_path), "cluster": {"backend": "local"}} | source.config
        evaluation = {"scorer": RULE, "benchmarks": {"side_by_side": section(tmp_path)}}
        settings = EvaluateConfig.model_validate(values | {"output": str(tmp_path), "evaluation": evaluation})
        with Evaluation(source, settings, Console(quiet=True), FakeEngines()) as one:
            assert one.run() == []
        done.append(one)
    write_results(tmp_path / "out", done, Console(quiet=True))
    text = (tmp_path / "out/files/side_by_side/side_by_side.csv").read_text()
    names = list(csv.DictReader(io.StringIO(text)).fieldnames or [])
    assert [name for name in names if name.endswith("/answer")] == ["run-0/answer", "run-1/answer", "sharp/answer"]
    assert {row["sharp/answer"] for row in csv.DictReader(io.StringIO(text))} == {"aaaa"}


def test_without_a_scorer_the_answers_stand_alone(tmp_path: Path) -> None:
    values = {"name": "eval", "output": str(tmp_path), "model": {"path": "fake"}}
    settings = EvaluateConfig.model_validate(
        values | {"evaluation": {"benchmarks": {"side_by_side": section(tmp_path)}}}
    )
    (benchmark,) = benchmarks(settings)
    assert len(benchmark.stages(None, None)) == 1  # type: ignore[arg-type]


def compared(*texts: str) -> list[Any]:
    answers = {f"policy {n}": {"p": Answer(text, n == 1, 0.5 if n else math.nan)} for n, text in enumerate(texts)}
    return compare({"p": "Why?"}, answers, {"p": "exact"})


def test_a_frame_has_one_row_per_instruction_and_four_columns_per_policy() -> None:
    frame = to_frame(compared("short", "longer one"))
    assert frame.columns.tolist() == ["prompt_id", "instruction", "seen"] + [
        f"policy {n}/{name}" for n in (0, 1) for name in ("answer", "characters", "truncated", "score")
    ]
    row = frame.iloc[0]
    assert (row["policy 0/characters"], row["policy 1/characters"]) == (5, 10)
    assert math.isnan(row["policy 0/score"]) and row["policy 1/score"] == 0.5
    assert row["seen"] == "exact"


def test_no_answer_becomes_markup() -> None:
    page = to_html(compared(HOSTILE))
    assert "<script" not in page
    assert "&lt;script&gt;" in page and "\x1b" not in page
    assert "default-src 'none'" in page
    text = to_markdown(compared(HOSTILE))
    inside = text[text.index("````text") :]
    assert inside.count("````") == 2, "the fence is longer than the one in the answer"
    assert "\x1b" not in text


@pytest.mark.parametrize("text", ["=1+1", "@x", "-1", "+1"])
def test_no_answer_is_a_formula_in_a_spreadsheet(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv(compared(text))))
    assert row["policy 0/answer"] == f"'{text}"
    assert row["policy 0/score"] == ""


def test_policies_that_answered_other_instructions_are_refused() -> None:
    answers = {"one": {"p": Answer("a", False)}, "two": {"q": Answer("a", False)}}
    with pytest.raises(DataError, match="of 2 instructions one lacks 1, two lacks 1"):
        compare({"p": "P", "q": "Q"}, answers)
