"""AlpacaEval 2 (arXiv 2404.04475): how often the annotator prefers the policy's answers to a baseline's.

Where instructions, baseline and annotator are AlpacaEval's, the numbers are those of its leaderboard. The annotator
here is asked in both orders, AlpacaEval's in one order at random.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.benchmarks.alpaca_eval import files as alpaca_files
from engine.benchmarks.alpaca_eval import length_control
from engine.benchmarks.alpaca_eval.files import Instruction, head_to_head, read_instructions, read_outputs
from engine.benchmarks.alpaca_eval.items import (
    PREFERENCE,
    Item,
    annotation_records,
    gamed_rows,
    items_of,
    output_records,
    with_baseline,
)
from engine.benchmarks.alpaca_eval.length_control import (
    LOCAL_FORMULA,
    OFFICIAL_FORMULA,
    KnownModels,
    LengthControlled,
    standardised_differences,
)
from engine.benchmarks.alpaca_eval.length_control_files import (
    WEIGHTS,
    read_difficulties,
    read_gamed,
    read_known,
    read_weights,
)
from engine.benchmarks.answers import Answers, answered, prompt_rows, sampling_facts, truncated_result
from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import dataset_file, shown
from engine.config.benchmarks import AlpacaEvalConfig
from engine.config.run import RoleName
from engine.data.ingest import Renderer, shards
from engine.errors import ConfigError, DataError
from engine.loop.roles import Roles, Scorer, Timed
from engine.loop.stages import Stage
from engine.schema import ALPACA_EVAL_INPUT, COMPLETIONS, SCORES
from engine.store.reader import Policy

KEY = "evaluation.benchmarks.alpaca_eval"
INPUT, ANSWERS, ANNOTATIONS = "alpaca_eval_input", "alpaca_eval_completions", "alpaca_eval_scores"
Z_975 = 1.959964
"""97.5 % quantile of the normal distribution."""


@dataclass
class AlpacaAnswers(Answers):
    """The policy's answers."""

    name = ANSWERS
    purpose = "alpaca_eval"
    reads = INPUT
    reads_schema = ALPACA_EVAL_INPUT


@dataclass
class Annotations(Stage[pa.Table]):
    """The annotator compares the policy's answer with the baseline's, in both orders."""

    name = ANNOTATIONS
    of = "version"
    schema = SCORES
    role: RoleName
    policy = None
    reads = ANSWERS
    reads_schema = COMPLETIONS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.annotator.submit(Scorer.score, with_baseline(table))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return result

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"pairs": 2 * table.num_rows}


