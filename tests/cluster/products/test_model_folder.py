"""`kumite export --what model` and `adapter`: the files, the card and its numbers, what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from ruamel.yaml import YAML

from actors.chat import Chat
from actors.fakes import letter_logps
from actors.tiny_policy import make_tiny_policy
from cluster.commands.cli import main
from cluster.products import results
from cluster.products.cards import Statement, base_model, is_hub_data
from cluster.products.papers import OF_ALGORITHM
from cluster.products.results import hub_data
from cluster.run.whole_models import read_config
from engine.algorithms import ALGORITHMS
from engine.benchmarks import benchmarks
from engine.benchmarks.base import BenchmarkTables
from engine.config.evaluate import EvaluateConfig
from engine.config.load import dump
from engine.errors import DataError
from engine.evaluation.gate import best_version
from engine.report.collect import IterationTables
from engine.schema import BENCHMARK_RESULTS
from engine.store.reader import Policy, RunReader
from engine.store.run import RunStore
from engine.store.weights import weights_digest
from tests.actors.learner.test_learner import load, token_logps, write_llama
from tests.actors.learner.test_lora import move, versions
from tests.engine.benchmarks.letters import Letters
from tests.runs import fake_config, play

NAN = math.nan
RULE = {"kind": "rule", "function": "actors.fakes:utility"}
PAIRS = str(Path(__file__).parents[3] / "recipes/configs/smoke_preferences.jsonl")
RESULTS = [
    # (benchmark, metric, value, stderr, note) of version 2
    ("alpaca_eval", "win_rate", 39.85, 1.44, ""),
    ("alpaca_eval", "lc_win_rate", NAN, NAN, "no `instruction_difficulty` | <b>given</b>"),
    ("lm_eval", "arc_challenge/acc_norm", 0.6519, 0.0139, ""),
    ("lm_eval", "gsm8k/exact_match", 0.75625, 0.0118, ""),
]


def commit_results(folder: Path, version: int, results: list[tuple[Any, ...]]) -> None:
    """As a benchmark leaves its results behind."""
    with RunStore(folder) as store:
        for benchmark in dict.fromkeys(result[0] for result in results):
            rows = [
                {"benchmark": name, "metric": metric, "value": value, "stderr": error, "low": NAN, "high": NAN,
                 "num": 805, "note": note}
                for name, metric, value, error, note in results
                if name == benchmark
            ]  # fmt: skip
            table = BENCHMARK_RESULTS.empty_table().from_pylist(rows, BENCHMARK_RESULTS)
            store.commit(version, f"{benchmark}_results", 0, table, BENCHMARK_RESULTS, of="version")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the fake policy with versions 0 to 2, held-out win rates, and results of two benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        folder = play(fake_config(tmp_path_factory.mktemp("measured"), name="mine"))
        commit_results(folder, 1, [("alpaca_eval", "win_rate", 35.98, 1.4, "")])
        commit_results(folder, 2, RESULTS)
        yield folder


@pytest.fixture(autouse=True)
def quick(memory_is_durable_enough: None) -> None:
    pass


def exported(run: Path, folder: Path, *options: str) -> tuple[Path, str]:
    """The exported folder and its card."""
    what = [] if "--what" in options else ["--what", "model"]
    assert main(["export", str(run), str(folder), *what, *options]) == 0
    return folder, (folder / "README.md").read_text(encoding="utf-8")


def test_the_folder_holds_the_version_and_nothing_else(measured: Path, tmp_path: Path) -> None:
    folder, _ = exported(measured, tmp_path / "model", "--version", "1")
    assert letter_logps(folder).tolist() == letter_logps(measured / "weights/001").tolist()
    assert weights_digest(folder) == RunReader(measured).recorded_digest(1)
    assert {path.name for path in folder.iterdir()} == {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}


class Whole(Letters):
    """A benchmark on its published data, all of it."""

    def __init__(self, name: str):
        self.name = name  # type: ignore[misc]

    def is_published(self, metric: str) -> bool:
        return True


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every benchmark ran on its published data."""
    names = ("alpaca_eval", "lm_eval", "ifeval")
    monkeypatch.setattr(results, "benchmarks", lambda config: [Whole(name) for name in names])


