"""`kumite export --what preferences`: what `datasets` opens, what the columns hold, what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from actors.fakes import END, FakeChat
from cluster.commands.cli import main
from cluster.products import preference_set
from cluster.products.preference_rows import Layout, Source, training_rows
from engine.algorithms.preference import ESTIMATORS
from engine.config.prompts import PromptsConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import ingest
from engine.schema import HELDOUT_WIN_RATES, SCORES, SELECTED
from engine.store.reader import RunReader
from tests.engine.loop.test_judged_run import POINTS, SELF
from tests.runs import fake_config, finished
from tests.tables import rated, scored

ROOT = Path(__file__).parents[3]
PAIRS = {"source": str(ROOT / "recipes/configs/smoke_preferences.jsonl"), "use": "all"}
DEMONSTRATIONS = {"source": str(ROOT / "recipes/configs/smoke_demonstrations.jsonl"), "use": "all"}
SHORT: dict[str, Any] = {"iterations": 1, "evaluation": None}
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Plays a run of the fake policy with these changes of its config, once."""
    runs: dict[str, Path] = {}

    def played(**changes: Any) -> Path:
        if str(changes) not in runs:
            runs[str(changes)] = finished(fake_config(tmp_path_factory.mktemp("run"), **changes))
        return runs[str(changes)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield played


@pytest.fixture(autouse=True)
def quick_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_is_durable_enough: None) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def exported(run: Path, folder: Path, *options: str) -> datasets.DatasetDict:
    assert main(["export", str(run), str(folder), "--what", "preferences", *options]) == 0
    return datasets.load_dataset(str(folder))


def script_probabilities(logits: list[list[float]]) -> list[list[float]]:
    """rank.py and compute_prob.py of SPPO: s_i = mean_j (L_ij - L_ji), P_ij = sigmoid(s_i - s_j)."""
    k = len(logits)
    scores = [sum(logits[i][j] - logits[j][i] for j in range(k)) / k for i in range(k)]
    return [[1 / (1 + math.exp(scores[j] - scores[i])) for j in range(k)] for i in range(k)]


def test_datasets_opens_the_folder_without_code_and_without_a_network(run: Run, tmp_path: Path) -> None:
    data = exported(run(), tmp_path / "set", "--license", "cc-by-4.0", "--language", "en")
    assert list(data) == ["train_iteration_1", "train_iteration_2", "test_iteration_1", "test_iteration_2"]
    store = RunReader(run())
    for t in (0, 1):
        assert data[f"train_iteration_{t + 1}"].num_rows == store.counts(t, "selected")["rows"] > 0
    card = DatasetCard((tmp_path / "set/README.md").read_text())
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en"])
    assert [c["split"] for c in card.data.configs[0]["data_files"]] == list(data)
    assert data["train_iteration_1"].features.arrow_schema == data["test_iteration_2"].features.arrow_schema
    # TRL asks for these types by name.
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    assert all(data["train_iteration_1"].features[name] == datasets.List(message) for name in ("prompt", "chosen"))


def test_the_columns_of_sppo_are_what_its_scripts_compute(run: Run, tmp_path: Path) -> None:
    data = exported(run(), tmp_path / "set", "--estimator", "bt_aggregate")["train_iteration_1"]
    for row in data:
        k, logits, answers = len(row["pair_logits"]), row["pair_logits"], row["all_generated_responses"]
        expected = script_probabilities(logits)
        best, worst = answers.index(row["chosen"][0]["content"]), answers.index(row["rejected"][0]["content"])
        assert row["probability"] == [pytest.approx(line) for line in expected]
        assert row["rm_scores"] == pytest.approx(
            [sum(logits[i][j] - logits[j][i] for j in range(k)) / k for i in range(k)]
        )
        assert best == row["rm_scores"].index(max(row["rm_scores"]))
        assert row["chosen_probs"] == pytest.approx(expected[best][worst])
        assert row["chosen_probs_win"] == pytest.approx(sum(expected[best]) / k)
        assert row["chosen_probs_lose"] == pytest.approx(sum(expected[worst]) / k)
        conversations = [[*row["prompt"], {"role": "assistant", "content": answer}] for answer in answers]
        assert [row[f"generate_{i}"] for i in range(k)] == conversations


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_the_targets_are_those_on_which_the_run_trained(run: Run, tmp_path: Path, estimator: str) -> None:
    folder = run(algorithm={"name": "sppo", "estimator": estimator}, **SHORT)
    data = exported(folder, tmp_path / "set")["train_iteration_1"]
    rows = [row for table in RunReader(folder).tables(0, "selected", SELECTED) for row in table.to_pylist()]
    targets = [[row["chosen_probs_win"], row["chosen_probs_lose"]] for row in data]
    assert targets == [pytest.approx(row["win_rate"]) for row in rows]


