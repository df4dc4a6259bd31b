"""The numbers of a run that a card shows, from committed tables: win rates, gate, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.benchmarks import benchmarks
from engine.benchmarks.base import Benchmark, BenchmarkTables
from engine.config.evaluate import EvaluateConfig
from engine.config.load import load_as
from engine.config.run import RunConfig, Setup
from engine.data.holdout import num_shared
from engine.errors import KumiteError, StoreError
from engine.evaluation.gate import Decision, decisions
from engine.loop.validation import PAIRS
from engine.report.collect import IterationTables, WinRate
from engine.schema import BENCHMARK_RESULTS, PROMPTS
from engine.store.reader import RunReader

SUFFIX, MANIFEST, CONFIG = "_results", "manifest.jsonl", "config.yaml"


@dataclass(frozen=True)
class VersionResults:
    """What is known about one version; None: it was not measured."""

    version: int
    digest: str
    against_start: WinRate | None
    against_previous: WinRate | None
    mean_length: float | None
    """Tokens per held-out answer."""
    accuracy: WinRate | None
    """Share of held-out preferences of which the chosen answer has the higher implicit reward."""
    loss: float | None
    """On them."""
    decision: Decision | None
    """The gate's."""


@dataclass(frozen=True)
class Measurement:
    """What one benchmark measured of one version."""

    rows: list[dict[str, Any]]
    """Of engine.schema.BENCHMARK_RESULTS, and `published`: whether the number rests on the benchmark's own data."""
    provenance: dict[str, str]
    """What is needed to compare the numbers with others: questions, judge, sampling, seeds."""
    of_policy: bool = True
    """Else it measured the scorer, which is the same for every version."""


Results = dict[str, dict[int, Measurement]]
"""{benchmark: {version: measurement}}"""


@dataclass(frozen=True)
class HubData:
    """A benchmark's data set on the hub."""

    id: str
    title: str
    task: str | None = None
    """Task of the hub's leaderboard of this data set, for .eval_results; None: it has none."""


HUB_DATA = {
    "alpaca_eval": HubData("tatsu-lab/alpaca_eval", "AlpacaEval"),
    "lm_eval": HubData("lm_eval", "lm-evaluation-harness"),
    "mt_bench": HubData("HuggingFaceH4/mt_bench_prompts", "MT-Bench"),
    "arc_challenge": HubData("allenai/ai2_arc", "ARC Challenge"),
    "truthfulqa_mc2": HubData("truthfulqa/truthful_qa", "TruthfulQA"),
    "winogrande": HubData("allenai/winogrande", "WinoGrande"),
    "gsm8k": HubData("openai/gsm8k", "GSM8K", "gsm8k"),
    "hellaswag": HubData("Rowan/hellaswag", "HellaSwag"),
    "mmlu": HubData("cais/mmlu", "MMLU"),
    "ifeval": HubData("google/IFEval", "IFEval"),
    "mmlu_pro": HubData("TIGER-Lab/MMLU-Pro", "MMLU-Pro", "mmlu_pro"),
    "musr": HubData("TAUR-Lab/MuSR", "MuSR"),
    "reward_bench": HubData("allenai/reward-bench", "RewardBench"),
}
"""By the name of a benchmark, or of a task of the evaluation harness."""

COUNTS = {"truncated", "truncated_answers", "unasked_turns", "unreadable", "empty", "missing", "annotator_truncated",
          "trained_on"}  # fmt: skip
"""Numbers of benchmarks that say how it went, not how good the model is."""


def version_results(store: RunReader, config: RunConfig) -> list[VersionResults]:
    """One entry per version that the run trained."""
    decided = {decision.version: decision for decision in decisions(store)}
    entries = []
    for version in store.versions:
        if version == 0:
            continue
        tables = IterationTables(store, config.algorithm, version - 1)
        digest = store.recorded_digest(version) or ""
        rates = (tables.win_rate("start"), tables.win_rate("previous"), tables.mean_length())
        validation = (tables.heldout_accuracy(), tables.validation.loss if tables.validation else None)
        entries.append(VersionResults(version, digest, *rates, *validation, decided.get(version)))
    return entries