def test_the_model_index_holds_the_numbers_of_the_committed_tables(
    measured: Path, tmp_path: Path, published: None
) -> None:
    folder, text = exported(measured, tmp_path / "model", "--version", "2", "--repo", "me/mine-iter{version}")
    card = ModelCard(text)
    assert card.data.model_name == "mine-iter2"
    rate = IterationTables(RunReader(measured), read_config(measured).algorithm, 1).win_rate("start")
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert rate is not None and found == {
        ("held-out-prompts", "win_rate"): pytest.approx(rate.value, rel=1e-5),
        ("tatsu-lab/alpaca_eval", "win_rate"): 39.85,
        ("allenai/ai2_arc", "acc_norm"): 0.6519,
        ("openai/gsm8k", "exact_match"): 0.75625,
    }
    assert all(isinstance(r, EvalResult) and r.task_type == "text-generation" for r in card.data.eval_results)
    (entry,) = parse_eval_result_entries(YAML(typ="safe").load(folder / ".eval_results/kumite.yaml"))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 0.75625)


def test_numbers_on_other_data_or_a_part_of_it_are_not_filed_under_the_hubs_data_set(
    measured: Path, tmp_path: Path
) -> None:
    folder, text = exported(measured, tmp_path / "model", "--version", "2")
    entries = ModelCard(text).data.eval_results
    found = {(r.dataset_type, r.dataset_name, r.metric_type) for r in entries} - {
        ("held-out-prompts", "Held-out prompts of the run", "win_rate")
    }
    assert found == {
        ("alpaca_eval", "AlpacaEval, from files or in part", "win_rate"),
        ("arc_challenge", "ARC Challenge, from files or in part", "acc_norm"),
        ("gsm8k", "GSM8K, from files or in part", "exact_match"),
    }
    assert not (folder / ".eval_results").exists()


def test_what_says_how_a_benchmark_went_is_no_result_of_the_model(
    measured: Path, tmp_path: Path, published: None
) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    commit_results(run, 2, [("ifeval", "prompt_level_strict_acc", 0.5, NAN, ""), ("ifeval", "truncated", 7.0, NAN, "")])
    _, text = exported(run, tmp_path / "model", "--version", "2")
    assert {r.metric_type for r in ModelCard(text).data.eval_results if r.dataset_type == "google/IFEval"} == {
        "prompt_level_strict_acc"
    }
    assert "truncated" in text.partition("## IFEval")[2]


def test_the_tables_show_every_iteration_and_mark_this_one(measured: Path, tmp_path: Path) -> None:
    _, text = exported(measured, tmp_path / "model", "--version", "2", "--repo", "me/mine-iter{version}")
    first, second = (f"[me/mine-iter{v}](https://huggingface.co/me/mine-iter{v})" for v in (1, 2))
    alpaca = text.partition("## AlpacaEval")[2].partition("##")[0].split("\n")
    assert alpaca[2] == r"| model | win\_rate | lc\_win\_rate |"
    assert alpaca[4:6] == [f"| {first} | 35.98 ± 1.40 | – |", f"| **{second}** (this model) | 39.85 ± 1.44 | – |"]
    assert r"* lc\_win\_rate: no \`instruction\_difficulty\` \| \<b\>given\</b\>" in alpaca
    siblings = [
        line for line in text.split("\n") if line.startswith((f"| {first} | `", f"| **{second}** (this model) | `"))
    ]
    assert len(siblings) == 2
    assert all(RunReader(measured).recorded_digest(t) in line for t, line in enumerate(siblings, start=1))


def test_the_win_rates_are_those_of_the_report_with_the_decisions_of_the_gate(measured: Path, tmp_path: Path) -> None:
    _, text = exported(measured, tmp_path / "model", "--version", "2")
    section = text.partition("## Win rates on held-out prompts")[2].partition("\n## ")[0]
    store, algorithm = RunReader(measured), read_config(measured).algorithm
    for t in (0, 1):
        rate = IterationTables(store, algorithm, t).win_rate("start")
        shown = rf"| {100 * rate.value:.1f} % \[{100 * rate.low:.1f}, {100 * rate.high:.1f}\] |"
        assert shown in section
    assert r"Judged by rule \(actors.fakes:utility\) on" in section
    assert "version 2 is" in section
    assert "* 8 of 8 held-out prompts have a prompt that was also trained on." in text