ALGORITHMS: dict[str, dict[str, Any]] = {
    "sppo": {},
    "sppo on all answers": {"algorithm": {"name": "sppo", "train_on": "all"}},
    "iterative dpo": {"algorithm": {"name": "dpo"}},
    "dpo on a data set": {"algorithm": {"name": "dpo", "data": "dataset"}, "prompts": PAIRS},
    "kto on pairs": {"algorithm": {"name": "kto"}, "prompts": PAIRS},
    "spac": {"algorithm": {"name": "spac"}, "prompts": PAIRS},
    "spin": {"algorithm": {"name": "spin"}, "prompts": DEMONSTRATIONS},
}


@pytest.mark.parametrize("changes", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_chosen_and_rejected_are_the_texts_of_the_tokens_that_trained(run: Run, tmp_path: Path, changes: dict) -> None:
    folder = run(**changes, **SHORT)
    assert main(["export", str(folder), str(tmp_path / "set"), "--what", "preferences"]) == 0
    (file,) = (tmp_path / "set/data").iterdir()
    tables = RunReader(folder).tables(0, "selected", SELECTED)
    rows = [row for table in tables for row in table.to_pylist()]
    for written, row in zip(pq.read_table(file).to_pylist(), rows, strict=True):
        rates, pair = row["win_rate"], [0, 1]
        if changes.get("algorithm", {}).get("train_on") == "all":
            pair = [rates.index(max(rates)), rates.index(min(rates))]
        for side, i in zip(("chosen", "rejected"), pair, strict=True):
            ids = FakeChat().answer_ids([], written[side][0]["content"])
            trained = [token for token in row["completion_token_ids"][i] if token != END]
            assert ids[: len(trained)] == trained
            assert len(ids) == len(trained) + 1 or len(trained) == 5  # cut by sampling.max_new_tokens
        assert written["prompt_id"] == row["prompt_id"]


def test_the_rows_name_their_policy_scorer_seeds_and_sampling(run: Run, tmp_path: Path) -> None:
    folder = run(algorithm={"name": "self_rewarding", "rejected_from": "start"}, scorer=POINTS, evaluation=None)
    store, data = RunReader(folder), exported(folder, tmp_path / "set")
    first, second = (data[f"train_iteration_{n}"][0] for n in (1, 2))
    assert [first["policy_id"], second["policy_id"]] == [store.recorded_digest(0), store.recorded_digest(1)]
    assert second["response_policy_ids"] == [store.recorded_digest(1)] * 3 + [store.recorded_digest(0)] * 3
    assert (first["generate_3"], second["iteration"], second["temperature"]) == (None, 2, 1.0)
    assert len(second["seeds"]) == 6 and second["judge_id"].startswith("judge:pointwise:policy:")
    assert second["all_rm_scores"] != second["rm_scores"]  # the judge's own scores, and what SPPO makes of the pairs
    replies = [verdict["text"] for verdict in second["verdicts"]]
    assert len(replies) >= 6 and all("Score: " in text for text in replies)


def test_a_test_split_holds_the_verdicts_on_held_out_prompts(run: Run, tmp_path: Path) -> None:
    folder = run()
    store, data = RunReader(folder), exported(folder, tmp_path / "set")["test_iteration_2"]
    judged = [row for table in store.tables(2, "heldout_win_rates", HELDOUT_WIN_RATES) for row in table.to_pylist()]
    decided = {row["prompt_id"]: row["win_rates"][row["opponents"].index(0)] for row in judged}
    assert [row["prompt_id"] for row in data] == [name for name, win in decided.items() if win != 0.5]
    for row in data:
        mine, start = row["all_generated_responses"]
        assert row["chosen"][0]["content"] == (mine if decided[row["prompt_id"]] == 1.0 else start)
        assert row["rejected"][0]["content"] == (start if decided[row["prompt_id"]] == 1.0 else mine)
        assert row["chosen"][0]["content"].count("a") > row["rejected"][0]["content"].count("a")
        assert row["response_policy_ids"] == [store.recorded_digest(2), store.recorded_digest(0)]
        assert (row["chosen_probs"], row["rm_scores"], row["generate_2"]) == (1.0, None, None)


def test_preferences_that_were_held_out_of_a_data_set_are_a_split_of_their_own(run: Run, tmp_path: Path) -> None:
    changes = {"algorithm": {"name": "dpo", "data": "dataset"}, "prompts": PAIRS, "iterations": 1}
    data = exported(run(evaluation={"preferences": {"share": 0.3}}, **changes), tmp_path / "set")
    assert list(data) == ["train_iteration_1", "test"]
    given = {row["prompt"]: row for row in map(json.loads, Path(PAIRS["source"]).read_text().splitlines())}
    prompts = [{row["prompt"][0]["content"] for row in data[name]} for name in ("train_iteration_1", "test")]
    assert not prompts[0] & prompts[1] and prompts[0] | prompts[1] == set(given)
    for row in data["test"]:
        pair = given[row["prompt"][0]["content"]]
        assert [row[side][0]["content"] for side in ("chosen", "rejected")] == [pair["chosen"], pair["rejected"]]
        assert (row["chosen_probs"], row["chosen_probs_win"], row["iteration"]) == (1.0, 1.0, None)


def test_an_answer_with_a_label_is_a_row_of_its_own(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "labels.jsonl"
    source.write_text("".join(f'{{"prompt": "{i}?", "completion": "a{i}", "label": {i % 2}}}\n' for i in range(8)))
    algorithm = {"name": "kto", "data": "labels"}
    data = exported(run(algorithm=algorithm, prompts={"source": str(source)}, **SHORT), tmp_path / "set")
    assert list(data) == ["train_iteration_1"]
    rows = {row["prompt"][0]["content"]: row for row in data["train_iteration_1"]}
    assert {prompt: row["label"] for prompt, row in rows.items()} == {f"{i}?": bool(i % 2) for i in range(8)}
    assert rows["3?"]["completion"] == [{"role": "assistant", "content": "a3"}]
    assert not {"chosen", "generate_0", "probability"} & set(data["train_iteration_1"].column_names)


def test_a_missing_verdict_is_null_and_never_a_number() -> None:
    nan = math.nan
    table = scored([[0, 2, nan], [-2, 0, nan], [nan, nan, 0]])
    unread = {"answer": 0, "other": 2, "text": "I cannot say.", "value": nan}
    table = table.set_column(
        table.column_names.index("verdicts"),
        SCORES.field("verdicts"),
        pa.array([[unread]], SCORES.field("verdicts").type),
    )
    row = {"prompt_id": "p0", "prompt_token_ids": [1], "completion_index": [0, 1],
           "completion_token_ids": [[0], [1]], "win_rate": [0.7, 0.3], "baseline": 0.5}  # fmt: skip
    source = Source(1, "start", 0, 1.0, 1.0, ESTIMATORS["pairwise"])
    rows = list(training_rows(table, pa.Table.from_pylist([row], SELECTED), source, labelled=False))
    (written,) = Layout(False, 3, True).table(rows).to_pylist()
    assert written["pair_logits"] == [[0, 2, None], [-2, 0, None], [None, None, 0]]
    assert (
        written["probability"][0][1] == pytest.approx(1 / (1 + math.exp(-2))) and written["probability"][0][2] is None
    )
    assert (written["chosen_probs_win"], written["rm_scores"]) == (None, [None] * 3)
    assert written["verdicts"][0] == {**unread, "value": None}


def test_scores_of_a_rating_judge_are_kept_beside_the_pairs() -> None:
    row = {"prompt_id": "p0", "prompt_token_ids": [1], "completion_index": [1, 0],
           "completion_token_ids": [[1], [0]], "win_rate": [1.0, 0.0], "baseline": 0.5}  # fmt: skip
    source = Source(1, "start", 0, 1.0, 1.0, ESTIMATORS["pairwise"])
    (written,) = training_rows(rated([1.0, 4.0]), pa.Table.from_pylist([row], SELECTED), source, labelled=False)
    assert (written["all_rm_scores"], written["rm_scores"]) == ([1.0, 4.0], [-3.0, 3.0])
    assert written["chosen"] == [{"role": "assistant", "content": "answer 1"}]


def test_our_own_ingest_reads_back_the_same_pairs_and_targets(run: Run, tmp_path: Path) -> None:
    data = exported(run(algorithm={"name": "sppo", "empty": "exclude"}, **SHORT), tmp_path / "set")["train_iteration_1"]
    prompts = PromptsConfig(source=str(tmp_path / "set"), split="train_iteration_1", shuffle=False)
    result = ingest(prompts, str(tmp_path / "set"), FakeChat(), 512, RequiredAnswers(2, 512, "test"))
    rows = result.table.to_pylist()
    assert [row["messages"] for row in rows] == [row["prompt"] for row in data]
    sides = [[row["chosen"][0]["content"], row["rejected"][0]["content"]] for row in data]
    assert [row["dataset_completions"] for row in rows] == sides
    rates = [[row["chosen_probs_win"], row["chosen_probs_lose"]] for row in data]
    assert [row["dataset_win_rates"] for row in rows] == rates


def cut(run: Path, tmp_path: Path, last: str) -> Path:
    """A copy of the run as it was right after the first record with `last` in it."""
    copy = Path(shutil.copytree(run, tmp_path / "unfinished"))
    lines = (copy / "manifest.jsonl").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if last in line)
    (copy / "manifest.jsonl").write_text("".join(lines[: end + 1]))
    return copy


def test_of_a_run_in_progress_the_complete_iterations_are_written(run: Run, tmp_path: Path, capsys) -> None:
    unfinished = cut(run(), tmp_path, '"iteration":1,"kind":"shard","of":"iteration","rows":2,"sha256"')
    data = exported(unfinished, tmp_path / "set")
    assert list(data) == ["train_iteration_1", "test_iteration_1"]
    assert "1 of 2 iterations are not complete" in capsys.readouterr().out
    assert "The run was not finished: of 2 iterations, 1 had all rows." in (tmp_path / "set/README.md").read_text()


def test_an_iteration_without_all_its_rows_is_refused_by_number(run: Run, tmp_path: Path, capsys) -> None:
    unfinished = cut(run(), tmp_path, '"stage":"completions"')
    arguments = ["export", str(unfinished), str(tmp_path / "set"), "--what", "preferences"]
    assert main(arguments) == 2
    assert "has no complete iteration yet" in capsys.readouterr().err
    assert main([*arguments, "--iterations", "1-2"]) == 2
    assert "has no rows of iteration 1, 2 yet; complete: none" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_damaged_table_is_refused_and_nothing_is_left_behind(run: Run, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(run(), tmp_path / "damaged"))
    path = sorted((copy / "tables/001/scores").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["export", str(copy), str(tmp_path / "set"), "--what", "preferences"]) == 2
    assert "scores of iteration 2 (or version 1), shard 3 is not what was committed" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["damaged"]


def test_nothing_is_overwritten_and_the_run_is_not_changed(run: Run, tmp_path: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in run().rglob("*") if path.is_file()}
    exported(run(), tmp_path / "set", "--iterations", "2")
    assert main(["export", str(run()), str(tmp_path / "set")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run().rglob("*") if path.is_file()} == before


def test_a_large_split_is_written_in_several_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exported(run(), tmp_path / "one")["train_iteration_1"].to_list()
    monkeypatch.setattr(preference_set, "FILE_BYTES", 1)
    parts = exported(run(), tmp_path / "parts")["train_iteration_1"].to_list()
    names = sorted(path.name for path in (tmp_path / "parts/data").glob("train_iteration_1-*"))
    assert names == [f"train_iteration_1-{i:05d}-of-00004.parquet" for i in range(4)]
    assert parts == whole


def test_the_card_names_files_without_their_folders_and_shows_every_text_as_itself(run: Run, tmp_path: Path) -> None:
    hostile = tmp_path / "*bold* <img src=x>.jsonl"
    shutil.copy(ROOT / "recipes/configs/smoke_prompts.jsonl", hostile)
    exported(run(prompts={"source": str(hostile), "use": "all"}, **SHORT), tmp_path / "set")
    card = (tmp_path / "set/README.md").read_text()
    assert "`*bold* <img src=x>.jsonl`, a local file" in card
    assert str(tmp_path) not in card and str(ROOT) not in card


def test_the_judge_of_the_card_is_the_scorer_of_the_run(run: Run, tmp_path: Path) -> None:
    exported(run(scorer=SELF, **SHORT), tmp_path / "set")
    assert r"Verdicts: by judge \(pairwise, the policy itself\)." in (tmp_path / "set/README.md").read_text()