def contamination(store: RunReader, config: RunConfig) -> list[str]:
    """How many of the held-out prompts the run also trained on, in sentences."""
    training = [table for t in range(config.iterations) for table in store.tables(t, "prompts", PROMPTS)]
    sentences = []
    for stage, what in {"heldout_prompts": "held-out prompts", PAIRS: "held-out preferences"}.items():
        heldout = list(store.tables(0, stage, PROMPTS))
        every, shared = sum(table.num_rows for table in heldout), sum(num_shared(training, t) for t in heldout)
        if every:
            sentences.append(f"{shared:,} of {every:,} {what} have a prompt that was also trained on.")
    return sentences


def benchmark_results(run: RunReader, config: RunConfig, evaluations: Sequence[Path] = ()) -> Results:
    """What was measured after the iterations of the run, and by `kumite eval` in the folders `evaluations`.

    An evaluation counts for the version whose weights it pinned. Raises StoreError for one of other weights.
    """
    found: Results = {}
    _add(found, run, config, {version: version for version in run.versions})
    for folder in evaluations:
        stores = [RunReader(path) for path in (folder, *sorted(folder.glob("*/"))) if (path / MANIFEST).is_file()]
        pairs = [(store, _same_weights(run, store)) for store in stores]
        if not any(versions for _, versions in pairs):
            raise StoreError(f"--evaluation {folder}: not an evaluation of a version of {run.folder}")
        for store, versions in pairs:
            _add(found, store, load_as(EvaluateConfig, store.folder / CONFIG), versions)
    return found


def _same_weights(run: RunReader, evaluation: RunReader) -> dict[int, int]:
    """{version in the evaluation: version of the run}; a model folder is version 0 there."""
    own = {run.recorded_digest(version): version for version in run.versions}
    pinned = {number: evaluation.recorded(f"pinned policy {number}") for number in (0, *run.versions)}
    return {n: own[record["identity"]] for n, record in pinned.items() if record and record["identity"] in own}


def _add(found: Results, store: RunReader, config: Setup, versions: dict[int, int]) -> None:
    known = {benchmark.name: benchmark for benchmark in benchmarks(config)}
    for stage in store.stages("version"):
        if not stage.endswith(SUFFIX):
            continue
        name = stage.removesuffix(SUFFIX)
        for number, version in versions.items():
            if rows := [row for table in store.tables(number, stage, BENCHMARK_RESULTS) for row in table.to_pylist()]:
                found.setdefault(name, {})[version] = _measurement(rows, store, known.get(name), number)


def _measurement(rows: list[dict[str, Any]], store: RunReader, benchmark: Benchmark | None, number: int) -> Measurement:
    """benchmark: None if the config no longer has it."""
    if benchmark is None:
        return Measurement([row | {"published": False} for row in rows], {})
    marked = [row | {"published": benchmark.is_published(row["metric"])} for row in rows]
    return Measurement(marked, _provenance(store, benchmark, number), benchmark.depends_on_policy)


def _provenance(store: RunReader, benchmark: Benchmark, number: int) -> dict[str, str]:
    try:
        return benchmark.provenance(BenchmarkTables(store, benchmark, number))
    except KumiteError as error:  # a file of the benchmark that is gone
        return {"provenance": f"not known, {type(error).__name__}"}


def title_of(benchmark: str) -> str:
    return HUB_DATA[benchmark].title if benchmark in HUB_DATA else benchmark


def hub_data(row: dict[str, Any]) -> tuple[HubData, str]:
    """The data set behind a result (Measurement.rows) and the metric on it.

    The evaluation harness writes task/metric. Only numbers on the whole published data get its id on the hub and a
    place in the hub's leaderboards; others are filed under the benchmark's name.
    """
    benchmark, metric = row["benchmark"], row["metric"]
    task, _, rest = metric.partition("/")
    known = HUB_DATA.get(task.removeprefix("leaderboard_")) if rest else None
    data, metric = (known, rest) if known else (HUB_DATA.get(benchmark) or HubData(benchmark, benchmark), metric)
    if row["published"]:
        return data, metric
    return HubData(task if known else benchmark, f"{data.title}, from files or in part"), metric