def test_the_accuracy_on_held_out_preferences_is_there_if_it_was_measured(tmp_path: Path) -> None:
    changes = {"algorithm": {"name": "dpo", "data": "dataset"}, "prompts": {"source": PAIRS, "use": "all"}}
    run = play(fake_config(tmp_path, iterations=1, evaluation={"preferences": {"share": 0.3}}, **changes))
    _, text = exported(run, tmp_path / "model", "--version", "last")
    tables = IterationTables(RunReader(run), read_config(run).algorithm, 0)
    accuracy, loss = tables.heldout_accuracy(), tables.validation.loss
    section = text.partition("## Held-out preferences")[2].partition("\n## ")[0]
    assert rf"| {100 * accuracy.value:.1f} % \[{100 * accuracy.low:.1f}, " in section and f"| {loss:.4g} |" in section
    assert "0 of 4 held-out preferences have a prompt that was also trained on" in text
    (entry,) = ModelCard(text).data.eval_results
    assert (entry.metric_type, entry.metric_value) == ("accuracy", pytest.approx(accuracy.value))


def test_the_hyperparameters_are_those_of_the_config(measured: Path, tmp_path: Path) -> None:
    _, text = exported(measured, tmp_path / "model", "--version", "2")
    for line in ("`learning_rate`: 0.1", "`per_device_train_batch_size`: 1", "`gradient_accumulation_steps`: 2",
                 "`optimizer`: adamw", "`num_devices`: 1", "`num_train_epochs`: 1"):  # fmt: skip
        assert f"- {line}\n" in text
    assert "| `algorithm.eta` | 1000 |" in text


def test_what_was_not_measured_is_said(measured: Path, tmp_path: Path) -> None:
    _, text = exported(measured, tmp_path / "two", "--version", "2")
    missing = text.partition("## Not measured")[2].partition("\n## ")[0]
    assert "MT-Bench, IFEval." in missing and "AlpacaEval" not in missing and "with seed 0" in missing
    _, text = exported(measured, tmp_path / "one", "--version", "1")
    assert "MT-Bench, the tasks of lm-evaluation-harness, IFEval." in text


def test_the_verdicts_of_the_training_scorer_are_called_that(tmp_path: Path) -> None:
    config = fake_config(tmp_path, iterations=1)
    own = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"scorer": None})})
    _, text = exported(play(own), tmp_path / "model", "--version", "last")
    assert "the verdicts above are those of the scorer that trained the model" in text


def test_the_card_holds_no_path_of_this_machine_and_no_name_of_it(measured: Path, tmp_path: Path) -> None:
    _, text = exported(measured, tmp_path / "model", "--version", "2")
    facts = json.loads((measured / "run.json").read_text())
    assert str(measured) not in text and "/work" not in text and "/tmp" not in text
    assert f"| Kumite | {facts['kumite']} |" in text and f"| {facts['code']} |" not in text


def test_an_evaluation_of_the_same_weights_adds_its_results(
    measured: Path, tmp_path: Path, capsys, published: None
) -> None:
    digest = RunReader(measured).recorded_digest(2)
    for name, weights in (("mine", digest), ("other", "0" * 64)):
        with RunStore(tmp_path / f"evaluations/{name}") as store:
            store.pin("policy 0", weights)
        values = {"name": name, "model": {"path": "me/model"}, "evaluation": {"benchmarks": {}}}
        config = EvaluateConfig.model_validate(values)
        (tmp_path / f"evaluations/{name}/config.yaml").write_text(dump(config))
        commit_results(tmp_path / f"evaluations/{name}", 0, [("ifeval", "prompt_level_strict_acc", 0.6, 0.02, "")])
    options = ("--version", "2", "--evaluation", str(tmp_path / "evaluations"))
    _, text = exported(measured, tmp_path / "model", *options)
    assert ("google/IFEval", 0.6) in {(r.dataset_type, r.metric_value) for r in ModelCard(text).data.eval_results}
    assert "\n* MT-Bench.\n" in text
    other = ["--what", "model", "--version", "2", "--evaluation", str(tmp_path / "evaluations/other")]
    assert main(["export", str(measured), str(tmp_path / "no"), *other]) == 2
    assert "not an evaluation of a version of" in capsys.readouterr().err


