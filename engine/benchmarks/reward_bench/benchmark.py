"""RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937): how often a scorer prefers the right answer.

They measure the annotator, which stays the same, so they run once for all versions of the policy. Beside the published
numbers stands the card of the judge: position, length, calibration.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import shown
from engine.benchmarks.reward_bench.items import read_items
from engine.benchmarks.reward_bench.scores import SECTIONS, TIES, Item, credit, sections, ties_score, utilities
from engine.config.benchmarks import RewardBenchConfig
from engine.config.run import RoleName
from engine.data.ingest import Renderer, shards
from engine.evaluation import judge_card
from engine.evaluation.judge_card import Pair
from engine.evaluation.statistics import Interval, JudgeBias, clustered_share, judge_bias
from engine.loop.roles import Roles, Scorer, Timed
from engine.loop.stages import Stage
from engine.schema import COMPLETIONS, REWARD_BENCH_ITEMS, REWARD_BENCH_SCORES
from engine.store.reader import Policy

SCORES_STAGE = "reward_bench_scores"
HUB_IDS = ("allenai/reward-bench", "allenai/reward-bench-2")
ScoredRow = dict[str, Any]
"""A row of engine.schema.REWARD_BENCH_SCORES."""


@dataclass
class RewardBenchScores(Stage[pa.Table]):
    """The scorer compares the answers of each item."""

    name = SCORES_STAGE
    of = "version"
    schema = REWARD_BENCH_SCORES
    role: RoleName
    policy = None
    reads = "reward_bench_input"
    reads_schema = REWARD_BENCH_ITEMS
    reads_iteration = 0

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.annotator.submit(Scorer.score, table.select(COMPLETIONS.names))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        rows = [
            {"lengths": [len(text) for text in item["completions"]], **item, **scores}
            for item, scores in zip(table.to_pylist(), result.to_pylist(), strict=True)
        ]
        return pa.Table.from_pylist([{n: r[n] for n in REWARD_BENCH_SCORES.names} for r in rows], REWARD_BENCH_SCORES)

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"items": table.num_rows}


class RewardBench(Benchmark):
    """RewardBench of the annotator."""

    name = "reward_bench"
    input_schema = REWARD_BENCH_ITEMS
    depends_on_policy = False

    def __init__(self, config: RewardBenchConfig, role: RoleName, shard_size: int):
        """role: that of the scorer. shard_size: items per shard."""
        self._config, self._role, self._shard_size = config, role, shard_size

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        return shards(read_items(self._config, chat), self._shard_size)

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        return [RewardBenchScores(self._role)]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        rows = _rows(tables)
        return [*published_results(rows), *card_results(rows)]

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """The card as JSON, and every pair with its verdict as CSV."""
        rows = _rows(tables)
        pairs = [pair for row in rows for pair in pairs_of(row)]
        bins = [asdict(b) for b in judge_card.calibration(pairs)]
        card = {
            "scorer": rows[0]["scorer"] if rows else "",
            "results": [asdict(result) for result in self.results(tables)],
            "confusion": judge_card.confusion(pairs),
            "calibration": bins,
        }
        return {"judge_card.json": json.dumps(_without_nan(card), indent=2) + "\n", "verdicts.csv": _csv(pairs)}

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """Nothing: no policy is asked."""
        return {}

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        content = hashlib.sha256()
        count = 0
        for row in (row for table in tables.input() for row in table.to_pylist()):
            content.update(repr((row["item_id"], row["messages"], row["completions"], row["is_chosen"])).encode())
            count += 1
        return {
            "items": f"{count} of {shown(self._config.source)}, sha256 {content.hexdigest()[:12]}",
            "judge": ", ".join(sorted({row["scorer"] for row in _rows(tables)})),
        }

    def is_published(self, metric: str) -> bool:
        return self._config.source in HUB_IDS and self._config.items_per_subset is None


def published_results(rows: Sequence[ScoredRow]) -> list[Result]:
    """The accuracy of each subset, the sections of version 1, and the score: the mean of the sections or subsets."""
    judged = any(row["verdicts"] for row in rows)
    items: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        values = utilities(row["pair_logits"], row["scores"])
        items[row["subset"]].append(Item(row["item_id"], row["subset"], tuple(row["is_chosen"]), values))
    found = [_subset(name, of, strict=not judged) for name, of in items.items()]
    accuracies = {result.metric.removeprefix("subset/"): result.value for result in found}
    by_section = sections(accuracies)
    parts = by_section or accuracies
    note = f"mean of {len(parts)} of {len(SECTIONS)} sections" if by_section else f"mean of {len(parts)} subsets"
    return [
        Result("score", float(np.mean(list(parts.values()))) if parts else math.nan, num=len(rows), note=note),
        *(Result(f"section/{name}", value) for name, value in by_section.items()),
        *found,
    ]


def _subset(name: str, items: Sequence[Item], *, strict: bool) -> Result:
    unknown = sum(bool(np.isnan(item.utilities).all()) for item in items)
    note = f"{unknown} of {len(items)} without a verdict count as chance" if unknown and not strict else ""
    if name.lower() == TIES:
        value = ties_score(items)
        note = note or ("no prompt has both a ref and a tied item" if math.isnan(value) else "")
        return Result(f"subset/{name}", value, num=len(items), note=note)
    credits = [credit(item, strict=strict) for item in items]
    interval = clustered_share(credits, range(len(credits)))
    stderr = float(np.std(credits, ddof=1) / math.sqrt(len(credits))) if len(credits) > 1 else math.nan
    return Result(f"subset/{name}", interval.mean, stderr, interval.low, interval.high, len(credits), note)


def card_results(rows: Sequence[ScoredRow]) -> list[Result]:
    """How the scorer judges pairs of a chosen and a rejected answer."""
    pairs = [pair for row in rows for pair in pairs_of(row)]
    counts = judge_card.verdict_counts(pairs)
    decided = len(pairs) - counts["none"]
    by_length = judge_card.length_bias(pairs)
    bias = sum((_bias(row) for row in rows), JudgeBias())
    bins = judge_card.calibration(pairs)

    def rate(metric: str, value: float | None, num: int, note: str = "") -> Result:
        return Result(metric, math.nan if value is None else float(value), num=int(num), note=note)

    return [
        _result("accuracy", judge_card.accuracy(pairs), decided, "pairs; ties count 1/2, no verdict does not count"),
        *(Result(f"verdicts/{verdict}", float(n), num=len(pairs)) for verdict, n in counts.items()),
        rate("truncated", float(sum(row["num_truncated"] for row in rows)), len(rows), "comparisons with a text cut"),
        rate("consistency", bias.consistency, bias.num_both_orders, "same verdict in both orders"),
        rate("position_bias", bias.position_bias, bias.num_ordered, "P(first is better) - 1/2"),
        rate("longer_preferred", bias.longer_preferred, bias.num_unequal_length),
        _result("accuracy/chosen_is_longer", by_length.longer, by_length.num_longer),
        _result("accuracy/chosen_is_shorter", by_length.shorter, by_length.num_shorter),
        rate("length_bias", by_length.difference, by_length.num_longer + by_length.num_shorter, "longer less shorter"),
        _result("log_loss", judge_card.log_loss(pairs), decided, "nats; 0.693 without any knowledge"),
        _result("brier", judge_card.brier(pairs), decided, "0.25 without any knowledge"),
        rate("calibration_error", judge_card.expected_calibration_error(bins), decided, f"{len(bins)} bins"),
    ]


def pairs_of(row: ScoredRow) -> Iterator[Pair]:
    """Every chosen answer against every rejected one."""
    asked = {(said["answer"], said["other"]) for said in row["verdicts"] if said["other"] >= 0}
    logits, lengths = row["pair_logits"], row["lengths"]

    def logit(first: int, second: int) -> float | None:
        value = logits[first][second]
        return None if math.isnan(value) and asked and (first, second) not in asked else value

    right = [n for n, chosen in enumerate(row["is_chosen"]) if chosen]
    wrong = [n for n, chosen in enumerate(row["is_chosen"]) if not chosen]
    for c in right:
        for r in wrong:
            item = f"{row['subset']}/{row['item_id']}"
            yield Pair(item, row["subset"], logit(c, r), logit(r, c), lengths[c], lengths[r])


def _bias(row: ScoredRow) -> JudgeBias:
    """Of all comparisons of the item; a scorer that keeps no replies compares every ordered pair."""
    size = len(row["lengths"])
    questions = [(said["answer"], said["other"], said["value"]) for said in row["verdicts"]]
    every = [(i, j, row["pair_logits"][i][j]) for i in range(size) for j in range(size) if i != j]
    return judge_bias(row["pair_logits"], questions or every, row["lengths"])


def _result(metric: str, interval: Interval | None, num: int, note: str = "") -> Result:
    if interval is None:
        return Result(metric, math.nan, num=num, note="no pair has a verdict")
    return Result(metric, interval.mean, math.nan, interval.low, interval.high, num, note)


def _rows(tables: BenchmarkTables) -> list[ScoredRow]:
    return [row for table in tables.of(SCORES_STAGE, REWARD_BENCH_SCORES) for row in table.to_pylist()]


def _csv(pairs: Iterable[Pair]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("item", "subset", "chosen_first", "rejected_first", "chosen_length", "rejected_length")
    writer.writerow([*names, "probability", "verdict"])
    for pair in pairs:
        writer.writerow([_cell(getattr(pair, name)) for name in (*names, "probability", "verdict")])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else _cell(value)
