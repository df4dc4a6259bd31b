"""RewardBench over small files, in a run, on its own, and on public preferences."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.fakes import FakeChat
from actors.scorers.builtin import build_scorer
from cluster.evaluation.candidates import scorer_alone
from cluster.evaluation.evaluation import Evaluation
from engine.benchmarks import benchmarks
from engine.benchmarks.base import BenchmarkTables
from engine.benchmarks.reward_bench.benchmark import (
    RewardBench,
    RewardBenchScores,
    card_results,
    pairs_of,
    published_results,
)
from engine.config.benchmarks import RewardBenchConfig
from engine.config.evaluate import EvaluateConfig
from engine.config.scorer import RuleConfig
from engine.errors import DataError
from engine.schema import BENCHMARK_RESULTS, COMPLETIONS, REWARD_BENCH_SCORES
from engine.store.run import RunStore
from tests.engine.benchmarks.mt_bench_world import write_jsonl
from tests.runs import PROMPTS, fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

RULE = {"kind": "rule", "function": "actors.fakes:utility"}
"""Counts the letters "a"."""
PAIRS = [
    {"prompt": "p1", "chosen": "aa", "rejected": "b", "subset": "alpacaeval-easy", "id": 0},
    {"prompt": "p2", "chosen": "bbb", "rejected": "a", "subset": "alpacaeval-easy", "id": 1},
    {"prompt": "p3", "chosen": "a", "rejected": "acc", "subset": "hep-cpp", "id": 0},
    {"prompt": "p3", "chosen": "aaa", "rejected": "b", "subset": "math-prm", "id": 5},
]
BEST_OF_4 = [
    {"prompt": "p1", "chosen": ["aaaa"], "rejected": ["a", "aa", "aaa"], "subset": "Focus", "id": "1"},
    {"prompt": "p2", "chosen": ["a"], "rejected": ["b", "a.", "c"], "subset": "Math", "id": "2"},
    {"prompt": "p3", "chosen": ["aa"], "rejected": ["b", "c"], "subset": "Ties", "id": "ref:4"},
    {"prompt": "p3", "chosen": ["aa", "aaa"], "rejected": ["b", "c"], "subset": "Ties", "id": "tied:4"},
]


def length(messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """A judge that knows the longer answer from the shorter, and nothing else."""
    return [float(len(answer)) for answer in answers]


def rows_of(source: Path | str, rule: dict[str, Any] = RULE, **keys: Any) -> list[dict[str, Any]]:
    """Rows of REWARD_BENCH_SCORES by a rule, without a run."""
    benchmark = RewardBench(RewardBenchConfig(source=str(source), **keys), "annotator", 3)
    scorer, stage = build_scorer(RuleConfig(**rule)), RewardBenchScores("annotator")
    scorer.start()
    rows = []
    for table in benchmark.inputs(FakeChat()):
        scored = stage.finish(table, scorer.score(table.select(COMPLETIONS.names)))
        assert scored.schema.equals(REWARD_BENCH_SCORES)
        rows += scored.to_pylist()
    return rows


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {result.metric: result.value for result in [*published_results(rows), *card_results(rows)]}


def test_version_1_has_sections_and_a_tie_counts_nothing(tmp_path: Path) -> None:
    found = metrics(rows_of(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)))
    assert found["subset/alpacaeval-easy"] == 0.5
    assert found["subset/hep-cpp"] == 0.0, "a tie of a scorer that is no judge"
    assert found["section/Chat"] == 0.5
    assert found["section/Reasoning"] == pytest.approx(984 / 1148)
    assert found["score"] == pytest.approx((0.5 + 984 / 1148) / 2)
    assert found["accuracy"] == pytest.approx(2.5 / 4), "the card counts a tie half"
    assert [found[f"verdicts/{verdict}"] for verdict in ("chosen", "rejected", "tie", "none")] == [2, 1, 1, 0]
    assert found["consistency"] == 1.0 and found["position_bias"] == 0.0


def test_version_2_has_best_of_4_and_ties(tmp_path: Path) -> None:
    rows = rows_of(write_jsonl(tmp_path / "best.jsonl", BEST_OF_4))
    found = metrics(rows)
    assert found["subset/Focus"] == 1.0
    assert found["subset/Math"] == 0.5, "two of four are equally good"
    # Ties: right answers 2 and 3, wrong ones 0: between 2, within 1; with the reference alone between 2.
    assert found["subset/Ties"] == pytest.approx(0.30 + 0.30 + 0.20 + 0.20 + 0.01 * math.tanh(2 / 1 - 1))
    assert found["score"] == pytest.approx(np.mean([1.0, 0.5, found["subset/Ties"]]))
    assert sum(1 for row in rows for _ in pairs_of(row)) == 3 + 3 + 2 + 4


def test_the_place_of_the_right_answer_is_drawn_and_remembered(tmp_path: Path) -> None:
    many = [{"prompt": f"p{n}", "chosen": "right", "rejected": "wrong"} for n in range(200)]
    rows = rows_of(write_jsonl(tmp_path / "many.jsonl", many))
    firsts = sum(row["is_chosen"] == [True, False] for row in rows)
    assert 70 < firsts < 130
    assert {row["lengths"][row["is_chosen"].index(True)] for row in rows} == {5}
    again = rows_of(tmp_path / "many.jsonl")
    assert [row["is_chosen"] for row in again] == [row["is_chosen"] for row in rows]


def test_a_few_items_of_each_subset_are_enough_for_a_trial(tmp_path: Path) -> None:
    rows = rows_of(write_jsonl(tmp_path / "pairs.jsonl", PAIRS), items_per_subset=1)
    assert [(row["subset"], row["item_id"]) for row in rows] == [
        ("alpacaeval-easy", "0"),
        ("hep-cpp", "0"),
        ("math-prm", "5"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected holds null; expected a text or a list of texts"),
        ({"prompt": "p", "chosen": [], "rejected": ["b"]}, "chosen holds a list; expected a text"),
        ({"chosen": "a", "rejected": "b"}, "has no column prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": ["b", "a"]}, "chosen and rejected hold the same answer, 'a'"),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "Ties", "id": "7"}, "id '7'; expected \"ref:\""),
        (
            {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "Ties", "id": "tied:7"},
            "tied:7 has 1 chosen answers; expected one for ref and several for tied",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        rows_of(write_jsonl(tmp_path / "bad.jsonl", [PAIRS[0], row]))
    assert "bad.jsonl:2: " in str(error.value) and words in str(error.value)


def test_a_repeated_ties_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ids of the subset ties occur more than once: ref:4"):
        rows_of(write_jsonl(tmp_path / "twice.jsonl", [BEST_OF_4[2], BEST_OF_4[2]]))


def judged_row(
    matrix: list[list[float]], verdicts: list[tuple[int, int, float]], scores: tuple[float, ...] = ()
) -> dict:
    said = [{"answer": a, "other": b, "text": "", "value": value} for a, b, value in verdicts]
    return {
        "item_id": "0", "subset": "all", "is_chosen": [True, False], "lengths": [3, 4], "pair_logits": matrix,
        "scores": list(scores), "num_truncated": 0, "verdicts": said, "scorer": "judge",
    }  # fmt: skip


def test_a_judge_that_never_gives_a_verdict_is_counted_and_stands_at_chance() -> None:
    none = math.nan
    rows = [judged_row([[0.0, none], [none, 0.0]], [(0, 1, none), (1, 0, none)]) for _ in range(4)]
    results = {result.metric: result for result in [*published_results(rows), *card_results(rows)]}
    assert results["score"].value == 0.5
    assert results["subset/all"].note == "4 of 4 without a verdict count as chance"
    assert results["verdicts/none"].value == 4
    assert math.isnan(results["accuracy"].value) and results["accuracy"].note == "no pair has a verdict"


def test_an_order_that_a_judge_did_not_ask_is_not_a_missing_verdict() -> None:
    none = math.nan
    (one,) = pairs_of(judged_row([[0.0, 2.0], [none, 0.0]], [(0, 1, 2.0)]))
    assert (one.chosen_first, one.rejected_first) == (2.0, None)
    (other,) = pairs_of(judged_row([[0.0, 2.0], [none, 0.0]], [(0, 1, 2.0), (1, 0, none)]))
    assert other.rejected_first is not None and math.isnan(other.rejected_first)


def test_a_position_biased_judge_has_it_on_its_card() -> None:
    rows = [judged_row([[0.0, 3.0], [3.0, 0.0]], [(0, 1, 3.0), (1, 0, 3.0)]) for _ in range(3)]
    found = metrics(rows)
    assert found["consistency"] == 0.0
    assert found["position_bias"] == pytest.approx(1 / (1 + math.exp(-3)) - 0.5)
    assert found["verdicts/tie"] == 3 and found["score"] == 0.5


def test_in_a_run_the_annotator_is_measured_once_for_all_versions(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    evaluation = {"prompts": PROMPTS, "scorer": RULE, "benchmarks": {"reward_bench": {"source": source}}}
    config = fake_config(tmp_path, iterations=1, evaluation=evaluation)
    folder = play(config)
    (benchmark,) = benchmarks(config)
    with RunStore(folder) as store:
        assert store.owners("reward_bench_results") == [0]
        (table,) = store.tables(0, "reward_bench_results", BENCHMARK_RESULTS)
        files = benchmark.files(BenchmarkTables(store, benchmark, 0), "policy")
        facts = benchmark.provenance(BenchmarkTables(store, benchmark, 0))
    assert dict(zip(table["metric"].to_pylist(), table["value"].to_pylist(), strict=True))["accuracy"] == 0.625
    card = json.loads(files["judge_card.json"])
    assert card["scorer"].startswith("rule:") and facts["judge"] == card["scorer"]
    assert (
        card["confusion"]["chosen"]
        == card["confusion"]["rejected"]
        == {"chosen": 2, "rejected": 1, "tie": 1, "none": 0}
    )
    assert len(card["calibration"]) == 10
    lines = list(csv.DictReader(io.StringIO(files["verdicts.csv"])))
    assert [line["verdict"] for line in lines] == ["chosen", "rejected", "tie", "chosen"]
    assert facts["items"].startswith("4 of pairs.jsonl, sha256 ")


def test_kumite_eval_measures_a_scorer_without_any_policy(tmp_path: Path) -> None:
    source = scorer_alone()
    values = {"annotator": RULE, "benchmarks": {"reward_bench": {"source": write_jsonl(tmp_path / "p.jsonl", PAIRS)}}}
    config = EvaluateConfig.model_validate(
        {**source.config, "output": str(tmp_path), "cluster": {"backend": "local"}, "evaluation": values}
    )
    with Evaluation(source, config, Console(quiet=True)) as evaluation:
        assert evaluation.run() == []
        assert evaluation.store.owners("reward_bench_results") == [0]


def test_a_length_rule_on_public_preferences_has_a_large_length_bias(public_data: Path, tmp_path: Path) -> None:
    """The annotations of AlpacaEval: the annotator prefers the answer of a model or the reference."""
    folder = public_data / "alpaca_eval"
    references = {row["instruction_id"]: row for row in pq.read_table(folder / "instructions.parquet").to_pylist()}
    annotations = pq.read_table(folder / "annotations.parquet")
    models = annotations["model"].combine_chunks().dictionary_decode()
    wanted = pa.array([name == models[0].as_py() for name in models.to_pylist()])
    rows = []
    for row in annotations.filter(wanted).to_pylist():
        instruction = references[row["instruction_id"]]
        answers = [row["output"], instruction["reference_output"]]
        if row["preference"] != 0.5 and answers[0] != answers[1]:
            chosen, rejected = answers if row["preference"] > 0.5 else answers[::-1]
            rows.append(
                {"prompt": instruction["instruction"], "chosen": chosen, "rejected": rejected, "subset": row["model"]}
            )
    scored = rows_of(write_jsonl(tmp_path / "alpaca.jsonl", rows), {"kind": "rule", "function": f"{__name__}:length"})
    found = metrics(scored)
    longer = np.array([np.sign(len(row["chosen"]) - len(row["rejected"])) for row in rows])
    assert len(rows) > 500
    assert found["accuracy"] == pytest.approx(((1 + longer) / 2).mean())
    assert found["length_bias"] == 1.0 and found["longer_preferred"] == 1.0
    assert found["verdicts/tie"] == (longer == 0).sum()
