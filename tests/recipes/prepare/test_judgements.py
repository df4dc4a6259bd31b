"""Rated answers as examples for learning to judge: asked as at run time, consistent, even, and held out by prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.scorers.judge.judge import Judge, parse_score
from actors.scorers.judge.prompt_file import read_judge_prompt
from engine.config.judge import JudgeConfig
from engine.errors import DataError
from recipes.prepare.judgements import Rated, agrees, main, most_of_one_score

PROMPT = str(Path(__file__).parents[3] / "recipes/judges/additive_rubric.txt")


def rated(prompt: Any = "What is tea?", answer: str = "Leaves in water.", score: float = 4, **more: Any) -> dict:
    return {"prompt": prompt, "answer": answer, "score": score, **more}


def make(folder: Path, rows: list[Any], *options: str, name: str = "eft") -> int:
    source = folder / f"{name}-rated.jsonl"
    source.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return main([str(folder / f"{name}.jsonl"), "--prompt", PROMPT, "--rated", str(source), *options])


def made(folder: Path, name: str = "eft") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def counts(folder: Path, name: str = "eft") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())["counts"]


def scores(examples: list[dict[str, Any]]) -> list[float]:
    return [parse_score(one["completion"][0]["content"], 0, 5) for one in examples]


def many(score: float, count: int) -> list[dict]:
    return [rated(f"question {score} {i}", score=score) for i in range(count)]


def test_an_example_is_the_question_that_the_judge_asks_at_run_time(tmp_path: Path) -> None:
    """But for the mark, word for word."""
    chat = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    assert make(tmp_path, [rated(chat, "Two."), rated(judgement="Sound.\nScore: 4")], "--heldout-share", "0") == 0
    config = JudgeConfig(server={"kind": "policy"}, mode="pointwise", prompt=PROMPT)
    judge = Judge(config, read_judge_prompt(config), seed=0)
    rows = [(chat, "Two."), ([{"role": "user", "content": "What is tea?"}], "Leaves in water.")]
    asked = []

    class Model:
        id = "model"

        def reply(self, questions):
            asked.extend([dict(message) for message in one.messages] for one in questions)
            raise StopIteration

    with pytest.raises(StopIteration):
        judge.judge(Model(), [{"prompt_id": "p", "messages": m, "completions": [a]} for m, a in rows])
    examples = made(tmp_path)
    for example, question in zip(examples, asked, strict=True):
        ours, theirs = (mark_of(messages) for messages in (example["prompt"], question))
        assert ours != theirs
        assert json.dumps(example["prompt"]).replace(ours, theirs) == json.dumps(question)
    assert [example["completion"] for example in examples] == [
        [{"role": "assistant", "content": "Score: 4"}],
        [{"role": "assistant", "content": "Sound.\nScore: 4"}],
    ]
    assert not (tmp_path / "eft-heldout.jsonl").exists()


def mark_of(messages: list[dict[str, str]]) -> str:
    line = next(line for line in messages[-1]["content"].split("\n") if line.startswith("<<< begin instruction "))
    return line.split()[-2]


def test_every_example_has_a_mark_of_its_own_so_that_none_is_learned(tmp_path: Path) -> None:
    assert make(tmp_path, [rated()] * 20, "--heldout-share", "0") == 0
    assert len({mark_of(example["prompt"]) for example in made(tmp_path)}) == 20


@pytest.mark.parametrize(
    ("ranked", "strict", "lenient"),
    [
        ([(1, 5), (2, 3), (3, 0)], True, True),
        ([(1, 5), (2, 3), (3, 3)], False, True),
        ([(1, 3), (2, 5)], False, False),
        ([(1, 5), (1, 2), (2, 1)], True, True),
        ([(0, 2)], True, True),
        ([(None, 1), (None, 5)], True, True),
    ],
)
def test_scores_agree_with_ranks_where_they_fall_with_them(ranked, strict, lenient) -> None:
    rows = [Rated(i, "q", f"a{i}", score, "", rank) for i, (rank, score) in enumerate(ranked)]
    for order in (rows, rows[::-1]):
        assert (agrees(order, False), agrees(order, True)) == (strict, lenient)


def test_prompts_whose_scores_contradict_people_are_left_out_whole_and_counted(tmp_path: Path) -> None:
    rows = [
        rated("good", "a", 5, rank=1),
        rated("good", "b", 2, rank=2),
        rated("bad", "a", 1, rank=1),
        rated("bad", "b", 4, rank=2),
        rated("unranked", "a", 0),
    ]
    assert make(tmp_path, rows, "--heldout-share", "0") == 0
    assert scores(made(tmp_path)) == [5, 2, 0]
    found = counts(tmp_path)
    assert (found["rows"], found["ranked_prompts"]) == (5, 2)
    assert (found["inconsistent_prompts"], found["inconsistent"], found["training"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("have", "share", "most"),
    [([90, 10], 0.5, 10), ([60, 20, 20], 0.5, 40), ([3, 3], 1.0, 3), ([80, 70, 10], 0.4, 20), ([5], 1.0, 5)],
)
def test_the_cap_leaves_as_many_as_the_share_allows(have, share, most) -> None:
    assert most_of_one_score(have, share) == most


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(DataError, match="3 different scores cannot all have less than 1/3"):
        most_of_one_score([5, 5, 5], 0.3)


def test_a_score_that_is_too_frequent_is_thinned_for_training_only(tmp_path: Path) -> None:
    rows = many(4, 200) + many(2, 30) + many(5, 30)
    assert make(tmp_path, rows, "--cap-share", "0.5") == 0
    found, held = counts(tmp_path), made(tmp_path, "eft-heldout")
    tally = Counter(scores(made(tmp_path)))
    assert tally[4.0] == tally[2.0] + tally[5.0]
    assert found["training_scores"] == {"2": tally[2.0], "4": tally[4.0], "5": tally[5.0]}
    assert found["rows"] == found["training"] + found["heldout"] + found["capped"] == 260
    assert Counter(scores(held))[4.0] > 0.6 * len(held)
    assert make(tmp_path, rows, "--cap-share", "0.5", name="again") == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "eft.jsonl").read_bytes()


def test_no_prompt_is_in_both_parts(tmp_path: Path) -> None:
    rows = [rated(f"question {i}", f"answer {j}", j) for i in range(100) for j in range(3)]
    assert make(tmp_path, rows) == 0

    def instructions(name: str) -> set[str]:
        return {one["prompt"][-1]["content"].split(" >>>\n")[1].split("\n")[0] for one in made(tmp_path, name)}

    training, heldout = instructions("eft"), instructions("eft-heldout")
    assert not training & heldout and len(training | heldout) == 100
    assert 10 < len(heldout) < 40


def test_every_bad_row_is_named_with_what_was_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        "not json",
        {"answer": "a", "score": 3},
        rated(answer=None),
        rated(score=7),
        rated(score=True),
        rated(score=10**400),
        rated(score=0.1234567),
        rated(judgement="Score: 2"),
        rated(judgement="Fine"),
        rated(rank="first"),
        rated("half", rank=1),
        rated("half"),
        rated([{"role": "user"}]),
    ]
    assert make(tmp_path, [rated(), *bad]) == 2
    messages = capsys.readouterr().err
    for line, text in {
        2: "not valid JSON",
        3: "prompt = None",
        4: "answer = None",
        5: "score = 7; expected a number from 0 to 5",
        6: "score = True",
        7: "score = 1000",
        8: "score = 0.1234567",
        9: "judgement = 'Score: 2'; expected a text that ends in the row's score, as \"Score: 4\"",
        10: "judgement = 'Fine'",
        11: "rank = 'first'",
        13: "no rank, but other answers to its prompt have one",
        14: "prompt = [{'role': 'user'}]",
    }.items():
        assert f"eft-rated.jsonl:{line}: {text}" in messages
    assert "jsonl:1:" not in messages and "jsonl:12:" not in messages
    assert not list(tmp_path.glob("eft.*"))


def test_rated_answers_may_come_from_a_parquet_file_whose_columns_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = tmp_path / "rated.parquet", ["--prompt", PROMPT, "--heldout-share", "0", "--rated"]
    pq.write_table(pa.Table.from_pylist([rated(), rated(answer="Tea.", score=2)]), file)
    assert main([str(tmp_path / "eft.jsonl"), *options, str(file)]) == 0
    assert scores(made(tmp_path)) == [4, 2]
    pq.write_table(pa.Table.from_pylist([{"prompt": "q", "score": 1}]), file)
    assert main([str(tmp_path / "again.jsonl"), *options, str(file)]) == 2
    assert f"{file}: no column answer; found: prompt, score" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eft-heldout.jsonl").write_text("mine")
    assert make(tmp_path, [rated()]) == 2
    assert "eft-heldout.jsonl exists; nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "eft-heldout.jsonl").read_text() == "mine" and not (tmp_path / "eft.jsonl").exists()


def test_all_invalid_settings_are_named_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--min-score", "5", "--max-score", "1", "--cap-share", "0", "--heldout-share", "1"]
    assert make(tmp_path, [rated()], *options) == 2
    messages = capsys.readouterr().err
    assert all(name in messages for name in ("--min-score 5", "--cap-share 0", "--heldout-share 1"))


def test_a_line_separator_within_a_text_does_not_end_its_row(tmp_path: Path) -> None:
    row = json.dumps(rated(answer="one\u2028two"), ensure_ascii=False)
    assert make(tmp_path, [row], "--heldout-share", "0") == 0
    assert "one\u2028two" in made(tmp_path)[0]["prompt"][-1]["content"]


def test_trl_reads_the_examples_as_conversations(tmp_path: Path) -> None:
    from trl.data_utils import is_conversational

    from recipes.prepare.sft import read_examples

    assert make(tmp_path, [rated()], "--heldout-share", "0") == 0
    rows, num_disliked = read_examples((str(tmp_path / "eft.jsonl"),))
    assert rows and is_conversational(rows[0]) and num_disliked == 0
