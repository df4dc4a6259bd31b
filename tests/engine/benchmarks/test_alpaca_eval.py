"""AlpacaEval over a small world: what is asked, what counts, and files that alpaca_eval's own code reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from actors.fakes import FakeChat, FakeGenerator
from cluster.evaluation.candidates import read_sources
from cluster.evaluation.evaluation import Evaluation
from engine.benchmarks import benchmarks
from engine.benchmarks.alpaca_eval.benchmark import AlpacaEval
from engine.benchmarks.alpaca_eval.files import head_to_head, read_outputs
from engine.benchmarks.alpaca_eval.items import preference, with_baseline
from engine.benchmarks.base import BenchmarkTables
from engine.config.benchmarks import AlpacaEvalConfig
from engine.config.evaluate import EvaluateConfig
from engine.config.run import RunConfig
from engine.errors import ConfigError, DataError, KumiteError
from engine.schema import BENCHMARK_RESULTS, COMPLETIONS, SCORES
from engine.store.reader import Policy, RunReader
from tests.engine.benchmarks.alpaca_world import INSTRUCTIONS, RULE, section, write_json, write_known
from tests.runs import PROMPTS, fake_config, play
from tests.tables import shard

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def alpaca_config(folder: Path, **changes: Any) -> RunConfig:
    values = {"annotator": RULE, "benchmarks": {"alpaca_eval": section(folder, **changes)}}
    return fake_config(folder, iterations=1, shard_size=5, evaluation={"prompts": PROMPTS, "scorer": RULE} | values)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return alpaca_config(tmp_path_factory.mktemp("alpaca"))


@pytest.fixture(scope="module")
def run(config: RunConfig, memory_is_durable_enough: None) -> RunReader:
    return RunReader(play(config))


def only(config: RunConfig | EvaluateConfig) -> AlpacaEval:
    (benchmark,) = benchmarks(config)
    assert isinstance(benchmark, AlpacaEval)
    return benchmark


def tables(run: RunReader, config: RunConfig, version: int) -> BenchmarkTables:
    return BenchmarkTables(run, only(config), version)


def results(run: RunReader, version: int) -> dict[str, dict[str, Any]]:
    stored = run.tables(version, "alpaca_eval_results", BENCHMARK_RESULTS)
    return {row["metric"]: row for table in stored for row in table.to_pylist()}


def rows(run: RunReader, version: int) -> list[dict[str, Any]]:
    return [row for table in run.tables(version, "alpaca_eval_scores", SCORES) for row in table.to_pylist()]


def test_each_version_is_compared_with_the_baseline_on_every_instruction(run: RunReader) -> None:
    for version in (0, 1):
        scored = rows(run, version)
        assert [row["messages"][0]["content"] for row in scored] == [item["instruction"] for item in INSTRUCTIONS]
        assert [row["completions"][1] for row in scored] == [item["output"] for item in INSTRUCTIONS]
        wins = [1 / (1 + math.exp(b.count("a") - a.count("a"))) for a, b in (row["completions"] for row in scored)]
        assert results(run, version)["win_rate"]["value"] == pytest.approx(100 * np.mean(wins))


def test_every_version_answers_with_the_same_seeds(run: RunReader) -> None:
    first, second = (
        [row["seeds"] for t in run.tables(v, "alpaca_eval_completions", COMPLETIONS) for row in t.to_pylist()]
        for v in (0, 1)
    )
    assert first == second


def test_answers_that_are_cut_or_empty_are_counted(run: RunReader) -> None:
    found, scored = results(run, 1), rows(run, 1)
    assert found["truncated"]["value"] == sum(row["finish_reasons"][0] == "length" for row in scored) > 0
    assert found["empty"]["value"] == sum(row["completions"][0] == "" for row in scored) > 0
    assert found["missing"]["value"] == 0


def test_the_policy_is_asked_as_the_section_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    generate = FakeGenerator.generate

    def listening(self: FakeGenerator, prompts: pa.Table, iteration: int, **how: Any) -> pa.Table:
        if how.get("purpose") == "alpaca_eval":
            asked.append(how)
        return generate(self, prompts, iteration, **how)

    monkeypatch.setattr(FakeGenerator, "generate", listening)
    play(alpaca_config(tmp_path, temperature=0.2, limit=3))
    assert asked == [{"num_samples": 1, "temperature": 0.2, "purpose": "alpaca_eval", "max_new_tokens": 5}] * 2


@pytest.mark.filterwarnings("ignore")
def test_alpaca_evals_own_code_computes_the_same_numbers_from_the_files(
    run: RunReader, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    for name, text in only(config).files(tables(run, config, 1), "run-1").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    section = config.benchmarks.alpaca_eval
    assert section is not None
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **which: section.gamed)
    annotations = pd.read_json(tmp_path / "annotations.json")
    with sklearn.config_context():
        theirs = glm_winrate.get_length_controlled_winrate(annotations, save_weights_dir=None)
    outputs = pd.read_json(tmp_path / "model_outputs.json")
    theirs["avg_length"] = int(outputs["output"].str.len().mean())
    board = pd.read_csv(tmp_path / "leaderboard.csv", index_col=0)
    assert board.index.tolist() == ["run-1"]
    assert board.loc["run-1", "mode"] == "community"
    official = pd.read_csv(Path(glm_winrate.__file__).parents[1] / "leaderboards/data_AlpacaEval_2/"
                           "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv", index_col=0)  # fmt: skip
    assert board.columns.tolist() == official.columns.tolist()
    assert theirs.keys() <= set(board.columns)
    for name, value in theirs.items():
        assert board.loc["run-1", name] == pytest.approx(value, abs=1e-9), name
    found = results(run, 1)
    assert found["length_controlled_winrate"]["value"] == pytest.approx(theirs["length_controlled_winrate"], abs=1e-9)
    assert found["length_controlled_winrate"]["stderr"] == pytest.approx(theirs["lc_standard_error"], abs=1e-9)
    weights = pd.read_csv(tmp_path / "weights/length_controlled_winrate/baseline_letters.csv", index_col=0)
    assert weights.index.tolist() == ["run-1", "letters"]


def test_head_to_head_is_alpaca_evals_on_draws_missing_verdicts_and_near_draws() -> None:
    import pandas as pd
    from alpaca_eval.metrics import get_winrate

    preferences = [1.0, 2.0, 1.5, 1.5, 1.4999999, 1.7, np.nan, 1.2]
    theirs = get_winrate(pd.DataFrame({"preference": preferences}))
    ours = head_to_head(preferences)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_a_preference_is_the_mean_of_both_orders_and_one_order_counts_alone() -> None:
    assert preference([[0.0, 3.0], [-1.0, 0.0]]) == pytest.approx(1 + 1 / (1 + math.exp(-2)))
    assert preference([[0.0, 1.0], [1.0, 0.0]]) == 1.5
    assert preference([[0.0, math.nan], [-1.0, 0.0]]) == pytest.approx(1 + 1 / (1 + math.exp(-1)))
    assert math.isnan(preference([[0.0, math.nan], [math.nan, 0.0]]))


def test_a_judge_that_never_gives_a_verdict_is_counted_and_no_number_is_made_up(
    run: RunReader, config: RunConfig
) -> None:
    class Silent(BenchmarkTables):
        def of(self, stage: str, schema: pa.Schema) -> Any:
            for table in super().of(stage, schema):
                nothing = [[[0.0, math.nan], [math.nan, 0.0]]] * table.num_rows
                column = pa.array(nothing, schema.field("pair_logits").type)
                yield table.set_column(table.schema.get_field_index("pair_logits"), "pair_logits", column)

    silent = Silent(run, only(config), 1)
    found = {result.metric: result for result in only(config).results(silent)}
    assert math.isnan(found["win_rate"].value)
    assert "12 without a verdict" in found["win_rate"].note
    assert math.isnan(found["length_controlled_winrate"].value)
    assert "0 instructions with a verdict" in found["length_controlled_winrate"].note
    assert json.loads(only(config).files(silent, "m")["annotations.json"])[0]["preference"] is None


def test_white_space_around_an_answer_is_not_judged_or_measured() -> None:
    answers = shard(COMPLETIONS, [1], completions=[["  two words \n"]], dataset_completions=[["base"]])
    both = with_baseline(answers)
    assert both["completions"].to_pylist() == [["two words", "base"]]
    assert both["num_from_policy"].to_pylist() == [1]


def test_the_local_length_control_has_its_own_name_and_its_formula_beside_it(tmp_path: Path) -> None:
    changes = {"length_controlled": "local", "known": write_known(tmp_path / "results")}
    config = alpaca_config(tmp_path, **changes)
    run = RunReader(play(config))
    found = results(run, 1)
    assert "length_controlled_winrate" not in found
    assert "not AlpacaEval's formula" in found["length_controlled_local"]["note"]
    files = only(config).files(tables(run, config, 1), "m")
    assert files["leaderboard.csv"].splitlines()[1].endswith(",,"), "its columns are for the official formula"


def test_published_weights_give_win_rates_over_other_models(tmp_path: Path) -> None:
    names = "np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)"
    weights = tmp_path / "weights.csv"
    weights.write_text(f",{names}\nletters,0,0,0\nstrong,-1,0.5,9\n")
    run = RunReader(play(alpaca_config(tmp_path, weights=str(weights), opponents=["strong", "letters"])))
    found = results(run, 1)
    official = found["length_controlled_winrate"]["value"]
    assert found["length_controlled_winrate/letters"]["value"] == pytest.approx(official)
    assert found["length_controlled_winrate/strong"]["value"] < 1
    with pytest.raises(ConfigError, match="strng \\(nearest: strong\\)"):
        inputs(alpaca_config(tmp_path, weights=str(weights), opponents=["strng"]))


def inputs(config: RunConfig) -> list[pa.Table]:
    return only(config).inputs(FakeChat())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_prompt_tokens": 15}, "12 of 12 instructions"),
        ({"instructions": "missing.json"}, "no such file"),
        ({"gamed": "ORG/NAME/df_gamed.csv"}, "hf download ORG/NAME df_gamed.csv"),
    ],
)
def test_an_input_that_cannot_be_used_is_named_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(KumiteError, match=message):
        inputs(alpaca_config(tmp_path, **changes))


def test_a_baseline_may_come_from_a_file_of_its_own(tmp_path: Path) -> None:
    answers = [{"instruction": i["instruction"], "output": "zz", "generator": "sleeper"} for i in INSTRUCTIONS]
    baseline = write_json(tmp_path / "model_outputs.json", answers)
    (first, *_) = inputs(alpaca_config(tmp_path, baseline=baseline, limit=4))
    assert first["dataset_completions"].to_pylist() == [["zz"]] * 4
    assert set(first["baseline"].to_pylist()) == {"sleeper"}


def test_a_file_of_answers_is_judged_without_a_model(tmp_path: Path) -> None:
    answers = [{"instruction": i["instruction"], "output": i["output"] + "a"} for i in reversed(INSTRUCTIONS)]
    path = write_json(tmp_path / "sharper.json", answers)
    (source,) = read_sources([path], tmp_path)
    values = {"name": "eval", "output": str(tmp_path), "cluster": {"backend": "local"}} | source.config
    evaluation = {"annotator": RULE, "benchmarks": {"alpaca_eval": section(tmp_path, limit=10)}}
    config = EvaluateConfig.model_validate(values | {"evaluation": evaluation})
    with Evaluation(source, config, Console(quiet=True)) as done:
        assert done.run() == []
    found = results(RunReader(done.folder), 0)
    assert found["win_rate"]["value"] == pytest.approx(100 / (1 + math.exp(-1)))
    assert found["win_rate"]["num"] == 10
    assert math.isnan(found["truncated"]["value"])
    (candidate,) = source.candidates
    known = done.tables(only(config), candidate).provenance()
    assert known["sampling"] == "not known, the answers come from a file"
    assert "seeds" not in known


def test_all_that_is_wrong_with_a_file_of_answers_is_told_at_once(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "1", "generator": "m"},
        {"instruction": "x", "output": "2", "generator": "n"},
    ]
    with pytest.raises(DataError) as error:
        read_outputs(write_json(tmp_path / "one.json", rows), ["a", "b"])
    for part in ("no answer to 'b'", "an answer to another instruction: 'x'", "answers of 2 models: 'm', 'n'"):
        assert part in str(error.value)
    rows = [{"instruction": "a"}, {"instruction": "a", "output": 3}]
    rows += [{"instruction": "b", "output": ""}, {"instruction": "b", "output": "again"}]
    with pytest.raises(DataError) as error:
        read_outputs(write_json(tmp_path / "two.json", rows), ["a", "b"])
    for part in ("3 of 4 rows", "two.json:1: no output; found: instruction", "holds a number", "a second time"):
        assert part in str(error.value)
    fine = read_outputs(write_json(tmp_path / "three.json", rows[2:3]), ["b"], others=["c"])
    assert (fine.generator, fine.outputs) == ("three", [""])


def test_provenance_names_what_a_number_depends_on(run: RunReader, config: RunConfig) -> None:
    known = only(config).provenance(tables(run, config, 1))
    assert known.keys() >= {"instructions", "baseline", "judge", "sampling", "seeds", "length control"}
    assert known["instructions"].startswith("12 of ")
    assert known["judge"] == rows(run, 1)[0]["scorer"]


@pytest.mark.parametrize(
    "values",
    [
        {"length_controlled": "local"},
        {"known": "results"},
        {"opponents": ("m",)},
        {"weights": "w.csv", "opponents": ("m",), "length_controlled": "none"},
    ],
)
def test_keys_that_do_not_go_together_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        AlpacaEvalConfig(**values)


def test_answers_elsewhere_than_in_a_policy_have_its_digest(config: RunConfig, tmp_path: Path) -> None:
    answers = [{"instruction": i["instruction"], "output": "x"} for i in INSTRUCTIONS]
    policy = Policy(0, tmp_path, "d" * 64, [])
    tables = only(config).answers(Path(write_json(tmp_path / "a.json", answers)), inputs(config), policy)
    assert [t.num_rows for t in tables["alpaca_eval_completions"]] == [5, 5, 2]
    assert tables["alpaca_eval_completions"][0]["weights"][0].as_py() == "d" * 64