class AlpacaEval(Benchmark):
    """AlpacaEval of one version of the policy."""

    name = "alpaca_eval"
    input_schema = ALPACA_EVAL_INPUT

    def __init__(self, config: AlpacaEvalConfig, role: RoleName, seed: int, shard_size: int):
        """role: that of the annotator. seed: of the run. shard_size: instructions per shard."""
        self._config, self._role, self._seed, self._shard_size = config, role, seed, shard_size

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        config = self._config
        instructions = read_instructions(dataset_file(config.instructions, f"{KEY}.instructions"))
        used = instructions[: config.limit]
        name, outputs = self._baseline(instructions, len(used))
        prompts = prompt_rows([item.text for item in used], chat, config.max_prompt_tokens, KEY)
        control = self._control_columns([item.text for item in instructions])
        rows = [
            prompt
            | {"dataset_completions": [output], "dataset_token_ids": [[]], "dataset_win_rates": [1.0]}
            | {"instruction_id": place, "dataset": item.dataset, "baseline": name}
            | control[place]
            for place, (prompt, item, output) in enumerate(zip(prompts, used, outputs, strict=True))
        ]
        return shards(pa.Table.from_pylist(rows, ALPACA_EVAL_INPUT), self._shard_size)

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        config = self._config
        return [AlpacaAnswers(policy, config.temperature, config.max_new_tokens), Annotations(self._role)]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        items = self._items(tables)
        numbers = head_to_head(item.preference for item in items)
        count = int(numbers["n_total"])
        missing = len(items) - count
        rate, error = numbers["win_rate"], numbers["standard_error"]
        lengths = [len(item.output) for item in items]
        note = f"percent; {PREFERENCE}" + (f"; {missing} without a verdict do not count" if missing else "")
        if self._role not in ("annotator", "evaluator"):
            note += "; annotated by the scorer that trains the policy"
        return [
            Result("win_rate", rate, error, rate - Z_975 * error, rate + Z_975 * error, count, note),
            *self._controlled_results(items, rate),
            Result("discrete_win_rate", numbers["discrete_win_rate"], num=count, note="percent; draws count 1/2"),
            Result("avg_length", float(np.mean(lengths)), num=len(items), note="characters"),
            truncated_result([item.is_truncated for item in items], any(item.is_from_file for item in items)),
            Result("empty", sum(not item.output for item in items), num=len(items), note="answers without text"),
            Result("missing", missing, num=len(items), note="answers without a verdict"),
            Result(
                "annotator_truncated",
                sum(item.annotator_truncated for item in items),
                num=2 * len(items),
                note="comparisons in which a text was cut for the annotator",
            ),
        ]

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """model_outputs.json, annotations.json, leaderboard.csv and the weights, as alpaca_eval writes them."""
        items = self._items(tables)
        baseline = items[0].row["baseline"] if items else ""
        numbers: dict[str, Any] = head_to_head(item.preference for item in items)
        numbers |= {"mode": "community", "avg_length": int(np.mean([len(item.output) for item in items]))}
        controlled, _ = self._controlled(items)
        predictions: Sequence[float] | None = None
        files = {}
        if controlled is not None:
            predictions = controlled.predictions.tolist()
            files[f"weights/{self._metric}/baseline_{baseline}.csv"] = alpaca_files.weights_file(
                generator, baseline, controlled.weights
            )
        if controlled is not None and self._config.length_controlled == "official":
            numbers["length_controlled_winrate"] = controlled.win_rate
            numbers["lc_standard_error"] = controlled.standard_error
        return files | {
            "model_outputs.json": alpaca_files.records(output_records(items, generator)),
            "annotations.json": alpaca_files.records(annotation_records(items, generator, predictions)),
            "leaderboard.csv": alpaca_files.leaderboard(generator, numbers),
        }

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """The answers of a file in the form of model_outputs.json."""
        everything = read_instructions(dataset_file(self._config.instructions, f"{KEY}.instructions"))
        asked = [messages[0]["content"] for table in inputs for messages in table["messages"].to_pylist()]
        outputs = iter(read_outputs(path, asked, [item.text for item in everything]).outputs)
        return {ANSWERS: [answered(table, [next(outputs) for _ in range(table.num_rows)], policy) for table in inputs]}

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        config, items = self._config, self._items(tables)
        content = repr([(item.instruction, item.baseline) for item in items]).encode("utf-8", "surrogatepass")
        sources = {"official": shown(config.gamed), "local": shown(str(config.known)), "none": "-"}
        return {
            "instructions": f"{len(items)} of {shown(config.instructions)}; with the baseline's answers, sha256 "
            f"{hashlib.sha256(content).hexdigest()[:12]}",
            "baseline": items[0].row["baseline"] if items else "",
            "judge": ", ".join(sorted({item.annotator for item in items})),
            "length control": f"{config.length_controlled}, {sources[config.length_controlled]}",
            **sampling_facts(
                (row for table in tables.of(ANSWERS, COMPLETIONS) for row in table.to_pylist()),
                config.temperature,
                config.max_new_tokens,
                self._seed,
            ),
        }

    def is_published(self, metric: str) -> bool:
        config = self._config
        whole = config.limit is None and config.baseline is None
        return whole and config.instructions == AlpacaEvalConfig.model_fields["instructions"].default

    def _baseline(self, instructions: Sequence[Instruction], count: int) -> tuple[str, list[str]]:
        """The baseline's name and its answers to the first `count` instructions."""
        config, texts = self._config, [item.text for item in instructions]
        if config.baseline:
            found = read_outputs(dataset_file(config.baseline, f"{KEY}.baseline"), texts[:count], texts)
            return config.baseline_name or found.generator, found.outputs
        outputs = [item.output for item in instructions[:count] if item.output is not None]
        if len(outputs) < count:
            raise DataError(
                f"{config.instructions}: {count - len(outputs)} of {count} rows have neither output nor "
                f"reference_output; add them, or name a file of answers in {KEY}.baseline"
            )
        return config.baseline_name or instructions[0].generator or "reference", outputs

    def _control_columns(self, instructions: Sequence[str]) -> list[dict[str, Any]]:
        """The columns of each instruction that its length-controlled win rate needs."""
        config, count = self._config, len(instructions)
        rows: list[dict[str, Any]] = [
            {"difficulty": math.nan, "gamed": [], "length_effect": math.nan, "opponents": []} for _ in instructions
        ]
        if config.length_controlled == "local":
            known = read_known(str(config.known), instructions)
            for row, difficulty in zip(rows, known.difficulties, strict=True):
                row |= {"difficulty": difficulty, "length_effect": known.length_effect}
        if config.length_controlled == "official":
            for number, of in enumerate(read_gamed(dataset_file(config.gamed, f"{KEY}.gamed"), count)):
                row = rows[of.instruction_id]
                row["gamed"].append({"row": number, "preference": of.preference, "length": of.length_difference})
                row["difficulty"] = of.difficulty
            opponents = self._opponents()
            for row in rows:
                row["opponents"] = opponents
            if config.instruction_difficulty:
                file = dataset_file(config.instruction_difficulty, f"{KEY}.instruction_difficulty")
                for row, difficulty in zip(rows, read_difficulties(file, count), strict=True):
                    row["difficulty"] = difficulty
        return rows

    def _opponents(self) -> list[dict[str, Any]]:
        """The published weights of the opponents. Raises ConfigError for names that the file does not have."""
        config = self._config
        if not config.weights:
            return []
        weights = read_weights(dataset_file(config.weights, f"{KEY}.weights"))
        if unknown := [name for name in config.opponents if name not in weights]:
            near = {name: get_close_matches(name, weights, 1) for name in unknown}
            asked = ", ".join(f"{name} (nearest: {', '.join(found) or 'none'})" for name, found in near.items())
            raise ConfigError([f"{KEY}.opponents: no weights of {asked} in {config.weights}"])
        return [{"name": name, "weights": [weights[name][part] for part in WEIGHTS]} for name in config.opponents]

    def _items(self, tables: BenchmarkTables) -> list[Item]:
        return list(items_of(tables.input(), tables.of(ANNOTATIONS, SCORES)))

    @property
    def _metric(self) -> str:
        return "length_controlled_local" if self._config.length_controlled == "local" else "length_controlled_winrate"

    def _controlled(self, items: Sequence[Item]) -> tuple[LengthControlled | None, str]:
        """The length-controlled win rate, and why there is none."""
        if self._config.length_controlled == "none":
            return None, "not asked for"
        differences = standardised_differences([len(i.baseline) for i in items], [len(i.output) for i in items])
        wins = [item.preference - 1 for item in items]
        difficulties = np.array([item.row["difficulty"] for item in items])
        try:
            if self._config.length_controlled == "local":
                known = KnownModels(difficulties, items[0].row["length_effect"])
                return length_control.local(wins, differences, known), ""
            return length_control.official(wins, differences, difficulties, gamed_rows(items)), ""
        except ValueError as error:
            return None, str(error)

    def _controlled_results(self, items: Sequence[Item], win_rate: float) -> list[Result]:
        """The length-controlled win rate over the baseline, and over each of the opponents."""
        if self._config.length_controlled == "none":
            return []
        found, note = self._controlled(items)
        if found is None:
            return [Result(self._metric, math.nan, note=note)]
        note = "percent; " + (LOCAL_FORMULA if self._config.length_controlled == "local" else OFFICIAL_FORMULA)
        if self._config.limit and self._config.length_controlled == "official":
            note += "; of the first instructions alone, so not comparable with published numbers"
        if length_control.is_extreme(win_rate, found.win_rate):
            note += "; very different from the raw win rate, so the regression may have failed"
        rate, error = found.win_rate, found.standard_error
        results = [Result(self._metric, rate, error, rate - Z_975 * error, rate + Z_975 * error, len(items), note)]
        for opponent in items[0].row["opponents"]:
            weights = dict(zip(WEIGHTS, opponent["weights"], strict=True))
            against = length_control.from_weights(found.weights, weights, [item.row["difficulty"] for item in items])
            note = "percent; from the weights of both against the same baseline"
            results.append(Result(f"{self._metric}/{opponent['name']}", against.win_rate, num=len(items), note=note))
        return results