class Judged(Letters):
    """A benchmark that says what its numbers rest on."""

    name = "ifeval"

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        if tables.version == 1:
            raise DataError("its questions are gone")
        return {"judge": "<i>me</i>", "sampling": "greedy"}


class Rejudged(Judged):
    """Version 1 was judged by another judge."""

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        return {"judge": "another" if tables.version == 1 else "me"}


def test_numbers_of_two_judges_stand_in_two_tables(measured: Path, tmp_path: Path, monkeypatch) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    for version in (1, 2):
        commit_results(run, version, [("ifeval", "prompt_level_strict_acc", version / 4, NAN, "")])
    monkeypatch.setattr(results, "benchmarks", lambda config: [Rejudged()])
    _, text = exported(run, tmp_path / "two", "--version", "2")
    first, second = (text.partition(f"## {title}\n")[2].partition("\n## ")[0]
                     for title in ("IFEval", "IFEval, measured in another way"))  # fmt: skip
    assert "0.2500" in first and "* judge: another" in first and "0.5000" not in first
    assert "0.5000" in second and "* judge: me" in second


def test_what_the_numbers_rest_on_stands_beside_them(measured: Path, tmp_path: Path, monkeypatch) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    for version in (1, 2):
        commit_results(run, version, [("ifeval", "prompt_level_strict_acc", 0.5, NAN, "")])
    monkeypatch.setattr(results, "benchmarks", lambda config: [Judged()])
    _, text = exported(run, tmp_path / "two", "--version", "2")
    assert "\n\n* judge: \\<i\\>me\\</i\\>\n* sampling: greedy\n" in text.partition("## IFEval")[2]
    _, text = exported(run, tmp_path / "one", "--version", "1")
    assert "* provenance: not known, DataError\n" in text.partition("## IFEval")[2]


def test_numbers_of_the_scorer_are_not_called_the_models(measured: Path, tmp_path: Path, monkeypatch) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    commit_results(run, 2, [("ifeval", "accuracy", 0.9, NAN, "")])
    monkeypatch.setattr(Judged, "depends_on_policy", False)
    monkeypatch.setattr(results, "benchmarks", lambda config: [Judged()])
    _, text = exported(run, tmp_path / "model", "--version", "2")
    assert "| the scorer | 0.9000 |" in text
    assert 0.9 not in {result.metric_value for result in ModelCard(text).data.eval_results}


@pytest.mark.parametrize(
    ("benchmark", "metric", "expected"),
    [
        ("lm_eval", "arc_challenge/acc_norm", ("allenai/ai2_arc", "acc_norm")),
        ("lm_eval", "leaderboard_ifeval/inst_level_strict_acc", ("google/IFEval", "inst_level_strict_acc")),
        ("mt_bench", "score/turn_1", ("HuggingFaceH4/mt_bench_prompts", "score/turn_1")),
        ("lm_eval", "my_task/acc", ("lm_eval", "my_task/acc")),
    ],
)
def test_a_result_is_filed_under_the_data_set_that_it_was_measured_on(benchmark, metric, expected) -> None:
    data, name = hub_data({"benchmark": benchmark, "metric": metric, "published": True})
    assert (data.id, name) == expected


