"""The card of a model or an adapter: README.md with `model-index`, and .eval_results for the hub's leaderboards.

Its sections follow the published cards of SPPO's models: how it was made, links to the other iterations, description,
AlpacaEval and benchmark tables per iteration, hyper-parameters, citation; and what was not measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.products import cards
from cluster.products.cards import HUB, Statement
from cluster.products.papers import papers_of
from cluster.products.results import HubData, VersionResults, benchmark_results, hub_data, version_results
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.report.figures import MISSING, win_rate
from engine.store.reader import Policy, RunReader
from engine.store.weights import is_adapter, tensor_shapes

MAX_METRICS = 8
"""Columns of one table of benchmark results."""
KNOWN = {"alpaca_eval": "AlpacaEval", "mt_bench": "MT-Bench", "lm_eval": "the tasks of lm-evaluation-harness",
         "ifeval": "IFEval"}  # fmt: skip
"""Benchmarks that a reader of a card looks for, by their keys in evaluation.benchmarks."""


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

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2] if self.repo else f"{self.config.name}-iter{self.policy.version}"


def model_card(product: Product) -> str:
    """README.md: metadata and text."""
    from huggingface_hub import ModelCard

    text = cards.render("model_card.md.j2", _content(product))
    return str(ModelCard(f"---\n{_metadata(product).to_yaml()}\n---\n\n{text}"))


def _metadata(product: Product) -> Any:
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
    mine = next(entry for entry in version_results(product.store, product.config) if _is_of(entry, product))
    if mine.against_start:
        data = HubData("held-out-prompts", "Held-out prompts of the run")
        name = f"win rate against the start model, judged by {_judge(product.config)}"
        entries.append(result(data, "win_rate", mine.against_start.value, name))
    for versions in benchmark_results(product.store).values():
        for row in versions.get(product.policy.version, []):
            if not math.isnan(row["value"]):
                entries.append(result(hub_data(row), row["metric"].rpartition("/")[2], row["value"], row["metric"]))
    return entries


def leaderboard_entries(product: Product) -> list[dict[str, Any]]:
    """What .eval_results holds: the results whose data set has a leaderboard on the hub, its first metric each."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries: dict[str, EvalResultEntry] = {}
    for versions in benchmark_results(product.store).values():
        for row in versions.get(product.policy.version, []):
            data = hub_data(row)
            if data.task and data.id not in entries and not math.isnan(row["value"]):
                notes = f"{row['metric']}, {row['num']} items"
                entries[data.id] = EvalResultEntry(data.id, data.task, float(f"{row['value']:.6g}"), notes=notes)
    return eval_result_entries_to_yaml(list(entries.values()))


def _is_of(entry: VersionResults, product: Product) -> bool:
    return entry.version == product.policy.version


def _judge(config: RunConfig) -> str:
    judge = config.evaluator or config.scorer
    if judge is None:
        raise StoreError("the run has win rates, but its config names no scorer that gave them")
    return cards.scorer_name(judge)


def _content(product: Product) -> dict[str, Any]:
    config, version = product.config, product.policy.version
    entries = version_results(product.store, config)
    return {
        "title": product.name,
        "iteration": version,
        "num_iterations": config.iterations,
        "papers": papers_of(config),
        "adapter": is_adapter(product.folder),
        "samples": config.algorithm.samples,
        "base": cards.model_name(product.base, config),
        "base_id": Markup(product.base or "BASE"),
        "sources": Markup("; ").join(cards.source_names(config)),
        "brings_answers": config.algorithm.num_dataset_completions > 0,
        "parts": config.prompts.use == "parts" and config.iterations > 1,
        "repo": Markup(product.repo or "FOLDER"),
        "siblings": [(_sibling(product, entry), cards.code(entry.digest)) for entry in entries],
        "description": _description(product),
        "win_rates": [_win_rate_row(product, entry) for entry in entries if entry.against_start],
        "judge": _judge(config) if any(entry.against_start for entry in entries) else None,
        "num_heldout": max((e.against_start.num_prompts or 0 for e in entries if e.against_start), default=0),
        "gate": [entry.decision.in_words() for entry in entries if entry.decision],
        "benchmarks": [(hub_name(name), tables, notes) for name, tables, notes in _benchmark_tables(product)],
        "hyperparameters": hyperparameters(config),
        "settings": cards.settings(config),
        "scorer": cards.scorer_name(config.scorer) if config.scorer and config.algorithm.needs_scorer else None,
        "frameworks": _frameworks(product.store),
        "missing": _not_measured(product, entries),
        "digest": cards.code(product.policy.digest),
        "start_digest": cards.code(product.start.digest),
        "citation": cards.citations(config),
    }


def hub_name(benchmark: str) -> str:
    """The title of a benchmark."""
    return hub_data({"benchmark": benchmark, "metric": ""}).title


def _sibling(product: Product, entry: VersionResults) -> Markup:
    """A version by its hub id, or by its number."""
    repo = product.statement.repo_of(entry.version)
    name = link = cards.link(repo, HUB + repo) if repo else Markup(f"iteration {entry.version}")
    return Markup(f"**{name}** (this model)") if _is_of(entry, product) else link


