"""Data sets that bring answers: every public format, every fault named by its row, and texts that stay unchanged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.prompts import PromptsConfig
from engine.data.formats import FORMATS, RequiredAnswers
from engine.data.ingest import IngestResult, content_id, ingest, ingest_iterations
from engine.data.values import RefusedRow
from engine.errors import DataError, ModelError
from engine.schema import PROMPTS

PAIR, ONE = RequiredAnswers(2, 100, "algorithm.name = dpo"), RequiredAnswers(1, 100, "algorithm.name = spin")


class Letters:
    """A renderer with one token per character, and 0 at the end of an answer."""

    def render(self, messages: list[dict[str, str]]) -> tuple[str, list[int]]:
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return text, [ord(letter) for letter in text]

    def answer_ids(self, messages: list[dict[str, str]], answer: str) -> list[int]:
        if "refuse me" in answer:
            raise ModelError("the text of an answer turns into control tokens of this tokenizer")
        return [*map(ord, answer.strip()), 0]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return str(path)


def take(source: str, required: RequiredAnswers = PAIR, **config: Any) -> IngestResult:
    return ingest(PromptsConfig(source=source, **config), source, Letters(), 1000, required)


def rows_of(result: IngestResult) -> list[tuple[list[dict], list[str], list[float]]]:
    """(prompt, answers, win rates) of every row."""
    assert result.table.schema.equals(PROMPTS)
    columns = ("messages", "dataset_completions", "dataset_win_rates")
    return list(zip(*(result.table[name].to_pylist() for name in columns), strict=True))


def refusal(source: str, required: RequiredAnswers = PAIR, **config: Any) -> str:
    with pytest.raises(DataError) as caught:
        take(source, required, **config)
    return str(caught.value)


# Pairs

Q, A, B = [user("Why?")], "Because.", "No idea."
LONGER = [user("Hi"), said("Hello"), user("Why?")]
PAIRS = {
    "TRL, explicit, text": ({"prompt": "Why?", "chosen": A, "rejected": B}, Q, [1, 0]),
    "TRL, explicit, chat": ({"prompt": LONGER, "chosen": [said(A)], "rejected": [said(B)]}, LONGER, [1, 0]),
    "TRL, explicit, text of a chat": ({"prompt": LONGER, "chosen": A, "rejected": B}, LONGER, [1, 0]),
    "TRL, implicit, chat": ({"chosen": [*LONGER, said(A)], "rejected": [*LONGER, said(B)]}, LONGER, [1, 0]),
    "TRL, implicit, text": ({"chosen": f"Why? {A}", "rejected": f"Why? {B}"}, Q, [1, 0]),
    "HH-RLHF": (
        {
            "chosen": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: {A}",
            "rejected": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: {B}",
        },
        LONGER,
        [1, 0],
    ),
    "UltraFeedback": (
        {
            "prompt": "Why?",
            "prompt_id": "f0e3",
            "chosen": [user("Why?"), said(A)],
            "rejected": [user("Why?"), said(B)],
            "messages": [user("Why?"), said(A)],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        Q,
        [1, 0],
    ),
    "UltraFeedback, a tie": (
        {"prompt": "Why?", "chosen": A, "rejected": B, "score_chosen": 7, "score_rejected": 7.0},
        Q,
        [0.5, 0.5],
    ),
    "Snorkel": (
        {
            "prompt_id": "x",
            "prompt": "Why?",
            "chosen": [user("Why?"), said(A)],
            "rejected": [user("Why?"), said(B)],
            "all_generated_responses": ["other", B, A],
            "all_rm_scores": [0.1, -2.0, 1.5],
        },
        Q,
        [1, 0],
    ),
    "SPPO": (
        {
            "chosen": [user("Why?"), said(A)],
            "rejected": [user("Why?"), said(B)],
            "chosen_probs": 0.875,
            "chosen_probs_win": 0.75,
            "chosen_probs_lose": 0.25,
        },
        Q,
        [0.75, 0.25],
    ),
    "a probability of the pair": (
        {"prompt": "Why?", "chosen": A, "rejected": B, "chosen_probs": 0.75},
        Q,
        [0.75, 0.25],
    ),
    "ShareGPT with single messages": (
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": B},
        },
        Q,
        [1, 0],
    ),
    "Alpaca with a system message": (
        {"system": "Be brief.", "instruction": "Add", "input": "1 2", "chosen": A, "rejected": B},
        [{"role": "system", "content": "Be brief."}, user("Add\n1 2")],
        [1, 0],
    ),
    "our own tables": ({"messages": Q, "dataset_completions": [A, B], "dataset_win_rates": [0.6, 0.4]}, Q, [0.6, 0.4]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_format_of_preferences_is_recognised_by_its_columns(tmp_path: Path, name: str) -> None:
    row, messages, win_rates = PAIRS[name]
    parquet = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([row]), parquet)
    for source in (write(tmp_path / "p.jsonl", row), str(parquet)):
        (found,) = rows_of(take(source))
        prompt, answers, rates = found
        assert prompt == messages
        assert [answer.strip() for answer in answers] == [A, B]
        assert rates == win_rates


def test_answers_come_with_the_token_that_ends_them(tmp_path: Path) -> None:
    result = take(write(tmp_path / "p.jsonl", {"prompt": "Why?", "chosen": "ab", "rejected": "c"}))
    assert result.table["dataset_token_ids"].to_pylist() == [[[97, 98, 0], [99, 0]]]


def test_a_text_is_split_where_a_word_begins(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl",
        {"chosen": "Q: Pet?\nA: The cat", "rejected": "Q: Pet?\nA: The car"},
        {"chosen": "Q: Pet?\nCats", "rejected": "Q: Pet?\nCars"},
    )
    assert [(m[0]["content"], answers) for m, answers, _ in rows_of(take(source))] == [
        ("Q: Pet?\nA: The", [" cat", " car"]),
        ("Q: Pet?\n", ["Cats", "Cars"]),
    ]


def test_a_trimmed_prompt_column_agrees_with_its_conversations(tmp_path: Path) -> None:
    sides = {"chosen": [*LONGER, said(A)], "rejected": [*LONGER, said(B)]}
    source = write(tmp_path / "p.jsonl", {"prompt": "Hi ", **sides}, {"prompt": "Why?", **sides})
    assert [messages for messages, _, _ in rows_of(take(source))] == [LONGER, LONGER]


def test_ties_and_scores_without_their_answer_are_counted(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "chosen": A, "rejected": B}
    source = write(
        tmp_path / "p.jsonl",
        {**pair, "all_generated_responses": [A, B], "all_rm_scores": [1.0, 1.0]},
        {**pair, "all_generated_responses": ["x", B], "all_rm_scores": [1.0, 2.0]},
    )
    result = take(source)
    assert [rates for _, _, rates in rows_of(result)] == [[0.5, 0.5], [1, 0]]
    assert (result.counts["ties"], result.counts["scores_without_answer"]) == (1, 1)


# Arena


def battle(prompt: list, a: list, b: list, *won: Any) -> dict[str, Any]:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    texts = {"prompt": json.dumps(prompt), "response_a": json.dumps(a), "response_b": json.dumps(b)}
    return {"id": 1, "model_a": "x", "model_b": "y", **texts, **dict(zip(names, won, strict=True))}


def test_arena_battles_put_the_winner_first_and_ties_in_the_middle(tmp_path: Path) -> None:
    rows = [
        battle(["Why?"], [A], [B], 1, 0, 0),
        battle(["Why?"], [A], [B], 0, 1, 0),
        battle(["Why?"], [A], [B], 0, 0, 1),
    ]
    expected = [(Q, [A, B], [1, 0]), (Q, [B, A], [1, 0]), (Q, [A, B], [0.5, 0.5])]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    for source in (write(tmp_path / "p.jsonl", *rows), str(tmp_path / "train.csv"), str(tmp_path / "p.parquet")):
        assert rows_of(take(source)) == expected
        assert take(source).counts["ties"] == 1


def test_a_battle_of_several_turns_has_one_prompt_only_where_its_history_is_shared(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl",
        battle(["Hi", "Why?"], ["Hello", A], ["Hello", B], 1, 0, 0),
        battle(["Hi", "Why?"], ["Hello", A], ["Yo", B], 0, 1, 0),
    )
    result = take(source)
    assert rows_of(result) == [(LONGER, [A, B], [1, 0]), ([user("Hi")], ["Yo", "Hello"], [1, 0])]
    assert result.counts["first_turn"] == 1


# One answer

DEMONSTRATIONS = {
    "TRL, unpaired, liked": ({"prompt": "Why?", "completion": A, "label": True}, Q, 1),
    "TRL, unpaired, not liked": ({"prompt": LONGER, "completion": [said(A)], "label": False}, LONGER, 0),
    "TRL, prompt and completion": ({"prompt": "Why?", "completion": A}, Q, 1),
    "messages": ({"messages": [*LONGER, said(A)]}, LONGER, 1),
    "UltraFeedback's demonstrations": ({"prompt": "Why?", "messages": [user("Why?"), said(A)]}, Q, 1),
    "Alpaca": ({"instruction": "Add", "input": "1 2", "output": A}, [user("Add\n1 2")], 1),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": A}]}, Q, 1),
    "LIMA": ({"conversations": ["Hi", "Hello", "Why?", A], "source": "x"}, LONGER, 1),
    "SPIN": ({"real": [user("Why?"), said(A)], "generated": [user("Why?"), said(B)]}, Q, 1),
    "our own tables": ({"messages": Q, "dataset_completions": [A], "dataset_win_rates": [1.0]}, Q, 1),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_each_format_of_single_answers_is_recognised_by_its_columns(tmp_path: Path, name: str) -> None:
    row, messages, win_rate = DEMONSTRATIONS[name]
    parquet = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([row]), parquet)
    for source in (write(tmp_path / "p.jsonl", row), str(parquet)):
        assert rows_of(take(source, ONE)) == [(messages, [A], [win_rate])]


def test_a_column_or_a_format_can_be_named_where_the_columns_mislead(tmp_path: Path) -> None:
    rows = {"prompt": "Why?", "completion": A, "label": "science", "chosen": [user("Ah?"), said(B)], "rejected": 1}
    source = write(tmp_path / "p.jsonl", rows)
    assert "label holds 'science'; expected true or false" in refusal(source, ONE)
    assert rows_of(take(source, ONE, format="completion")) == [(Q, [A], [1])]
    assert rows_of(take(source, ONE, format="conversation", column="chosen")) == [([user("Ah?")], [B], [1])]


def test_every_format_can_be_named_in_the_config_and_stands_in_the_docs() -> None:
    (literal,) = (kind for kind in get_args(PromptsConfig.model_fields["format"].annotation) if get_args(kind))
    assert set(get_args(literal)) == {format.name for format in FORMATS}
    docs = (Path(__file__).parents[3] / "docs/prompts.md").read_text("utf-8")
    for format in FORMATS:
        for count in format.num_answers:
            assert f"| {count} | `{format.name}` |" in docs


# Faults of rows

GOOD = {"prompt": "Why?", "chosen": "yes", "rejected": "no"}
BAD_PAIRS: list[tuple[Any, str]] = [
    ("text", "holds text; expected an object with chosen, rejected"),
    ({"prompt": "x", "chosen": "a"}, "no rejected; found: prompt, chosen"),
    ({**GOOD, "rejected": None}, "rejected holds null; expected text or messages"),
    ({**GOOD, "rejected": " \n"}, "rejected is empty; expected an answer"),
    ({**GOOD, "rejected": 7}, "chosen holds text and rejected a number; expected the same of both"),
    ({**GOOD, "rejected": [said("a")]}, "chosen holds text and rejected a list"),
    ({**GOOD, "rejected": "a\0"}, "rejected holds a NUL character"),
    ({**GOOD, "chosen": "refuse me"}, "an answer turns into control tokens"),
    ({**GOOD, "chosen": [], "rejected": [said("a")]}, "chosen is an empty list"),
    (
        {**GOOD, "chosen": [user("a")], "rejected": [said("a")]},
        "chosen ends with a user turn; expected the assistant's",
    ),
    (
        {**GOOD, "chosen": [user("Why?"), said("a"), said("b")], "rejected": [user("Why?"), said("a")]},
        "two assistant turns in a row",
    ),
    (
        {**GOOD, "chosen": [user("Why?"), said("a")], "rejected": [user("Why!"), said("b")]},
        "the prompts of chosen and rejected differ: turn 1 at character 4: 'Why?' and 'Why!'",
    ),
    (
        {**GOOD, "prompt": "What?", "chosen": [user("Why?"), said("a")], "rejected": [user("Why?"), said("b")]},
        "the prompt column and the conversations differ: turn 1 at character 3: 'What?' and 'Why?'",
    ),
    (
        {**GOOD, "chosen_probs_win": 1.2, "chosen_probs_lose": 0.1},
        "chosen_probs_win holds 1.2; expected a number from 0",
    ),
    ({**GOOD, "chosen_probs_win": 0.9}, "one of chosen_probs_win and chosen_probs_lose is missing"),
    ({**GOOD, "score_chosen": float("nan"), "score_rejected": 1}, "score_chosen holds nan; expected a finite number"),
    ({**GOOD, "score_chosen": 1, "score_rejected": 2}, "score_chosen = 1 is below score_rejected = 2"),
    ({**GOOD, "score_chosen": 1}, "one of score_chosen and score_rejected is missing"),
    ({**GOOD, "all_generated_responses": ["a"], "all_rm_scores": []}, "not two lists of the same length"),
    (
        {**GOOD, "all_generated_responses": ["yes", "no"], "all_rm_scores": [1, float("inf")]},
        "all_rm_scores[1] holds inf",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PAIRS)
def test_a_bad_pair_is_named_by_file_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    source = write(tmp_path / "p.jsonl", GOOD, row, {**GOOD, "prompt": "How?"})
    message = refusal(source)
    assert f"{source}:2: " in message
    assert reason in message
    result = take(source, on_malformed="drop")
    assert result.table.num_rows == 2
    assert (result.counts["malformed"], result.dropped[0].where) == (1, f"{source}:2")


BAD_IMPLICIT: list[tuple[Any, str]] = [
    ({"chosen": "yes", "rejected": "no"}, "share no beginning that could be the prompt"),
    ({"chosen": [said("a")], "rejected": [said("b")]}, "no prompt: chosen and rejected hold answers alone"),
    ({"chosen": [*Q, said("a")], "rejected": [said("b")]}, "one has 1 turns, the other 0"),
    ({"chosen": [*Q, said("a")], "rejected": [*LONGER, said("b")]}, "turn 1 at character 1: 'Why?' and 'Hi'"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_IMPLICIT)
def test_a_pair_without_one_prompt_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "p.jsonl", row))


BAD_BATTLES = [
    (battle(["Why?"], ["a"], ["b"], 1, 1, 0), "winner_tie are [1, 1, 0]; expected exactly one 1"),
    (battle(["Why?"], ["a"], ["b"], 0, 0, 0), "are [0, 0, 0]; expected exactly one 1"),
    (battle(["Why?"], ["a"], ["b"], 2, 0, 0), "winner_model_a holds 2; expected true or false"),
    (battle(["Why?"], ["a"], [None], 1, 0, 0), "response_b[0] holds null; expected text"),
    (battle([None], ["a"], ["b"], 1, 0, 0), "prompt[0] holds null; expected text"),
    (battle(["Why?"], ["a"], [""], 1, 0, 0), "response_b is empty"),
    (battle(["Why?"], ["a"], [""], 0, 1, 0), "response_b is empty"),
    (battle(["Why?", "So?"], ["a"], ["b"], 1, 0, 0), "hold 2, 1 and 1 turns; expected the same number"),
    (battle(["Why?"], ["\ud83d"], ["b"], 1, 0, 0), "response_a[0] holds U+D83D"),
    ({**battle(["Why?"], ["a"], ["b"], 1, 0, 0), "prompt": "Why?"}, "prompt is not a JSON list of turns"),
    ({**battle(["Why?"], ["a"], ["b"], 1, 0, 0), "prompt": "7"}, "prompt holds a number; expected a JSON list"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_BATTLES)
def test_a_bad_battle_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "p.jsonl", battle(["Good?"], ["a"], ["b"], 1, 0, 0), row))


BAD_ANSWERS = [
    ({"prompt": "x", "completion": "a", "label": -1}, "label holds -1; expected true or false, 1 or 0"),
    ({"prompt": "x", "completion": "a", "label": None}, "label holds None"),
    ({"prompt": "x", "completion": None, "label": 1}, "completion holds null; expected text or messages"),
    ({"prompt": "x", "completion": "", "label": 1}, "completion is empty"),
    ({"prompt": "", "completion": "a", "label": 1}, "the prompt is empty"),
    ({"messages": [*Q]}, "messages ends with a user turn; expected the assistant's answer"),
    ({"messages": [said("a")]}, "an answer without a question"),
    ({"conversations": ["Why?", "a", "So?"]}, "conversations ends with a user turn"),
    ({"messages": Q, "dataset_completions": ["a", "b"], "dataset_win_rates": [1, 0]}, "brings 2 answers; expected 1"),
    (
        {"messages": Q, "dataset_completions": ["a"], "dataset_win_rates": [2]},
        "dataset_win_rates holds 2; expected a number from 0",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ANSWERS)
def test_a_bad_demonstration_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "p.jsonl", row), ONE)


def test_rows_refused_by_several_rules_are_reported_at_once(tmp_path: Path) -> None:
    rows = [{**GOOD, "rejected": ""}, {**GOOD, "rejected": "yes"}, {**GOOD, "chosen": "long " * 40}]
    message = refusal(write(tmp_path / "p.jsonl", GOOD, *rows), on_identical="error", on_long_answer="error")
    assert "3 of 4 rows cannot be used" in message
    assert "prompts.on_malformed: drop, prompts.on_identical: drop, prompts.on_long_answer: drop" in message


# Identical sides, long answers, repeated rows


def test_a_pair_of_identical_answers_is_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {**GOOD, "rejected": "yes"}, {**GOOD, "rejected": "yes "}, GOOD)
    result = take(source)
    assert (result.counts["identical"], result.counts["used"]) == (2, 1)
    assert [row.reason for row in result.dropped] == [
        "both answers are the same text",
        "both answers are the same tokens",
    ]
    assert f"{source}:1: both answers are the same text" in refusal(source, on_identical="error")


def test_long_answers_are_truncated_and_lose_their_end_token(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {**GOOD, "chosen": "abcd", "rejected": "abx"}, GOOD)
    four = RequiredAnswers(2, 4, "algorithm.name = dpo")
    result = take(source, four)
    assert result.table["dataset_token_ids"][0].as_py() == [[97, 98, 99, 100], [97, 98, 120, 0]]
    assert result.table["dataset_completions"][0].as_py() == ["abcd", "abx"]
    assert result.counts["truncated_answers"] == 1
    dropped = take(source, four, on_long_answer="drop")
    assert dropped.dropped == [
        RefusedRow(f"{source}:1", "an answer of 5 tokens; sampling.max_new_tokens is 4", "long_answers")
    ]
    assert dropped.counts["truncated_answers"] == 0
    assert "prompts.on_long_answer: drop" in refusal(source, four, on_long_answer="error")


def test_two_answers_with_the_same_start_are_identical_once_they_are_truncated(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {**GOOD, "chosen": "abcd", "rejected": "abce"}, GOOD)
    result = take(source, RequiredAnswers(2, 3))
    assert result.dropped[0].reason == "both answers are the same in their first 3 tokens"


def test_one_prompt_may_bring_many_pairs_and_only_a_repeated_pair_is_a_duplicate(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", GOOD, {**GOOD, "rejected": "never"}, GOOD)
    digest = content_id([user("Why?")])
    kept, dropped = take(source), take(source, on_duplicate="drop")
    assert kept.table["prompt_id"].to_pylist() == [f"{digest}-0", f"{digest}-1", f"{digest}-2"]
    assert dropped.table["prompt_id"].to_pylist() == [f"{digest}-0", f"{digest}-1"]
    assert dropped.dropped == [RefusedRow(f"{source}:3", f"the same prompt and answers as {source}:1", "duplicates")]
    assert kept.counts["duplicates"] == dropped.counts["duplicates"] == 1


# What an algorithm requires


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_data_set_without_answers_is_refused_with_the_algorithm_that_needs_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    rows = [{"prompt": "Why?", "id": "1"}, {"prompt": "How?", "id": "2"}]
    write(path, *rows) if suffix == ".jsonl" else pq.write_table(pa.Table.from_pylist(rows), path)
    message = refusal(str(path))
    assert "algorithm.name = dpo needs preferences, two answers per prompt" in message
    assert "do not hold: prompt, id" in message
    for format in ("pair: chosen and rejected", "arena: prompt, response_a", "kumite: messages, dataset_completions"):
        assert f"\n  {format}" in message
    assert "spin needs one answer per prompt" in refusal(str(path), ONE)
    assert "prompts.format = pair; prompts.column = question" in refusal(str(path), format="pair", column="question")


def test_texts_without_columns_bring_no_answers(tmp_path: Path) -> None:
    assert "these columns do not hold: no columns" in refusal(write(tmp_path / "p.jsonl", "Why?"))


def test_held_out_prompts_are_read_without_the_answers_of_their_file(tmp_path: Path) -> None:
    for row in (
        GOOD,
        {"chosen": [user("Why?"), said("a")], "rejected": [user("Why?"), said("b")]},
        battle(["Why?"], ["a"], ["b"], 1, 0, 0),
        {"prompt": "Why?", "completion": "a"},
        {"messages": [user("Why?"), said("a")]},
    ):
        result = take(write(tmp_path / "p.jsonl", row), RequiredAnswers())
        assert rows_of(result) == [(Q, [], [])]
        assert result.table["dataset_token_ids"].to_pylist() == [[]]
        assert result.table["prompt_id"].to_pylist() == [f"{content_id(Q)}-0"]


def test_pairs_are_divided_over_iterations_like_prompts(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", *[{**GOOD, "prompt": f"{i}?"} for i in range(5)])
    tables, results = ingest_iterations(PromptsConfig(source=source), Letters(), 100, 2, seed=1, required=PAIR)
    assert [table.num_rows for table in tables] == [2, 3]
    assert all(len(answers) == 2 for table in tables for answers in table["dataset_completions"].to_pylist())
    assert results[0].counts["used"] == 5


# Real and random data


def test_real_answers_and_their_verdicts_come_through_unchanged(public_data: Path, tmp_path: Path) -> None:
    folder = public_data / "alpaca_eval"
    if not (folder / "annotations.parquet").is_file():
        pytest.skip("KUMITE_TEST_DATA has no alpaca_eval/annotations.parquet")
    questions = {row["instruction_id"]: row for row in pq.read_table(folder / "instructions.parquet").to_pylist()}
    verdicts = pq.read_table(folder / "annotations.parquet")
    model = verdicts["model"][0].as_py()
    rows = []
    for verdict in verdicts.filter(pc.equal(verdicts["model"].cast(pa.string()), model)).to_pylist():
        question = questions[verdict["instruction_id"]]
        sides = {"chosen": verdict["output"], "rejected": question["reference_output"]}
        whole = {name: [user(question["instruction"]), said(text)] for name, text in sides.items()}
        rows.append({"prompt": question["instruction"], **whole, "chosen_probs": verdict["preference"]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "real.parquet")
    required = RequiredAnswers(2, 100_000, "algorithm.name = dpo")
    source = str(tmp_path / "real.parquet")
    config = PromptsConfig(source=source, on_malformed="drop")
    result = ingest(config, source, Letters(), 100_000, required)
    assert result.counts["used"] + result.counts["identical"] + result.counts["malformed"] == len(rows) > 700
    assert result.counts["malformed"] <= 5  # some models did not answer everything
    known = {
        row["prompt"]: (row["chosen"][1]["content"], row["rejected"][1]["content"], row["chosen_probs"]) for row in rows
    }
    for messages, answers, rates in rows_of(result):
        chosen, rejected, probability = known[messages[0]["content"]]
        assert answers == [chosen, rejected]
        assert rates == [probability, 1 - probability]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: bool(text.strip())
)


@given(question=texts, chosen=texts, rejected=texts, win=st.floats(0, 1), lose=st.floats(0, 1), whole=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_goes_in_comes_out(
    tmp_path: Path, question: str, chosen: str, rejected: str, win: float, lose: float, whole: bool
) -> None:
    sides: dict[str, Any] = {"chosen": chosen, "rejected": rejected}
    if whole:
        sides = {name: [user(question), said(text)] for name, text in sides.items()}
    row = {"prompt": question, **sides, "chosen_probs_win": win, "chosen_probs_lose": lose}
    pq.write_table(pa.Table.from_pylist([row, {**row, **GOOD} if not whole else row]), tmp_path / "p.parquet")
    for source in (write(tmp_path / "p.jsonl", row), str(tmp_path / "p.parquet")):
        config = PromptsConfig(source=source)
        if chosen.strip() == rejected.strip():
            continue
        first = rows_of(ingest(config, source, Letters(), 10_000, RequiredAnswers(2, 10_000)))[0]
        assert first == ([user(question)], [chosen, rejected], [win, lose])