@pytest.mark.parametrize(
    ("section", "config", "metric", "expected"),
    [
        ("alpaca_eval", {}, "win_rate", True),
        ("alpaca_eval", {"limit": 10}, "win_rate", False),
        ("alpaca_eval", {"instructions": "mine.json"}, "win_rate", False),
        ("alpaca_eval", {"baseline": "other.json"}, "win_rate", False),
        ("lm_eval", {"tasks": ["gsm8k"]}, "gsm8k/exact_match", True),
        ("lm_eval", {"tasks": ["gsm8k"], "limit": 10}, "gsm8k/exact_match", False),
        ("lm_eval", {"tasks": ["gsm8k", "mmlu"], "data": {"gsm8k": "g.parquet"}}, "gsm8k/exact_match", False),
        ("lm_eval", {"tasks": ["gsm8k", "mmlu"], "data": {"gsm8k": "g.parquet"}}, "mmlu/acc", True),
        ("lm_eval", {"tasks": ["mmlu"], "data": {"mmlu_law": "l.parquet"}}, "mmlu/acc", False),
        ("lm_eval", {"tasks": [{"task": "gsm8k", "num_fewshot": 8}]}, "gsm8k/exact_match", True),
        ("lm_eval", {"tasks": [{"task": "gsm8k", "doc_to_text": "{{x}}"}]}, "gsm8k/exact_match", False),
        ("ifeval", {"prompts": "google/IFEval"}, "prompt_level_strict_acc", True),
        ("ifeval", {"prompts": "mine.jsonl"}, "prompt_level_strict_acc", False),
        ("reward_bench", {"source": "allenai/reward-bench"}, "score", True),
        ("reward_bench", {"source": "allenai/reward-bench", "items_per_subset": 5}, "score", False),
    ],
)
def test_a_number_is_the_published_one_only_on_the_whole_published_data(section, config, metric, expected) -> None:
    setup = EvaluateConfig.model_validate(
        {"name": "e", "model": {"path": "m"}, "evaluation": {"scorer": RULE, "benchmarks": {section: config}}}
    )
    (benchmark,) = benchmarks(setup)
    assert benchmark.is_published(metric) is expected


def test_best_is_the_version_that_kumite_best_names(measured: Path, tmp_path: Path, capsys) -> None:
    version, reason = best_version(RunReader(measured))
    code = main(["export", str(measured), str(tmp_path / "model"), "--what", "model"])
    output = capsys.readouterr()
    if version:
        assert code == 0 and f"model of version {version}, {reason}" in output.out
    else:
        assert code == 2 and "version 0 is the start model" in output.err
    assert (tmp_path / "model").exists() == bool(version)


