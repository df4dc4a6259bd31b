"""The card of a model or an adapter: the text of README.md and its metadata.

Its sections follow the published cards of SPPO's models: how it was made, links to the other iterations, description,
AlpacaEval and benchmark tables per iteration, hyper-parameters, citation; and what was not measured.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup

from cluster.products import cards
from cluster.products.cards import HUB
from cluster.products.model_index import Product, judge_of, metadata
from cluster.products.papers import papers_of
from cluster.products.results import Measurement, VersionResults, contamination, title_of
from engine.config.run import RunConfig
from engine.report.figures import MISSING, win_rate
from engine.store.reader import RunReader
from engine.store.weights import is_adapter, tensor_shapes

MAX_METRICS = 8
"""Columns of one table of benchmark results."""
KNOWN = {"alpaca_eval": "AlpacaEval", "mt_bench": "MT-Bench", "lm_eval": "the tasks of lm-evaluation-harness",
         "ifeval": "IFEval"}  # fmt: skip
"""Benchmarks that a reader of a card looks for, by their keys in evaluation.benchmarks."""


def model_card(product: Product) -> str:
    """README.md: metadata and text."""
    from huggingface_hub import ModelCard

    text = cards.render("model_card.md.j2", _content(product))
    return str(ModelCard(f"---\n{metadata(product).to_yaml()}\n---\n\n{text}"))


def _content(product: Product) -> dict[str, Any]:
    config, version = product.config, product.policy.version
    entries = product.entries
    return {
        "title": product.name,
        "iteration": version,
        "num_iterations": config.iterations,
        "papers": papers_of(config),
        "adapter": is_adapter(product.folder),
        "merged": product.policy.base is not None and not is_adapter(product.folder),
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
        "judge": judge_of(config) if any(entry.against_start for entry in entries) else None,
        "num_heldout": max((e.against_start.num_prompts or 0 for e in entries if e.against_start), default=0),
        "contamination": contamination(product.store, config),
        "preferences": [_preferences_row(product, entry) for entry in entries if entry.loss is not None],
        "gate": [entry.decision.in_words() for entry in entries if entry.decision],
        "benchmarks": _benchmark_sections(product),
        "hyperparameters": hyperparameters(config),
        "settings": cards.settings(config),
        "scorer": cards.scorer_name(config.scorer) if config.scorer and config.algorithm.needs_scorer else None,
        "frameworks": _frameworks(product.store),
        "missing": _not_measured(product),
        "digest": cards.code(product.policy.digest),
        "start_digest": cards.code(product.start.digest),
        "citation": cards.citations(config),
    }


def _sibling(product: Product, entry: VersionResults) -> Markup:
    """A version by its hub id, or by its number."""
    repo = product.statement.repo_of(entry.version)
    name = link = cards.link(repo, HUB + repo) if repo else Markup(f"iteration {entry.version}")
    return Markup(f"**{name}** (this model)") if entry is product.own else link


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


def _preferences_row(product: Product, entry: VersionResults) -> list[Any]:
    accuracy = MISSING if entry.accuracy is None else win_rate(entry.accuracy)
    return [_sibling(product, entry), accuracy, f"{entry.loss:.4g}"]


def _benchmark_sections(product: Product) -> list[tuple[str, list[tuple[list[Any], list[list[Any]]]], list[str]]]:
    """[(title, tables, notes)]; a table is (headings, rows), a row per version, at most MAX_METRICS columns."""
    names = {0: Markup("start model"), **{entry.version: _sibling(product, entry) for entry in product.entries}}
    found = []
    for benchmark, versions in product.measured.items():
        alike: dict[str, dict[int, Measurement]] = {}  # numbers of another judge or other data have their own table
        for version in sorted(versions):
            alike.setdefault(json.dumps(versions[version].provenance, sort_keys=True), {})[version] = versions[version]
        for number, group in enumerate(alike.values()):
            title = title_of(benchmark) + (", measured in another way" if number else "")
            found.append((title, *_benchmark_tables(group, names)))
    return found


def _benchmark_tables(
    versions: dict[int, Measurement], names: dict[int, Markup]
) -> tuple[list[tuple[list[Any], list[list[Any]]]], list[str]]:
    """Tables and notes of versions whose numbers rest on the same things."""
    every = [row for measurement in versions.values() for row in measurement.rows]
    values = {(version, row["metric"]): row for version in versions for row in versions[version].rows}
    metrics = list(dict.fromkeys(row["metric"] for row in every))
    called = {v: names[v] if measurement.of_policy else "the scorer" for v, measurement in versions.items()}
    tables: list[tuple[list[Any], list[list[Any]]]] = []
    for first in range(0, len(metrics), MAX_METRICS):
        shown = metrics[first : first + MAX_METRICS]
        rows = [[called[v], *(_number(values.get((v, metric))) for metric in shown)] for v in versions]
        tables.append((["model", *shown], rows))
    notes = [f"{row['metric']}: {row['note']}" for row in every if row["note"]]
    notes += [f"{name}: {value}" for name, value in next(iter(versions.values())).provenance.items()]
    return tables, list(dict.fromkeys(notes))


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
    }
    if schedule.warmup_steps is None:
        values["lr_scheduler_warmup_ratio"] = f"{schedule.warmup_ratio:g}"
    else:
        values["lr_scheduler_warmup_steps"] = schedule.warmup_steps
    if schedule.max_steps is None:
        values["num_train_epochs"] = f"{schedule.scheduler_total_epochs:g}{stop}"
    else:
        values["max_steps"] = schedule.max_steps
    if lora:
        targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
        values |= {"lora_r": lora.rank, "lora_alpha": f"{lora.alpha:g}", "lora_target_modules": targets}
    return [(cards.code(name), str(value)) for name, value in values.items()]


def _frameworks(store: RunReader) -> list[tuple[str, str]]:
    """Versions of Kumite and of the packages that computed; nothing else of run.json, which names the machine."""
    path = store.folder / "run.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [("Kumite", str(facts.get("kumite", "unknown"))), *facts.get("versions", {}).items()]


def _not_measured(product: Product) -> list[str]:
    """What a reader may look for and does not find."""
    config, measured, mine = product.config, product.measured, product.own
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
