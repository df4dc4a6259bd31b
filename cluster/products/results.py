"""The numbers of a run that a card shows, from committed tables: win rates, gate, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.evaluation.gate import Decision, decisions
from engine.report.collect import IterationTables, WinRate
from engine.schema import BENCHMARK_RESULTS
from engine.store.reader import RunReader

SUFFIX, MANIFEST = "_results", "manifest.jsonl"
Results = dict[str, dict[int, list[dict[str, Any]]]]
"""{benchmark: {version: rows of engine.schema.BENCHMARK_RESULTS}}"""


@dataclass(frozen=True)
class VersionResults:
    """What is known about one version; None: it was not measured."""

    version: int
    digest: str
    against_start: WinRate | None
    against_previous: WinRate | None
    mean_length: float | None
    """Tokens per held-out answer."""
    decision: Decision | None
    """The gate's."""


@dataclass(frozen=True)
class HubData:
    """A benchmark's data set on the hub."""

    id: str
    title: str
    task: str | None = None
    """Task of the hub's leaderboard of this data set, for .eval_results; None: it has none."""


HUB_DATA = {
    "alpaca_eval": HubData("tatsu-lab/alpaca_eval", "AlpacaEval"),
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
}
"""By the name of a benchmark, or of a task of the evaluation harness."""


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
        entries.append(VersionResults(version, digest, *rates, decided.get(version)))
    return entries


def benchmark_results(run: RunReader, evaluations: Sequence[Path] = ()) -> Results:
    """What was measured after the iterations of the run, and by `kumite eval` in the folders `evaluations`.

    An evaluation counts for the version whose weights it pinned. Raises StoreError for one of other weights.
    """
    found: Results = {}
    _add(found, run, {version: version for version in run.versions})
    for folder in evaluations:
        stores = [RunReader(path) for path in (folder, *sorted(folder.glob("*/"))) if (path / MANIFEST).is_file()]
        pairs = [(store, _same_weights(run, store)) for store in stores]
        if not any(versions for _, versions in pairs):
            raise StoreError(f"--evaluation {folder}: not an evaluation of a version of {run.folder}")
        for store, versions in pairs:
            _add(found, store, versions)
    return found


def _same_weights(run: RunReader, evaluation: RunReader) -> dict[int, int]:
    """{version in the evaluation: version of the run}; a model folder is version 0 there."""
    own = {run.recorded_digest(version): version for version in run.versions}
    pinned = {number: evaluation.recorded(f"pinned policy {number}") for number in (0, *run.versions)}
    return {n: own[record["identity"]] for n, record in pinned.items() if record and record["identity"] in own}


def _add(found: Results, store: RunReader, versions: dict[int, int]) -> None:
    for stage in store.stages("version"):
        if not stage.endswith(SUFFIX):
            continue
        for number, version in versions.items():
            if rows := [row for table in store.tables(number, stage, BENCHMARK_RESULTS) for row in table.to_pylist()]:
                found.setdefault(stage.removesuffix(SUFFIX), {})[version] = rows


def hub_data(row: dict[str, Any]) -> HubData:
    """The data set behind a row of benchmark results; without an id on the hub it is called as the benchmark is."""
    task = row["metric"].partition("/")[0] if "/" in row["metric"] else row["benchmark"]
    name = task.removeprefix("leaderboard_")
    return HUB_DATA.get(name) or HUB_DATA.get(row["benchmark"]) or HubData(row["benchmark"], task)