def test_without_a_promoted_version_the_preferences_are_written_alone(tmp_path: Path, capsys) -> None:
    run = play(fake_config(tmp_path, iterations=1, learner={"batch_size": 2, "optimizer": {"lr": 0.0}}))
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "no model: the start model: none of the 1 versions was promoted; name another" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preferences"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--version", "7"], "has no version 7; versions: 0, 1, 2"),
        (["--version", "0"], "version 0 is the start model, which the run did not make"),
        (["--what", "adapter", "--version", "2"], "version 2 is a whole model; use --what model"),
        (["--version", "2", "--base", "../x"], "--base ../x: not a hub id"),
        (["--version", "2", "--repo", "mine"], "--repo mine: not a hub id"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(measured, tmp_path, capsys, options, words) -> None:
    what = [] if "--what" in options else ["--what", "model"]
    assert main(["export", str(measured), str(tmp_path / "model"), *what, *options]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_are_refused(measured: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    weights = run / "weights/002/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert main(["export", str(run), str(tmp_path / "model"), "--what", "model", "--version", "2"]) == 2
    assert "weights version 2" in capsys.readouterr().err


# Adapters, with a small Llama


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose version 1 is an adapter of a Llama in a folder; config.json still names where it was loaded from."""
    folder = tmp_path_factory.mktemp("adapted")
    base = write_llama(folder / "base")
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"_name_or_path": "/home/me/models/base"}))
    files, run = versions(), folder / "run"
    lora = {"lora": {"rank": 4, "alpha": 8}, "optimizer": {"name": "adamw"}}
    config = fake_config(folder, model={"path": str(base), "dtype": "float32"}, learner=lora)
    with RunStore(run) as store:
        store.register_start(base, lambda folder, digest: [[-1.0]])
        policy = files.load(base, None, 0)
        move(policy, 1)
        files.save(policy, store.new_weights(1), keep=True)
        store.commit_weights(1, [[-1.0]])
    (run / "config.yaml").write_text(dump(config))
    return run


def logps(model: Any) -> list[float]:
    with torch.no_grad():
        return token_logps(model.eval(), [1, 5, 9], [8, 3, 2, 7]).tolist()


def test_peft_loads_the_adapter_and_it_is_the_merged_model(adapted: Path, tmp_path: Path) -> None:
    from peft import PeftConfig, PeftModel

    last = ("--version", "last")
    folder, text = exported(adapted, tmp_path / "adapter", "--what", "adapter", "--base", "me/llama", *last)
    merged, merged_card = exported(adapted, tmp_path / "model", "--base", "me/llama", *last)
    assert PeftConfig.from_pretrained(folder).base_model_name_or_path == "me/llama"
    base = adapted.parent / "base"
    with_adapter = logps(PeftModel.from_pretrained(load(base), folder))
    assert with_adapter == pytest.approx(logps(load(merged)), abs=1e-5)
    assert max(abs(a - b) for a, b in zip(with_adapter, logps(load(base)), strict=True)) > 1e-3
    adapter_data, merged_data = ModelCard(text).data, ModelCard(merged_card).data
    assert (adapter_data.library_name, adapter_data.base_model_relation) == ("peft", "adapter")
    assert (merged_data.library_name, merged_data.base_model_relation) == ("transformers", "finetune")
    assert adapter_data.base_model == merged_data.base_model == "me/llama" and "lora" in adapter_data.tags
    assert "_name_or_path" not in json.loads((merged / "config.json").read_text())
    assert "hu2021lora" in text
    assert ["are those of an adapter, merged" in card for card in (text, merged_card)] == [False, True]


def test_an_adapter_of_a_local_folder_needs_the_hub_id_of_its_base(adapted: Path, tmp_path: Path, capsys) -> None:
    arguments = ["export", str(adapted), str(tmp_path / "adapter"), "--what", "adapter", "--version", "last"]
    assert main(arguments) == 2
    assert "which nobody else can load; name it as it is called on the hub with --base" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_chat_template_of_the_config_goes_with_the_model_if_it_is_still_the_same(tmp_path: Path, capsys) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[-1]['content'] }} ->")
    base, run = make_tiny_policy(tmp_path / "base", seed=1), tmp_path / "run"
    model = {"path": str(base), "dtype": "float32", "chat_template": str(template)}
    config = fake_config(tmp_path, model=model)
    with RunStore(run) as store:
        store.pin("tokenizer and chat template", Chat(config.model).digest)
        store.register_start(base, lambda folder, digest: [[-1.0]])
        shutil.copytree(base, store.new_weights(1), dirs_exist_ok=True)
        store.commit_weights(1, [[-1.0]])
    (run / "config.yaml").write_text(dump(config))
    folder, _ = exported(run, tmp_path / "model", "--version", "last")
    assert (folder / "chat_template.jinja").read_text() == template.read_text()
    assert (run / "weights/001/chat_template.jinja").read_text() != template.read_text()
    template.write_text("{{ messages[-1]['content'] }} =>")
    assert main(["export", str(run), str(tmp_path / "other"), "--what", "model", "--version", "last"]) == 2
    assert "plain.jinja has changed since the run; restore it" in capsys.readouterr().err


# What belongs to the hub


@pytest.mark.parametrize(
    ("path", "start", "expected"),
    [
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "/cache/hub/models--x/snapshots/abc",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        ("my/model", "/home/me/my/model", None),
        ("/data/models/base", "/data/models/base", None),
        ("tiny", "/runs/run/start", None),
    ],
)
def test_a_start_model_is_called_by_its_hub_id_only_if_it_has_one(tmp_path, path, start, expected) -> None:
    config = fake_config(tmp_path, model={"path": path})
    policy = Policy(0, Path(start), "d" * 64, [])
    assert base_model(config, policy, Statement()) == expected
    assert base_model(config, policy, Statement(base="me/base")) == "me/base"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("openbmb/UltraFeedback", True), ("data/prompts.jsonl", False), ("/x/y", False), ("recipes/configs", False)],
)
def test_a_data_set_of_the_hub_is_told_from_a_file(source: str, expected: bool) -> None:
    assert is_hub_data(source) == expected


def test_every_algorithm_has_its_paper() -> None:
    assert set(OF_ALGORITHM) == set(ALGORITHMS.values())
    for paper in OF_ALGORITHM.values():
        assert paper.bibtex.startswith(f"@misc{{{paper.key},\n") and paper.bibtex.count("{") == paper.bibtex.count("}")
