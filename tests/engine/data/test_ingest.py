"""Prompts: every file format, every fault named by its row, ids that never collide, parts of equal size."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.prompts import PromptsConfig
from engine.data import rows as data_rows
from engine.data.ingest import IngestResult, Prompt, content_id, divide, ingest, ingest_iterations, read_prompts, shards
from engine.data.values import RefusedRow
from engine.errors import DataError, ModelError
from engine.schema import PROMPTS

LOSSLESS = "  two leading spaces,\r\n\ttab, emoji 👩‍👩‍👧, עברית, \x07bell, trailing \n"


class Words:
    """A renderer with one token per word, which refuses conversations that say so."""

    def render(self, messages: list[dict[str, str]]) -> tuple[str, list[int]]:
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        if "refuse me" in text:
            raise ModelError("the chat template refuses the conversation: roles must alternate")
        return text, [len(word) for word in text.split()]

    def answer_ids(self, messages: list[dict[str, str]], answer: str) -> list[int]:
        return [*(len(word) for word in answer.split()), 0]


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return str(path)


def take(source: str, max_prompt_tokens: int = 1000, **config: object) -> IngestResult:
    return ingest(PromptsConfig(source=source, **config), source, Words(), max_prompt_tokens)


def contents(result: IngestResult) -> list[str]:
    return [messages[-1]["content"] for messages in result.table["messages"].to_pylist()]


def refusal(source: str, **config: object) -> str:
    with pytest.raises(DataError) as caught:
        take(source, **config)
    return str(caught.value)


def conversations(source: str, **config: object) -> list[list[tuple[str, str]]]:
    prompts = list(read_prompts(PromptsConfig(source=source, **config), source))
    assert all(isinstance(p, Prompt) for p in prompts), prompts
    return [[(m["role"], m["content"]) for m in p.messages] for p in prompts]


# Formats


def in_every_format(folder: Path, rows: list[dict]) -> list[str]:
    table = pa.Table.from_pylist(rows)
    write(folder / "rows.jsonl", *rows)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress((folder / "rows.jsonl").read_bytes()))
    (folder / "rows.json").write_text(json.dumps(rows, indent=1), "utf-8")
    pq.write_table(table, folder / "rows.parquet")
    with pa.ipc.new_file(folder / "file.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    if all(pa.types.is_string(kind) for kind in table.schema.types):
        pyarrow.csv.write_csv(table, folder / "rows.csv")
    return [str(path) for path in sorted(folder.iterdir())]


def test_text_is_the_same_to_the_byte_from_every_format(tmp_path: Path) -> None:
    texts = [LOSSLESS, 'quotes " and, commas', "[1, {2]} \\", "plain"]
    sources = in_every_format(tmp_path, [{"id": str(i), "prompt": text} for i, text in enumerate(texts)])
    assert len(sources) == 7
    tables = [take(source).table for source in sources]
    assert tables[0]["messages"].to_pylist() == [[{"role": "user", "content": text}] for text in texts]
    assert all(table.equals(tables[0]) and table.schema.equals(PROMPTS) for table in tables)


def test_chat_is_the_same_from_every_format(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    for source in in_every_format(tmp_path, [{"messages": chat}]):
        assert conversations(source) == [[(m["role"], m["content"]) for m in chat]], source


def test_json_may_be_a_list_of_strings(tmp_path: Path) -> None:
    source = write(tmp_path / "p.json", '\ufeff [ "one", "t\\"w],o", \n"three" ] ')
    assert contents(take(source)) == ["one", 't"w],o', "three"]


def test_the_json_stream_finds_the_same_elements_whatever_the_size_of_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": 'a\\"]}b', "more": [{"x": [1, "]"]}]}, {"prompt": "\\\\"}, {"prompt": "é👍"}]
    source = write(tmp_path / "p.json", rows)
    for size in range(1, 12):
        monkeypatch.setattr("engine.data.rows.CHUNK_CHARACTERS", size)
        assert contents(take(source)) == ['a\\"]}b', "\\\\", "é👍"]


def test_a_byte_order_mark_windows_line_ends_and_empty_lines_are_accepted(tmp_path: Path) -> None:
    jsonl, table = tmp_path / "p.jsonl", tmp_path / "p.csv"
    jsonl.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n\r\n{"prompt": "two"}\r\n\n')
    table.write_bytes(b'\xef\xbb\xbfprompt,id\r\none,1\r\n\r\n"two",2\r\n')
    assert contents(take(str(jsonl))) == contents(take(str(table))) == ["one", "two"]


def test_a_local_folder_of_data_files_loads_as_the_hub_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "set" / "train-00000.parquet")
    source = str(tmp_path / "set")
    assert contents(take(source)) == ["a", "b"]
    assert "prompts.split = 'validation'" in refusal(source, split="validation")


# Conventions of public data sets


def test_the_prompt_column_is_found_by_its_usual_names(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "from messages"}]
    ultrafeedback = write(tmp_path / "u.jsonl", {"messages": chat, "prompt": "from prompt", "prompt_id": "x"})
    assert conversations(ultrafeedback) == [[("user", "from prompt")]]
    assert conversations(ultrafeedback, column="messages") == [[("user", "from messages")]]
    assert conversations(write(tmp_path / "q.jsonl", {"question": "Why?"})) == [[("user", "Why?")]]


def test_alpaca_rows_join_instruction_and_input(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"instruction": "Add", "input": "1 2"}, {"instruction": "Go", "input": ""})
    assert contents(take(source)) == ["Add\n1 2", "Go"]
    assert take(source).counts["joined_input"] == 1


def test_an_input_column_beside_a_prompt_is_not_read(tmp_path: Path) -> None:
    assert contents(take(write(tmp_path / "a.jsonl", {"prompt": "Add", "input": "1 2"}))) == ["Add"]


def test_a_system_column_comes_first(tmp_path: Path) -> None:
    source = write(tmp_path / "s.jsonl", {"system_prompt": "Rhyme.", "question": "Hi"}, {"question": "Ho"})
    assert conversations(source) == [[("system", "Rhyme."), ("user", "Hi")], [("user", "Ho")]]


def test_the_last_answer_of_a_sharegpt_row_is_dropped_and_counted(tmp_path: Path) -> None:
    turns = [("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Ciao"), ("gpt", "again")]
    source = write(tmp_path / "s.jsonl", {"conversations": [{"from": who, "value": text} for who, text in turns]})
    assert conversations(source) == [[("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]]
    assert take(source).counts["dropped_answer"] == 1


# Faults of rows


BAD_LINES = [
    ('{"prompt": "cut', "not valid JSON"),
    ("[1]", "holds a list; expected an object or a string"),
    ("12", "holds a number"),
    ("9" * 5000, "not valid JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"promt": "x"}', "no prompt; found: promt"),
    ('{"\\u001b[2J": "x"}', "no prompt; found: \\x1b[2J"),
    ('{"prompt": 7}', "prompt holds a number; expected text"),
    ('{"prompt": null}', "prompt holds null; expected text"),
    ('{"prompt": {"a": 1}}', "prompt holds an object"),
    ('{"prompt": " \\n"}', "the prompt is empty"),
    ('{"prompt": "a\\u0000"}', "NUL character at position 2"),
    ('{"prompt": "ab\\ud83d"}', "U+D83D at position 3"),
    ('{"prompt": []}', "an empty list"),
    ('{"prompt": ["x"]}', "prompt[0] holds text; expected an object with role and content"),
    ('{"prompt": [{"text": "x"}]}', "neither role and content nor from and value"),
    ('{"prompt": [{"role": "robot", "content": "x"}]}', "role 'robot'; expected system, user, assistant, tool"),
    ('{"prompt": [{"role": ["user"], "content": "x"}]}', "role ['user']"),
    ('{"prompt": [{"from": "alien", "value": "x"}]}', "role 'alien'; expected system, human"),
    ('{"prompt": [{"role": "user", "content": null}]}', "prompt[0].content holds null; expected text"),
    ('{"prompt": [{"role": "user", "content": "\\udc00"}]}', "prompt[0].content holds U+DC00"),
    ('{"prompt": [{"role": "assistant", "content": "x"}]}', "only assistant turns"),
    ('{"prompt": [{"role": "system", "content": "x"}]}', "ends with a system message"),
    ('{"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}]}', "tool calls, which are not supported"),
    ('{"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "system": "z"}', "another"),
    ('{"prompt": "refuse me"}', "the chat template refuses the conversation"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_is_named_by_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    source = write(tmp_path / "p.jsonl", '{"prompt": "good"}', "", line, '{"prompt": "also good"}')
    message = refusal(source)
    assert "1 of 3 rows cannot be used" in message
    assert f"{source}:3: " in message
    assert reason in message
    result = take(source, on_malformed="drop")
    assert contents(result) == ["good", "also good"]
    assert result.counts["malformed"] == 1
    assert result.dropped[0].where == f"{source}:3"


def test_bad_rows_are_reported_at_once_up_to_a_cap(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {"prompt": "good"}, *[{"prompt": i} for i in range(337)])
    message = refusal(source)
    assert f"{source}:2: " in message
    assert f"{source}:21: " in message
    assert f"{source}:22: " not in message
    assert "337 of 338 rows cannot be used" in message
    assert "... and 317 more" in message
    assert "prompts.on_malformed: drop" in message


def test_a_line_of_more_than_ten_mebibytes_is_skipped_without_being_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n"' + b"x" * 25 * 2**20 + b'"\n{"prompt": "b"}\n')
    result = take(str(path), on_malformed="drop")
    assert contents(result) == ["a", "b"]
    assert result.dropped == [RefusedRow(f"{path}:2", "the line is longer than 10485760 bytes")]


def test_invalid_utf8_is_a_bad_row_in_every_text_format(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xff"}\n')
    (tmp_path / "p.json").write_bytes(b'[{"prompt": "ok"}, {"prompt": "\xff"}]')
    (tmp_path / "p.csv").write_bytes(b"prompt\nok\n\xff\n")
    for path in sorted(tmp_path.iterdir()):
        assert f"{path}:2: " in refusal(str(path))
        assert "UTF-8" in refusal(str(path))
        assert contents(take(str(path), on_malformed="drop")) == ["ok"]


def test_one_bad_element_of_a_json_list_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_rows, "MAX_ROW_BYTES", 200_000)
    parts = ['"one"', "{]", '{"prompt": nope}', "", "[" * 100_000 + "]" * 100_000, f'"{"x" * 300_000}"', '"two"']
    result = take(write(tmp_path / "p.json", f"[{','.join(parts)},]"), on_malformed="drop")
    assert contents(result) == ["one", "two"]
    assert [row.where.rsplit(":", 1)[1] for row in result.dropped] == ["2", "3", "4", "5", "6", "8"]


def test_a_csv_row_with_too_many_fields_is_a_bad_row(tmp_path: Path) -> None:
    source = write(tmp_path / "p.csv", "prompt,id", "one,1", "two, with comma,2", "three,3")
    assert f"{source}:2: 3 fields where the header has 2" in refusal(source)
    assert contents(take(source, on_malformed="drop")) == ["one", "three"]


def test_a_csv_field_may_be_far_longer_than_pythons_default_limit(tmp_path: Path) -> None:
    assert contents(take(write(tmp_path / "p.csv", "prompt", "x" * 200_000))) == ["x" * 200_000]


# Faults of files


def test_a_missing_column_names_what_was_found_and_what_is_near(tmp_path: Path) -> None:
    for source in in_every_format(tmp_path, [{"promt": "x", "id": "1"}]):
        message = refusal(source, on_malformed="drop")
        assert message.startswith(f"{source}: no column prompt or messages")
        assert "found: promt, id; nearest: promt" in message
        assert "prompts.column" in message
        assert "no column quest; found" in refusal(source, column="quest")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("p.txt", b"x", "unknown kind of file '.txt'; expected .jsonl, .jsonl.gz, .json, .csv, .parquet, .arrow"),
        ("p", b"x", "unknown kind of file"),
        ("p.jsonl", b"", "the file is empty"),
        ("p.jsonl", b"\n \n", "holds no rows"),
        ("p.json", b"[]", "holds no rows"),
        ("p.json", b'{"prompt": "x"}\n{"prompt": "y"}', "one object per line, name it .jsonl"),
        ("p.json", b'["a"', "the JSON list is not closed; the file seems cut off after row 0"),
        ("p.json", b'["a"] ["b"]', "something follows the JSON list"),
        ("p.csv", b"prompt\n", "holds no rows"),
        ("p.csv", b"prompt,prompt\na,b\n", "has 2 columns named prompt"),
        ("p.csv", b'prompt\na\n"open\nb\nc\n', "no row after it can be trusted"),
        ("p.parquet", b"PAR1 not", "cannot be read as the .parquet file"),
        ("p.arrow", b"ARROW1 not", "cannot be read as the .arrow file"),
        ("p.arrow", b"nothing like it", "cannot be read as the .arrow file"),
        ("p.jsonl.gz", b"not gzip", "damaged gzip file"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 99, mtime=0)[:-9], "damaged gzip file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message = refusal(str(path), on_malformed="drop")
    assert str(path) in message
    assert reason in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(str(tmp_path / "gone.jsonl"))
    assert "no such file" in refusal(str(tmp_path / "gone"))


def test_columnar_files_with_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [1, 2]}), path)
    assert "column prompt holds int64; expected text" in refusal(str(path))
    pq.write_table(pa.table({"prompt": pa.array(["{}"], pa.json_())}), path)
    assert "expected text" in refusal(str(path))


def test_arrow_files_with_forged_offsets_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.arrow"
    forged = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\xff\xff\xff\x7f\1\0\0\0"), pa.py_buffer(b"x"))
    schema = pa.schema({"prompt": pa.string()})
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([forged], schema=schema))
    assert "cannot be read as the .arrow file" in refusal(str(path), on_malformed="drop")


def test_a_source_without_a_usable_prompt_is_refused_with_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", {"prompt": ""}, {"prompt": "a b c"}, {"prompt": 3})
    message = refusal(source, on_malformed="drop", on_overlong="drop", max_prompt_tokens=2)
    assert "no usable prompts; 3 rows, 0 used, 2 malformed, 0 duplicates, 1 overlong" in message


# Duplicates, length, limit


def test_the_same_prompt_again_gets_an_id_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", '"a"', '"b"', {"prompt": "a"}, '"a"')
    ids = take(source).table["prompt_id"].to_pylist()
    digest = content_id([{"role": "user", "content": "a"}])
    assert [ids[0], *ids[2:]] == [f"{digest}-0", f"{digest}-1", f"{digest}-2"]
    assert len(set(ids)) == 4
    assert take(source).counts["duplicates"] == 2


def test_duplicates_can_be_dropped_or_refused_by_the_row_they_repeat(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", '"a"', '"b"', '"a"')
    result = take(source, on_duplicate="drop")
    assert contents(result) == ["a", "b"]
    assert result.dropped == [RefusedRow(f"{source}:3", f"the same prompt as {source}:1", "duplicates")]
    assert f"{source}:3: the same prompt as {source}:1" in refusal(source, on_duplicate="error")
    assert "prompts.on_duplicate: drop" in refusal(source, on_duplicate="error")


def test_ids_depend_on_the_conversation_alone(tmp_path: Path) -> None:
    first = take(write(tmp_path / "p.jsonl", '"a"', '"b"'))
    second = take(write(tmp_path / "q.csv", "x,prompt", "1,b", "2,a"))
    assert first.table["prompt_id"].to_pylist() == second.table["prompt_id"].to_pylist()[::-1]
    # The canonical form is part of the store: another id for an old prompt would orphan its shards.
    # printf '[{"content":"a","role":"user"}]' | sha256sum
    assert content_id([{"content": "a", "role": "user"}]) == "5168bd634e48454d"


def test_overlong_prompts_are_named_with_length_and_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", '"one two"', '"one two three"')
    assert f"{source}:2: 3 tokens; sampling.max_prompt_tokens is 2" in refusal(source, max_prompt_tokens=2)
    result = take(source, max_prompt_tokens=2, on_overlong="drop")
    assert contents(result) == ["one two"]
    assert result.counts["overlong"] == 1


def test_the_limit_takes_the_first_usable_prompts_and_reads_no_further(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", '"a"', "{bad", '"b"', '"c"', "{bad")
    result = take(source, limit=2, on_malformed="drop")
    assert contents(result) == ["a", "b"]
    assert result.counts["rows"] == 3


# Parts and shards


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    return take(write(tmp_path / "p.jsonl", *[f'"prompt {i % 97}"' for i in range(100)])).table


def ids_of(tables: list[pa.Table]) -> list[list[str]]:
    return [table["prompt_id"].to_pylist() for table in tables]


def flat(parts: list[list[str]]) -> list[str]:
    return [prompt_id for part in parts for prompt_id in part]


def test_parts_are_disjoint_complete_and_of_nearly_equal_size(table: pa.Table) -> None:
    parts = ids_of(divide(table, 3, "parts", seed=7, shuffle=True))
    assert sorted(len(part) for part in parts) == [33, 33, 34]
    assert sorted(flat(parts)) == sorted(table["prompt_id"].to_pylist())


def test_the_shuffle_depends_on_seed_and_prompts_but_not_on_the_order_of_the_file(table: pa.Table) -> None:
    shuffled = ids_of(divide(table, 3, "parts", 7, True))
    assert ids_of(divide(table.take(list(range(99, -1, -1))), 3, "parts", 7, True)) == shuffled
    assert ids_of(divide(table, 3, "parts", 8, True)) != shuffled
    assert flat(shuffled) != table["prompt_id"].to_pylist()


def test_without_shuffling_the_order_of_the_file_stays(table: pa.Table) -> None:
    assert flat(ids_of(divide(table, 3, "parts", 7, False))) == table["prompt_id"].to_pylist()


def test_all_gives_each_iteration_every_prompt_in_an_order_of_its_own(table: pa.Table) -> None:
    first, second = ids_of(divide(table, 2, "all", 7, True))
    assert sorted(first) == sorted(second) == sorted(table["prompt_id"].to_pylist())
    assert first != second


def test_fewer_prompts_than_iterations_is_refused(table: pa.Table) -> None:
    with pytest.raises(DataError, match=r"2 prompts for 3 iterations with prompts\.use: parts; at least 3 needed"):
        divide(table, 3, "parts", 7, True, limit=2)
    assert [t.num_rows for t in divide(table, 3, "all", 7, True, limit=2)] == [2, 2, 2]


def test_a_list_gives_one_source_to_each_iteration(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{i}.jsonl", *[f'"{i} {j}"' for j in range(4)]) for i in range(2)]
    tables, results = ingest_iterations(PromptsConfig(source=sources), Words(), 10, iterations=2, seed=1)
    assert [sorted(m[0]["content"] for m in t["messages"].to_pylist()) for t in tables] == [
        [f"{i} {j}" for j in range(4)] for i in range(2)
    ]
    assert [result.counts["used"] for result in results] == [4, 4]
    with pytest.raises(DataError, match="lists 2 sources for 3 iterations"):
        ingest_iterations(PromptsConfig(source=sources), Words(), 10, iterations=3, seed=1)


def test_one_source_is_divided_over_the_iterations(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", *[f'"{i}"' for i in range(5)])
    tables, results = ingest_iterations(PromptsConfig(source=source), Words(), 10, iterations=2, seed=1)
    assert [t.num_rows for t in tables] == [2, 3]
    assert len(results) == 1


def test_shards_hold_all_rows_in_order_and_nothing_of_each_other(table: pa.Table) -> None:
    pieces = shards(table, 33)
    assert [piece.num_rows for piece in pieces] == [33, 33, 33, 1]
    assert pa.concat_tables(pieces).equals(table)
    # Pickling a slice would pickle the whole table.
    assert len(pickle.dumps(pieces[3])) < len(pickle.dumps(table.slice(99))) / 3


# Real and random data


def test_805_real_instructions_come_through_unchanged() -> None:
    folder = os.environ.get("KUMITE_TEST_DATA")
    path = Path(folder or "") / "alpaca_eval" / "instructions.parquet"
    if not folder or not path.is_file():
        pytest.skip("KUMITE_TEST_DATA does not name a folder with alpaca_eval/instructions.parquet")
    result = take(str(path), max_prompt_tokens=10_000)
    assert contents(result) == pq.read_table(path, columns=["instruction"])["instruction"].to_pylist()
    assert len(contents(result)) == len(set(result.table["prompt_id"].to_pylist())) == 805


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "role", "content", "from", "value", "system"]), inner)
    ),
)
lines = st.one_of(
    st.binary(max_size=40),
    json_like.map(lambda value: json.dumps(value).encode()),
    json_like.map(lambda value: json.dumps({"prompt": value}).encode()),
    st.sampled_from([b'"\\ud800"', b"[" * 9999, b"\xef\xbb\xbf{}", b'{"prompt": "x"}', b'"\\u0000"', b"\r"]),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(lines, max_size=5))
def test_any_bytes_become_prompts_or_a_data_error(tmp_path: Path, suffix: str, rows: list[bytes]) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(
        {".json": b"[" + b",".join(rows) + b"]", ".csv": b"prompt\n" + b"\n".join(rows)}.get(suffix, b"\n".join(rows))
    )
    for policy in ("error", "drop"):
        try:
            result = take(str(path), on_malformed=policy)
        except DataError as error:
            str(error).encode("utf-8")
            continue
        assert result.counts["rows"] == result.table.num_rows + len(result.dropped)
        for text in result.table["prompt_text"].to_pylist():
            assert "\0" not in text


@given(st.text(st.characters(categories=None, exclude_categories=["Cs"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_text_that_can_be_stored_survives_json_and_arrow(tmp_path: Path, text: str) -> None:
    source = write(tmp_path / "p.jsonl", {"prompt": text}, {"prompt": "other"})
    kept = contents(take(source, on_malformed="drop"))
    assert kept == (["other"] if "\0" in text or not text.strip() else [text, "other"])
