"""A model as its card describes it, and its metadata: tags, `model-index`, .eval_results for the hub's leaderboards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.products import cards
from cluster.products.cards import Statement
from cluster.products.results import (
    COUNTS,
    HubData,
    Results,
    VersionResults,
    benchmark_results,
    hub_data,
    version_results,
)
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.store.reader import Policy, RunReader
from engine.store.weights import is_adapter


@dataclass(frozen=True)
class Product:
    """The model or adapter that the card describes."""

    store: RunReader
    config: RunConfig
    policy: Policy
    start: Policy
    folder: Path
    """The exported files."""
    statement: Statement

    @property
    def base(self) -> str | None:
        return cards.base_model(self.config, self.start, self.statement)

    @property
    def repo(self) -> str | None:
        return self.statement.repo_of(self.policy.version) or self.statement.repo

    @cached_property
    def entries(self) -> list[VersionResults]:
        return version_results(self.store, self.config)

    @property
    def own(self) -> VersionResults:
        """The entry of this version."""
        return next(entry for entry in self.entries if entry.version == self.policy.version)

    @cached_property
    def measured(self) -> Results:
        return benchmark_results(self.store, self.config, self.statement.evaluations)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The benchmark results of this version that have a value."""
        measurements = (versions.get(self.policy.version) for versions in self.measured.values())
        own = (measurement for measurement in measurements if measurement and measurement.of_policy)
        return [row for measurement in own for row in measurement.rows if not math.isnan(row["value"])]

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2] if self.repo else f"{self.config.name}-iter{self.policy.version}"


def metadata(product: Product) -> Any:
    from huggingface_hub import ModelCardData

    adapter = is_adapter(product.folder)
    results = _model_index(product)
    lora = ["lora"] if product.config.learner.lora else []
    return ModelCardData(
        language=list(product.statement.languages) or None,
        license=product.statement.license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=product.base,
        base_model_relation=("adapter" if adapter else "finetune") if product.base else None,
        datasets=cards.hub_data_sets(product.config) or None,
        tags=cards.tags(product.config, "preference-optimization", "self-play", *lora),
        model_name=product.name if results else None,
        eval_results=results or None,
    )


def _model_index(product: Product) -> list[Any]:
    """The held-out win rate and every benchmark result of this version."""
    from huggingface_hub import EvalResult

    def result(data: HubData, metric: str, value: float, name: str) -> Any:
        return EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=data.id,
            dataset_name=data.title,
            metric_type=metric,
            metric_value=float(f"{value:.6g}"),
            metric_name=name,
        )

    entries = []
    if product.own.against_start:
        data = HubData("held-out-prompts", "Held-out prompts of the run")
        name = f"win rate against the start model, judged by {judge_of(product.config)}"
        entries.append(result(data, "win_rate", product.own.against_start.value, name))
    if product.own.accuracy:
        data = HubData("held-out-preferences", "Held-out preferences of the run")
        name = "share of pairs whose chosen answer has the higher implicit reward"
        entries.append(result(data, "accuracy", product.own.accuracy.value, name))
    for row in product.rows:
        if row["metric"] not in COUNTS:
            entries.append(result(*hub_data(row), row["value"], row["metric"]))
    return entries


def leaderboard_entries(product: Product) -> list[dict[str, Any]]:
    """What .eval_results holds: the results whose data set has a leaderboard on the hub, its first metric each."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries: dict[str, EvalResultEntry] = {}
    for row in product.rows:
        data, metric = hub_data(row)
        if data.task and data.id not in entries:
            notes = f"{metric}, {row['num']} items"
            entries[data.id] = EvalResultEntry(data.id, data.task, float(f"{row['value']:.6g}"), notes=notes)
    return eval_result_entries_to_yaml(list(entries.values()))


def judge_of(config: RunConfig) -> str:
    """The scorer that gave the held-out win rates."""
    judge = config.evaluator or config.scorer
    if judge is None:
        raise StoreError("the run has win rates, but its config names no scorer that gave them")
    return cards.scorer_name(judge)
