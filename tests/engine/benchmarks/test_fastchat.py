"""FastChat's files and rules, by hand and, where the package is installed, against its own code."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.benchmarks.files import file_name, jsonl
from engine.benchmarks.mt_bench import fastchat
from engine.benchmarks.mt_bench.results import outcome, pair_results, single_results
from engine.benchmarks.mt_bench.stages import Game
from engine.errors import DataError
from tests.engine.benchmarks.mt_bench_world import write_jsonl


@pytest.mark.parametrize(
    ("judgment", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[7.5]] because", 7.5),
        ("[[8.]]", 8.0),
        ("first [3], then [[9]]", 9.0),
        ("only [3] and [4]", 3.0),
        ("[[2]] and [[10]]", 2.0),
        ("[[95]]", 95.0),
        ("Rating: 7", math.nan),
        ("[[seven]]", math.nan),
        ("[[-1]]", math.nan),
        ("", math.nan),
        ("$ERROR$", math.nan),
    ],
)
def test_a_rating_is_the_first_number_in_brackets(judgment: str, rating: float) -> None:
    assert fastchat.parse_rating(judgment) == pytest.approx(rating, nan_ok=True)


@pytest.mark.parametrize(
    ("judgment", "winner"),
    [("so [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"), ("[[B]] or [[A]]", "A"), ("[A]", "error"), ("", "error")],
)
def test_a_winner_is_named_in_double_brackets(judgment: str, winner: str) -> None:
    assert fastchat.parse_winner(judgment) == winner


def test_the_shipped_prompts_are_the_eight_that_mt_bench_asks_with() -> None:
    names = {
        fastchat.prompt_name(category, turn, pairwise=pairwise)
        for category in ("writing", "math")
        for turn in (1, 2)
        for pairwise in (False, True)
    }
    assert set(fastchat.read_judge_prompts(None)) == names
    assert len(names) == 8


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question_id": "81", "category": "a", "turns": ["x"]}, "question_id holds text; expected a whole number"),
        ({"question_id": 1, "category": "a", "turns": []}, "turns holds a list; expected a list of texts"),
        ({"question_id": 1, "category": "a", "turns": ["x"] * 3}, "turns holds 3 turns"),
        ({"question_id": 1, "category": "a", "turns": ["x", 2]}, r"turns\[1\] holds a number"),
        ({"question_id": 1, "turns": ["x"]}, "category holds null"),
        ({"question_id": 0, "category": "a", "turns": ["x"]}, "question_id 0 occurs a second time"),
    ],
)
def test_a_question_that_cannot_be_used_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"question_id": 0, "category": "a", "turns": ["x"]}
    with pytest.raises(DataError, match=f"question.jsonl:2: .*{words}"):
        fastchat.read_questions(write_jsonl(tmp_path / "question.jsonl", [good, row]))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{question} {answer.__class__}", r"placeholders \['answer.__class__', 'question'\]; expected \['answer', "),
        ("{question} {answer!r}", "has a placeholder with a format"),
        ("{question} {answer", "no format string"),
        ("{question}", r"placeholders \['question'\]"),
    ],
)
def test_a_judge_prompt_with_other_placeholders_is_refused(tmp_path: Path, template: str, words: str) -> None:
    row = {"name": "single-v1", "system_prompt": "", "prompt_template": template}
    with pytest.raises(DataError, match=words):
        fastchat.read_judge_prompts(write_jsonl(tmp_path / "p.jsonl", [row]))


def test_an_answers_file_without_turns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"choices must be a list with an object"):
        fastchat.read_answers(write_jsonl(tmp_path / "a.jsonl", [{"question_id": 1, "choices": []}]))


def test_a_name_becomes_part_of_a_file_name() -> None:
    assert file_name("openai:api.example/v1:gpt 4") == "openai-api.example-v1-gpt-4"
    assert file_name("../..") == "unnamed"


@pytest.mark.parametrize(
    ("winners", "result"),
    [
        (["model_1", "model_1"], "win"),
        (["model_2", "model_2"], "loss"),
        (["model_1", "model_2"], "tie"),
        (["tie", "model_1"], "tie"),
        (["tie", "tie"], "tie"),
        (["model_1", "error"], "error"),
    ],
)
def test_a_turn_is_won_only_if_both_orders_say_so(winners: list[str], result: str) -> None:
    assert outcome(winners) == result


def judged(question: int, category: str, turn: int, rating: float = math.nan, game: int = 0, winner: str = "") -> dict:
    prompt = fastchat.prompt_name(category, turn, pairwise=bool(game))
    return {
        "question_id": question, "category": category, "turn": turn, "game": game, "prompt": prompt,
        "user_prompt": "u", "judgment": "j", "judgment_end": "stop", "rating": rating, "winner": winner, "judge": "me",
    }  # fmt: skip


RATED = [
    judged(1, "writing", 1, 8.0),
    judged(1, "writing", 2, 6.0),
    judged(2, "writing", 1, 4.0),
    judged(2, "writing", 2),
    judged(3, "math", 1, 12.0),
    judged(3, "math", 2, 1.0),
]
WON = [
    judged(number, category, turn, game=game, winner=winner)
    for number, category, turn, winners in [
        (1, "writing", 1, ("model_1", "model_1")),
        (1, "writing", 2, ("model_1", "model_2")),
        (2, "writing", 1, ("model_2", "model_2")),
        (2, "writing", 2, ("error", "model_2")),
        (3, "math", 1, ("tie", "tie")),
        (3, "math", 2, ("model_1", "model_1")),
    ]
    for game, winner in enumerate(winners, start=1)
]


def test_the_means_leave_out_what_cannot_be_read() -> None:
    found = {result.metric: result for result in single_results(RATED)}
    assert found["score"].value == pytest.approx((8 + 6 + 4 + 12 + 1) / 5)
    assert found["turn_1"].value == pytest.approx(8.0)
    assert found["turn_2"].value == pytest.approx(3.5)
    assert found["category/writing"].value == pytest.approx(6.0)
    assert found["category/math"].value == pytest.approx(6.5)
    assert found["score"].note == "1 of 6 without a readable judgment are left out; 1 ratings lie outside 1 to 10"
    assert (found["unreadable"].value, found["unreadable"].num) == (1.0, 6)
    # Sums 14, 4, 13 and sizes 2, 1, 2 of the three questions: residuals 1.6, -2.2, 0.6 about 6.2.
    assert found["score"].stderr == pytest.approx(math.sqrt(1.5 * (1.6**2 + 2.2**2 + 0.6**2)) / 5)


def test_a_judge_that_never_gives_a_rating_leaves_no_number() -> None:
    found = {result.metric: result for result in single_results([judged(1, "writing", 1), judged(2, "writing", 1)])}
    assert math.isnan(found["score"].value) and found["score"].num == 0
    assert found["score"].note == "2 of 2 without a readable judgment are left out"


def test_win_rates_are_those_of_fastchat() -> None:
    found = {result.metric: result.value for result in pair_results(WON)}
    assert found["win_rate"] == pytest.approx(2 / 5)
    assert found["loss_rate"] == pytest.approx(1 / 5)
    assert found["win_rate_adjusted"] == pytest.approx(3 / 5)
    assert found["category/math"] == pytest.approx(0.75)
    assert found["consistency"] == pytest.approx(4 / 5)
    assert found["unreadable"] == 1.0


def shown(capsys: pytest.CaptureFixture[str], module: Any, file: Path, mode: str) -> str:
    arguments = argparse.Namespace(
        input_file=str(file), bench_name="mt_bench", judge_model="me", model_list=None, baseline_model="other"
    )
    (module.display_result_single if mode == "single" else module.display_result_pairwise)(arguments)
    return capsys.readouterr().out


def test_fastchats_show_result_prints_the_same_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = pytest.importorskip("fastchat.llm_judge.show_result")
    single, pair = tmp_path / "me_single.jsonl", tmp_path / "me_pair.jsonl"
    single.write_text(jsonl(fastchat.single_lines(RATED, "mine")))
    pair.write_text(jsonl(fastchat.pair_lines(WON, "mine", "other")))
    words = shown(capsys, module, single, "single").split()
    means = [float(words[i + 1]) for i, word in enumerate(words) if word == "mine" and words[i + 1] not in "12"]
    turns = [float(words[i + 2]) for i, word in enumerate(words) if word == "mine" and words[i + 1] in "12"]
    found = {result.metric: result.value for result in single_results(RATED)}
    assert [*turns, *means] == pytest.approx([found["turn_1"], found["turn_2"], found["score"]])
    words = shown(capsys, module, pair, "pairwise").split()
    row = [float(word) for word in words[len(words) - 1 - words[::-1].index("mine") + 1 :]]
    won = {result.metric: result.value for result in pair_results(WON)}
    assert row == pytest.approx([2, 1, 2, won["win_rate"], won["loss_rate"], won["win_rate_adjusted"]])


@pytest.fixture
def fastchat_common(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """FastChat's common.py without the packages that it only needs to talk to servers."""
    pytest.importorskip("fastchat.llm_judge.show_result")
    for name in ("openai", "anthropic", "fastchat.model", "fastchat.model.model_adapter"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    adapter: Any = sys.modules["fastchat.model.model_adapter"]
    adapter.OPENAI_MODEL_LIST, adapter.ANTHROPIC_MODEL_LIST = ["me"], []
    adapter.get_conversation_template = lambda model: SimpleNamespace(
        roles=("user", "assistant"), set_system_message=lambda text: None, append_message=lambda role, text: None
    )
    from fastchat.llm_judge import common

    yield common
    sys.modules.pop("fastchat.llm_judge.common", None)


REPLIES = ["[[7]]", "I say [[3.5]] or [9]", "[2]", "nothing", "[[A]]", "x [[B]] y", "[[C]]", "[[B]] [[A]]"]


def test_prompts_and_verdicts_are_those_of_fastchats_code(
    fastchat_common: Any, public_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common, folder = fastchat_common, public_data / "mt_bench"
    questions = fastchat.read_questions(str(folder / "question.jsonl"))
    assert questions == [
        fastchat.BenchQuestion(row["question_id"], row["category"], tuple(row["turns"]))
        for row in common.load_questions(str(folder / "question.jsonl"), None, None)
    ]
    references = fastchat.read_answers(str(folder / "reference_answer_gpt-4.jsonl"))
    theirs = {row["question_id"]: row for row in map(json.loads, (folder / "reference_answer_gpt-4.jsonl").open())}
    prompts = fastchat.read_judge_prompts(None)
    templates = common.load_judge_prompts(str(fastchat.SHIPPED_PROMPTS))
    compared = 0
    for number, question in enumerate(questions):
        reply = REPLIES[number % len(REPLIES)]
        monkeypatch.setattr(common, "chat_completion_openai", lambda *_, said=reply, **__: said)
        policy, other = (f"{{mine}} {question.id}", "second {0}"), ("theirs", "again")
        needs = question.category in common.NEED_REF_CATS
        row = {
            "turns": question.turns, "answers": policy, "baseline": other,
            "references": references[question.id] if needs else (),
        }  # fmt: skip
        answers = [{"choices": [{"turns": turns}]} for turns in (policy, other)]
        for turn in (1, 2):
            asked: dict[str, Any] = {"multi_turn": turn == 2, "ref_answer": theirs[question.id] if needs else None}
            as_row = {"turns": question.turns}
            name = fastchat.prompt_name(question.category, turn, pairwise=False)
            judge = common.Judge("me", templates[name])
            rating, text, _ = common.run_judge_single(as_row, answers[0], judge, **asked)
            assert Game(row, turn, 0, prompts[name]).user_part() == text
            ours = fastchat.parse_rating(reply)
            assert rating == (-1 if math.isnan(ours) else ours)
            name = fastchat.prompt_name(question.category, turn, pairwise=True)
            judge = common.Judge("me", templates[name])
            for order, (a, b) in enumerate([answers, answers[::-1]], start=1):
                winner, text, _ = common.run_judge_pair(as_row, a, b, judge, **asked)
                assert Game(row, turn, order, prompts[name]).user_part() == text
                assert fastchat.parse_winner(reply) == winner
                compared += 1
    assert compared == 320, "80 questions, two turns, two orders"
    assert {k: v for k, v in common.temperature_config.items() if k != "arena-hard-200"} == fastchat.TEMPERATURES
    assert set(fastchat.REFERENCE_CATEGORIES) == set(common.NEED_REF_CATS) - {"arena-hard-200"}


def test_published_ratings_give_the_same_numbers_as_our_own(tmp_path: Path) -> None:
    lines = [*fastchat.single_lines(RATED, "mine"), *fastchat.single_lines(RATED[:2], "theirs")]
    strange = {**lines[0], "question_id": 99}
    source = write_jsonl(tmp_path / "gpt-4_single.jsonl", [*lines, strange])
    ratings = fastchat.read_ratings(source, {row["question_id"]: row["category"] for row in RATED})
    assert list(ratings) == ["mine", "theirs"]
    assert single_results(ratings["mine"]) == single_results(RATED)
    assert len(ratings["theirs"]) == 2
    with pytest.raises(DataError, match=r"one.jsonl:1: score must be a number and turn 1 or 2"):
        fastchat.read_ratings(write_jsonl(tmp_path / "one.jsonl", [{"question_id": 1, "model": "m", "turn": 3}]), {})
