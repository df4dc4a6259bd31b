"""Benchmark prompts that were trained on: as a whole, by n-grams, and what does not count."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.benchmarks.contamination import Overlap, fact_name, find_overlap, from_record, words
from engine.schema import PROMPTS
from engine.store.reader import RunReader
from tests.engine.benchmarks.alpaca_world import RULE, section, write_json
from tests.runs import PROMPTS as SMOKE
from tests.runs import fake_config, play
from tests.tables import shard

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def prompts(*texts: str) -> pa.Table:
    """A table of one user turn per text, with ids p0, p1, ..."""
    return shard(PROMPTS, [0] * len(texts), messages=[[{"role": "user", "content": text}] for text in texts])


def overlap(trained: list[str], *asked: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = find_overlap([prompts(text) for text in trained], [prompts(*asked)])
    return found.exact, found.similar


def test_a_prompt_that_differs_in_case_punctuation_and_spaces_alone_is_the_same() -> None:
    assert overlap(["What is 2 + 2 ?"], "what   is: 2+2", "What is 2 + 3?") == (("p0",), ())
    assert words("Ｆｕｌｌ-width, ﬁne!") == ["full", "width", "fine"]


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    trained = [f"Before it {THIRTEEN} and after it"]
    assert overlap(trained, f"Else {THIRTEEN}. More") == ((), ("p0",))
    assert overlap(trained, f"Else {THIRTEEN.removesuffix('thirteen')} other words") == ((), ())


def test_a_shorter_prompt_is_compared_by_eight_words_and_a_very_short_one_as_a_whole_alone() -> None:
    trained = [f"Before it {THIRTEEN} and after it"]
    assert overlap(trained, "one two three four five six seven eight", "two three four") == ((), ("p0",))
    assert overlap(["two three four"], "two three four") == (("p0",), ())


def test_words_that_many_training_prompts_share_do_not_count() -> None:
    template = "Below is an instruction that describes a task, write a response to it:"
    asked = f"{template} sing"
    assert overlap([f"{template} {n}" for n in range(10)], asked) == ((), ("p0",))
    assert overlap([f"{template} {n}" for n in range(11)], asked) == ((), ())


def test_only_what_the_user_says_is_compared() -> None:
    said = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": THIRTEEN}]
    trained = shard(PROMPTS, [0], messages=[said])
    assert find_overlap([trained], [prompts(THIRTEEN)]).similar == ()


def test_an_overlap_is_recorded_as_it_is() -> None:
    found = Overlap(3, 7, ("p0",), ("p1",))
    assert from_record(found.record) == found
    assert from_record(None) is None
    assert str(found) == (
        "1 of 3 prompts are among the 7 training prompts, 1 more share 13 (8 if shorter) words in a row with one"
    )


@pytest.mark.usefixtures("memory_is_durable_enough")
def test_a_run_records_which_benchmark_prompts_it_trains_on(tmp_path: Path) -> None:
    clean = play(fake_config(tmp_path / "clean"))
    trained = next(RunReader(clean).tables(0, "prompts", PROMPTS))["messages"][0][0]["content"].as_py()
    rows = [{"instruction": text, "output": "b"} for text in (trained, "Something else.")]
    values = section(tmp_path, instructions=write_json(tmp_path / "i.json", rows), length_controlled="none")
    evaluation = {"prompts": SMOKE, "scorer": RULE, "benchmarks": {"alpaca_eval": values | {"max_prompt_tokens": 900}}}
    run = RunReader(play(fake_config(tmp_path / "run", iterations=1, evaluation=evaluation)))
    recorded = from_record(run.recorded(fact_name("alpaca_eval")))
    assert recorded is not None
    assert (recorded.num_prompts, recorded.num_training, len(recorded.exact)) == (2, 8, 1)