def _description(product: Product) -> list[tuple[str, str | Markup]]:
    shapes = tensor_shapes(product.folder)
    size = sum(math.prod(shape) for shape in shapes.values())
    adapter = is_adapter(product.folder)
    path = (product.start.folder if adapter else product.folder) / "config.json"
    kind = json.loads(path.read_text(encoding="utf-8")).get("architectures") or ["not stated"]
    return [
        ("Model type", f"{kind[0]}, {'an adapter of ' * adapter}{size:,} parameters, {product.config.model.dtype}"),
        ("Language", ", ".join(product.statement.languages) or "not stated"),
        ("License", product.statement.license or "not stated; the base model's licence applies"),
        ("Finetuned from", cards.model_name(product.base, product.config)),
    ]


def _win_rate_row(product: Product, entry: VersionResults) -> list[Any]:
    rates = (entry.against_start, entry.against_previous)
    length = MISSING if entry.mean_length is None else f"{entry.mean_length:.1f}"
    promoted = {None: MISSING, True: "yes", False: "no"}[entry.decision.promoted if entry.decision else None]
    return [_sibling(product, entry), *(MISSING if r is None else win_rate(r) for r in rates), length, promoted]


def _benchmark_tables(product: Product) -> list[tuple[str, list[tuple[list[Any], list[list[Any]]]], list[str]]]:
    """[(benchmark, tables, notes)]; a table is (headings, rows), a row per version, at most MAX_METRICS columns."""
    entries = {entry.version: _sibling(product, entry) for entry in version_results(product.store, product.config)}
    names = {0: Markup("start model"), **entries}
    found = []
    for benchmark, versions in benchmark_results(product.store).items():
        metrics = list(dict.fromkeys(row["metric"] for rows in versions.values() for row in rows))
        notes = dict.fromkeys(
            f"{row['metric']}: {row['note']}" for rows in versions.values() for row in rows if row["note"]
        )
        values = {version: {row["metric"]: row for row in rows} for version, rows in versions.items()}
        tables = []
        for first in range(0, len(metrics), MAX_METRICS):
            shown = metrics[first : first + MAX_METRICS]
            rows = [[names[v], *(_number(values[v].get(metric)) for metric in shown)] for v in sorted(values)]
            tables.append((["model", *shown], rows))
        found.append((benchmark, tables, list(notes)))
    return found


def _number(row: dict[str, Any] | None) -> str:
    """A result with its standard error, if it has one."""
    if row is None or math.isnan(row["value"]):
        return MISSING
    digits = 2 if abs(row["value"]) >= 1 else 4
    error = "" if math.isnan(row["stderr"]) else f" ± {row['stderr']:.{digits}f}"
    return f"{row['value']:.{digits}f}{error}"


def hyperparameters(config: RunConfig) -> list[tuple[Markup, str]]:
    """Under the names of transformers' TrainingArguments, as on the published cards."""
    learner = config.learner
    optimizer, schedule, lora = learner.optimizer, learner.schedule, learner.lora
    stop = "" if schedule.stop_after_epochs == schedule.scheduler_total_epochs else (
        f" (stop at {schedule.stop_after_epochs:g})"
    )  # fmt: skip
    values: dict[str, Any] = {
        "learning_rate": f"{optimizer.lr:g}",
        "per_device_train_batch_size": learner.micro_batch_size,
        "gradient_accumulation_steps": learner.batch_size // (learner.micro_batch_size * learner.num_ranks),
        "seed": config.seed,
        "distributed_type": f"deepspeed_zero_{learner.zero_stage}",
        "num_devices": learner.num_ranks,
        "optimizer": optimizer.name,
        "weight_decay": f"{optimizer.weight_decay:g}",
        "max_grad_norm": "none" if optimizer.max_grad_norm is None else f"{optimizer.max_grad_norm:g}",
        "lr_scheduler_type": schedule.kind,
        "lr_scheduler_warmup_ratio": f"{schedule.warmup_ratio:g}",
        "num_train_epochs": f"{schedule.scheduler_total_epochs:g}{stop}",
    }
    if lora:
        targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
        values |= {"lora_r": lora.rank, "lora_alpha": f"{lora.alpha:g}", "lora_target_modules": targets}
    return [(cards.code(name), str(value)) for name, value in values.items()]


def _frameworks(store: RunReader) -> list[tuple[str, str]]:
    """Versions of Kumite and of the packages that computed; nothing else of run.json, which names the machine."""
    path = store.folder / "run.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [("Kumite", str(facts.get("kumite", "unknown"))), *facts.get("versions", {}).items()]


def _not_measured(product: Product, entries: list[VersionResults]) -> list[str]:
    """What a reader may look for and does not find."""
    config, measured = product.config, benchmark_results(product.store)
    mine = next(entry for entry in entries if _is_of(entry, product))
    sentences = []
    if mine.against_start is None:
        sentences.append("The win rate of this version on held-out prompts.")
    elif config.evaluator is None:
        sentences.append("An independent win rate: the verdicts above are those of the scorer that trained the model.")
    absent = [title for name, title in KNOWN.items() if product.policy.version not in measured.get(name, {})]
    if absent:
        sentences.append(f"{', '.join(absent)}.")
    sentences.append(f"The variation between seeds: this is one run, with seed {config.seed}.")
    sentences.append("Safety, factuality, bias, and languages and tasks other than those of the prompts.")
    if mine.against_start is not None:
        sentences.append("Agreement of the verdicts above with people.")
    return sentences
