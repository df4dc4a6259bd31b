"""MT-Bench over a small world: what the policy and the judge are asked, what is counted, and FastChat's files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from actors.fakes import FakeChat
from actors.tiny_policy import make_tiny_policy
from cluster.evaluation.candidates import read_sources
from cluster.evaluation.evaluation import Evaluation
from cluster.evaluation.results import write_results
from engine.benchmarks import benchmarks
from engine.benchmarks.base import BenchmarkTables
from engine.benchmarks.mt_bench.benchmark import MTBench
from engine.benchmarks.mt_bench.stages import ANSWERS, JUDGMENTS, PLAIN_SYSTEM
from engine.config.benchmarks import MTBenchConfig
from engine.config.evaluate import EvaluateConfig
from engine.config.run import RunConfig
from engine.data.chats import Message
from engine.errors import DataError, ModelError
from engine.schema import BENCHMARK_RESULTS, MT_BENCH_ANSWERS, MT_BENCH_JUDGMENTS
from engine.store.inspection import run_digest
from engine.store.reader import Policy
from engine.store.run import RunStore
from tests.engine.benchmarks.mt_bench_world import (
    BASELINE,
    JUDGE,
    JudgedEngines,
    section,
    write_jsonl,
)
from tests.runs import PROMPTS, DyingDisk, Killed, fake_config, play

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def judged_config(folder: Path, annotator: Any = JUDGE, files: Path | None = None, **changes: Any) -> RunConfig:
    values = {"annotator": annotator, "benchmarks": {"mt_bench": section(files or folder, **changes)}}
    rule = {"kind": "rule", "function": "actors.fakes:utility"}
    return fake_config(folder, iterations=1, evaluation={"prompts": PROMPTS, "scorer": rule} | values)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return judged_config(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def run(config: RunConfig, memory_is_durable_enough: None) -> Path:
    return play(config, engines=JudgedEngines())


def rows(folder: Path, version: int, stage: str, schema: Any) -> list[dict[str, Any]]:
    with RunStore(folder) as store:
        return [row for table in store.tables(version, stage, schema) for row in table.to_pylist()]


def results(folder: Path, version: int) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in rows(folder, version, "mt_bench_results", BENCHMARK_RESULTS)}


def test_the_second_turn_is_asked_after_the_policys_own_first_answer(run: Path) -> None:
    answers = rows(run, 1, ANSWERS, MT_BENCH_ANSWERS)
    assert [row["question_id"] for row in answers] == [81, 82, 111, 7]
    for row in answers:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant", "user"][: 2 * len(row["turns"]) - 1]
        assert len(row["answers"]) == len(row["answer_ends"]) == len(row["turns"])
        if len(row["turns"]) == 2:
            assert row["messages"][1]["content"] == row["answers"][0]
            assert row["prompt_text"] == row["turns"][1], "what the fake template renders of the conversation"


def test_answers_are_kept_without_white_space_around_them_as_in_fastchat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.fakes.LETTERS", ["a", " ", "c", "d", "e", "f", " ", "\n"])
    folder = play(judged_config(tmp_path), engines=JudgedEngines())
    answers = [text for row in rows(folder, 0, ANSWERS, MT_BENCH_ANSWERS) for text in row["answers"]]
    assert answers == [text.strip() for text in answers]
    assert any(" " in text or "\n" in text for text in answers), "white space within stays"


def test_every_version_answers_with_the_same_seeds_at_the_temperature_of_the_category(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    from actors.fakes import FakeGenerator

    answer = FakeGenerator.generate

    def generate(self: FakeGenerator, prompts: Any, iteration: int, **how: Any) -> Any:
        if how.get("purpose", "").startswith("mt_bench"):
            asked.append((iteration, how["purpose"], how["temperature"], how["num_samples"], how["max_new_tokens"]))
        return answer(self, prompts, iteration, **how)

    monkeypatch.setattr(FakeGenerator, "generate", generate)
    play(judged_config(tmp_path), engines=JudgedEngines())
    turns = [(0, "mt_bench turn 1", t, 1, 4) for t in (0.7, 0.0, 0.7)] + [
        (0, "mt_bench turn 2", t, 1, 4) for t in (0.7, 0.0)
    ]
    assert sorted(asked) == sorted(turns * 2), "writing, math and a category that FastChat does not know; two versions"


def test_ratings_are_means_over_what_can_be_read_and_the_rest_is_counted(run: Path) -> None:
    judgments = rows(run, 1, JUDGMENTS, MT_BENCH_JUDGMENTS)
    assert len(judgments) == 7, "two turns of three questions, and one of a question of one turn"
    answers = {row["question_id"]: row["answers"] for row in rows(run, 1, ANSWERS, MT_BENCH_ANSWERS)}
    expected = {}
    for judgment in judgments:
        answer = answers[judgment["question_id"]][judgment["turn"] - 1]
        rating = 1.0 + answer.count("a") if answer else math.nan
        assert judgment["rating"] == rating or (math.isnan(rating) and math.isnan(judgment["rating"]))
        expected[judgment["question_id"], judgment["turn"]] = rating
    readable = [rating for rating in expected.values() if not math.isnan(rating)]
    found = results(run, 1)
    assert found["score"]["value"] == pytest.approx(sum(readable) / len(readable))
    assert found["score"]["num"] == len(readable)
    assert found["unreadable"]["value"] == 7 - len(readable)
    assert found["unreadable"]["num"] == 7
    first = [r for (_, turn), r in expected.items() if turn == 1 and not math.isnan(r)]
    assert found["turn_1"]["value"] == pytest.approx(sum(first) / len(first))
    math_ratings = [r for (question, _), r in expected.items() if question == 111 and not math.isnan(r)]
    assert math.isnan(found["category/math"]["value"]) == (not math_ratings)
    assert found["score"]["low"] <= found["score"]["value"] <= found["score"]["high"]
    assert set(found) >= {"turn_2", "category/writing", "category/generic", "answer_length", "truncated_answers"}


def test_the_judge_sees_references_where_the_benchmark_has_them(run: Path) -> None:
    for judgment in rows(run, 0, JUDGMENTS, MT_BENCH_JUDGMENTS):
        name, text = judgment["prompt"], judgment["user_prompt"]
        if judgment["category"] == "math":
            assert name == ("single-math-v1" if judgment["turn"] == 1 else "single-math-v1-multi-turn")
            assert "4." in text and ("8." in text) == (judgment["turn"] == 2)
        else:
            assert name.startswith("single-v1") and "Reference" not in text
    assert "Write {something}." in rows(run, 0, JUDGMENTS, MT_BENCH_JUDGMENTS)[0]["user_prompt"], "braces are text"


def test_the_files_have_fastchats_form(run: Path, config: RunConfig) -> None:
    (benchmark,) = benchmarks(config)
    with RunStore(run) as store:
        files = benchmark.files(BenchmarkTables(store, benchmark, 1), "org/my model")
    assert set(files) == {
        "model_answer/org-my-model.jsonl",
        "model_judgment/fake-letters_single.jsonl",
    }
    answers = [json.loads(line) for line in files["model_answer/org-my-model.jsonl"].splitlines()]
    assert [answer["question_id"] for answer in answers] == [81, 82, 111, 7]
    assert answers[0]["model_id"] == "org/my model" and len(answers[0]["choices"][0]["turns"]) == 2
    judgments = [json.loads(line) for line in files["model_judgment/fake-letters_single.jsonl"].splitlines()]
    stored = rows(run, 1, JUDGMENTS, MT_BENCH_JUDGMENTS)
    assert [row["score"] for row in judgments] == [-1 if math.isnan(r["rating"]) else r["rating"] for r in stored]
    assert judgments[0]["judge"] == ["fake:letters", "single-v1"]


def test_answers_in_fastchats_form_come_back_as_they_were_written(run: Path, config: RunConfig, tmp_path: Path) -> None:
    (benchmark,) = benchmarks(config)
    with RunStore(run) as store:
        tables = BenchmarkTables(store, benchmark, 1)
        text = benchmark.files(tables, "m")["model_answer/m.jsonl"]
        (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
        read = benchmark.answers(tmp_path / "m.jsonl", list(tables.input()), Policy(0, tmp_path, "d" * 64, []))
    answers = [row["answers"] for table in read[ANSWERS] for row in table.to_pylist()]
    assert answers == [row["answers"] for row in rows(run, 1, ANSWERS, MT_BENCH_ANSWERS)]


def test_pairwise_needs_both_orders_to_agree(tmp_path: Path) -> None:
    config = judged_config(tmp_path, mode="pairwise")
    folder = play(config, engines=JudgedEngines())
    judgments = rows(folder, 1, JUDGMENTS, MT_BENCH_JUDGMENTS)
    answers = {row["question_id"]: row["answers"] for row in rows(folder, 1, ANSWERS, MT_BENCH_ANSWERS)}
    assert len(judgments) == 14
    wins = []
    for judgment in judgments:
        count = answers[judgment["question_id"]][judgment["turn"] - 1].count("a")
        assert judgment["winner"] == ("model_1" if count > 2 else "model_2" if count < 2 else "tie")
        wins.append({"model_1": 1.0, "model_2": 0.0, "tie": 0.5}[judgment["winner"]])
    found = results(folder, 1)
    assert found["win_rate_adjusted"]["value"] == pytest.approx(sum(wins) / 14)
    assert found["consistency"]["value"] == 1.0
    (benchmark,) = benchmarks(config)
    with RunStore(folder) as store:
        files = benchmark.files(BenchmarkTables(store, benchmark, 1), "mine")
    first = json.loads(files["model_judgment/fake-letters_pair.jsonl"].splitlines()[0])
    assert (first["model_1"], first["model_2"], first["judge"]) == ("mine", "twice_a", ["fake:letters", "pair-v2"])
    assert first["g1_winner"] == first["g2_winner"]


class LongMemory(FakeChat):
    """Renders the whole conversation, and refuses the answer of one question."""

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        if messages[0]["content"] == "Write more." and len(messages) > 1:
            raise ModelError("the text itself turns into control tokens")
        text = "\n".join(message["content"] for message in messages)
        return text, list(text.encode())


def test_a_second_turn_without_room_or_that_the_template_refuses_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JudgedEngines, "chat", lambda self, model: LongMemory())
    config = judged_config(tmp_path, max_prompt_tokens=30)
    folder = play(config, engines=JudgedEngines())
    found = results(folder, 0)
    answers = {row["question_id"]: row["answers"] for row in rows(folder, 0, ANSWERS, MT_BENCH_ANSWERS)}
    assert {number: len(said) for number, said in answers.items()} == {81: 1, 82: 1, 111: 2, 7: 1}
    assert (found["unasked_turns"]["value"], found["unasked_turns"]["num"]) == (2, 7)
    with RunStore(folder) as store:
        assert store.counts(0, ANSWERS)["second_turns_not_asked"] == 2
        (benchmark,) = benchmarks(config)
        text = benchmark.files(BenchmarkTables(store, benchmark, 0), "m")["model_answer/m.jsonl"]
    assert json.loads(text.splitlines()[0])["choices"][0]["turns"] == [answers[81][0], "ERROR"]


def test_a_run_that_dies_within_the_benchmark_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole = play(judged_config(tmp_path / "whole", files=tmp_path), engines=JudgedEngines())
    config, deaths = judged_config(tmp_path / "killed", files=tmp_path), 0
    for k in (75, 110):
        try:
            folder = play(config, DyingDisk(k), JudgedEngines())
        except Killed:
            deaths += 1
    folder = play(config, engines=JudgedEngines())
    assert deaths > 0
    assert run_digest(folder) == run_digest(whole)


@pytest.mark.parametrize("annotator", [None, {"kind": "rule", "function": "actors.fakes:utility"}])
def test_an_annotator_that_cannot_be_asked_is_refused(tmp_path: Path, annotator: Any) -> None:
    with pytest.raises(ValidationError, match=r"mt_bench asks an LLM judge, and evaluation.annotator.kind = rule"):
        judged_config(tmp_path, annotator)


def test_ratings_of_other_models_do_not_go_with_comparisons() -> None:
    with pytest.raises(ValidationError, match="published: without effect in mode = pairwise"):
        MTBenchConfig(questions="q.jsonl", mode="pairwise", baseline="b.jsonl", published="p.jsonl")


@pytest.mark.parametrize("changes", [{"mode": "single", "baseline": "x.jsonl"}, {"mode": "pairwise"}])
def test_pairwise_has_a_baseline_and_single_has_none(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="pairwise needs a baseline, single none"):
        MTBenchConfig(questions="q.jsonl", **changes)


def test_everything_that_is_wrong_with_the_files_is_named_at_once(tmp_path: Path) -> None:
    files = section(tmp_path, mode="pairwise", max_prompt_tokens=15)
    files["references"] = None
    files["baseline"] = write_jsonl(tmp_path / "b.jsonl", BASELINE[:3])
    with pytest.raises(DataError) as error:
        MTBench(MTBenchConfig(**files), "annotator", 0).inputs(FakeChat())
    words = str(error.value)
    assert "question 81 (writing): 18 tokens; evaluation.benchmarks.mt_bench.max_prompt_tokens is 15" in words
    assert "question 111 (math): 0 of 2 turns in evaluation.benchmarks.mt_bench.references" in words
    assert "question 7 (generic): 0 of 1 turns in evaluation.benchmarks.mt_bench.baseline" in words


def test_a_few_questions_of_each_category_are_enough_for_a_trial(tmp_path: Path) -> None:
    config = MTBenchConfig(**section(tmp_path, questions_per_category=1))
    tables = MTBench(config, "annotator", 0).inputs(FakeChat())
    assert [table["question_id"].to_pylist() for table in tables] == [[81], [111], [7]]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    benchmark = MTBench(MTBenchConfig(**section(tmp_path)), "annotator", 0)
    other = Path(write_jsonl(tmp_path / "other.jsonl", BASELINE[:2]))
    with pytest.raises(DataError, match=r"lacks answers to 2 of 4 questions: \[111, 7\]"):
        benchmark.answers(other, benchmark.inputs(FakeChat()), Policy(0, other, "d" * 64, []))


def test_kumite_eval_judges_answers_from_a_file_and_draws_them_beside_published_ratings(tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "twice_a.jsonl", BASELINE)
    published = write_jsonl(
        tmp_path / "gpt-4_single.jsonl",
        [
            {"question_id": n, "model": "known-1", "judge": ["gpt-4", "single-v1"], "score": 9, "turn": 1}
            for n in (81, 111, 7)
        ],
    )
    (source,) = read_sources([answers], tmp_path)
    values = {"annotator": JUDGE, "benchmarks": {"mt_bench": section(tmp_path, published=published)}}
    config = EvaluateConfig.model_validate(
        {**source.config, "output": str(tmp_path), "cluster": {"backend": "local"}, "evaluation": values}
    )
    with Evaluation(source, config, Console(quiet=True), JudgedEngines()) as evaluation:
        assert evaluation.run() == []
        write_results(tmp_path / "out", [evaluation], Console(quiet=True))
    found = {row["metric"]: row["value"] for row in json.loads((tmp_path / "out/results.json").read_text())["results"]}
    assert found["score"] == 3.0, "every answer is aa"
    radar = (tmp_path / "out/files/mt_bench/radar.svg").read_text(encoding="utf-8")
    assert ">twice_a<" in radar and ">known-1<" in radar
    files = tmp_path / "out/files/mt_bench/twice_a"
    assert (
        json.loads((files / "model_answer/twice_a.jsonl").read_text().splitlines()[0])["choices"][0]["turns"]
        == ["aa"] * 2
    )


def test_models_without_a_system_role_get_the_instructions_before_the_question(tmp_path: Path) -> None:
    config = judged_config(tmp_path, judge_system="user")
    (benchmark,) = benchmarks(config)
    folder = play(config, engines=JudgedEngines())
    stage = benchmark.stages(None, FakeChat())[-1]  # type: ignore[arg-type]
    with RunStore(folder) as store:
        table = next(store.tables(0, ANSWERS, MT_BENCH_ANSWERS))
    first, second = [stage._question(game)["messages"] for game in stage._games(table)][:2]  # type: ignore[attr-defined]
    assert [message["role"] for message in (*first, *second)] == ["user", "user"]
    assert first[0]["content"].startswith("[Instruction]\nPlease act as an impartial judge"), "of the prompt itself"
    assert second[0]["content"].startswith("[Instruction]\nPlease act as an impartial judge")
    assert PLAIN_SYSTEM not in first[0]["content"]


def test_provenance_names_what_the_numbers_depend_on(run: Path, config: RunConfig) -> None:
    (benchmark,) = benchmarks(config)
    with RunStore(run) as store:
        facts = benchmark.provenance(BenchmarkTables(store, benchmark, 1))
    assert facts["judge"] == "fake:letters"
    assert facts["questions"].startswith("4 of question.jsonl, sha256 ")
    assert set(facts) == {"questions", "judge", "judging", "judge prompts", "sampling", "seeds"}


@pytest.mark.real
def test_a_real_policy_is_judged_by_a_real_judge_whose_nonsense_is_counted(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy", 1)
    judge = make_tiny_policy(tmp_path / "judge", 2, spread=0.02, max_positions=8192)
    server = {"kind": "vllm", "path": str(judge), "dtype": "float32", "kv_cache_gib": 0.25}
    values = {
        "name": "judged",
        "output": str(tmp_path),
        "sampling": {"max_prompt_tokens": 32, "max_new_tokens": 8},
        "generator": {"kv_cache_gib": 0.25},
        "evaluation": {
            "annotator": {**JUDGE, "server": server, "max_prompt_tokens": 6000},
            "benchmarks": {
                "mt_bench": section(tmp_path, max_new_tokens=16, max_prompt_tokens=400, judge_max_new_tokens=40)
            },
        },
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(values), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "cluster.commands.cli",
        "eval",
        str(policy),
        "--config",
        str(tmp_path / "mine.yaml"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "judged/policy"
    answers = rows(folder, 0, ANSWERS, MT_BENCH_ANSWERS)
    assert [len(row["answers"]) for row in answers] == [2, 2, 2, 1], "second turns are longer than sampling allows"
    judgments = rows(folder, 0, JUDGMENTS, MT_BENCH_JUDGMENTS)
    unreadable = sum(math.isnan(row["rating"]) for row in judgments)
    assert len(judgments) == 7 and all(row["judgment"] for row in judgments)
    assert 0 < unreadable == results(folder, 0)["unreadable"]["value"]
    assert f"{unreadable} of 7 without a readable judgment are left out" in " ".join(done.stdout.split())
    assert judgments[0]["judge"].startswith("vllm:")
