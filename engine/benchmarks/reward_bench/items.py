"""RewardBench's rows as a table that any scorer can read: a prompt with right and wrong answers, in a drawn order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.benchmarks.files import read_objects
from engine.benchmarks.reward_bench.scores import TIES, ties_id
from engine.config.benchmarks import RewardBenchConfig
from engine.data.chats import Message, prompt_of
from engine.data.ingest import Renderer, content_id
from engine.data.values import RowError, text_of, type_name
from engine.errors import DataError, ModelError
from engine.schema import NO_DATASET_COMPLETIONS, REWARD_BENCH_ITEMS
from engine.seeds import derive_seed


@dataclass(frozen=True)
class Row:
    """One item of the source."""

    id: str
    """That of the row, or "" if it has none."""
    subset: str
    messages: list[Message]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


def read_items(config: RewardBenchConfig, chat: Renderer) -> pa.Table:
    """engine.schema.REWARD_BENCH_ITEMS of the source, in its order. Raises DataError with all rows that are wrong."""
    numbers: Counter[str] = Counter()
    rows = []
    # Versions number their rows differently, so `id` (of the object) tells rows apart and the column `id` need not.
    for place, row in enumerate(read_objects(config.source, _row, "row", id, config.split)):
        numbers[row.subset] += 1
        if config.items_per_subset is None or numbers[row.subset] <= config.items_per_subset:
            rows.append((row.id or str(place), row))
    _check_ties(config.source, rows)
    occurrences: Counter[str] = Counter()
    items = [_item(name, row, chat, occurrences, config.source) for name, row in rows]
    return pa.Table.from_pylist(items, REWARD_BENCH_ITEMS)


def _row(row: dict[str, Any]) -> Row:
    answers = {side: _answers(row.get(side), side) for side in ("chosen", "rejected")}
    if both := set(answers["chosen"]) & set(answers["rejected"]):
        raise RowError(f"chosen and rejected hold the same answer, {next(iter(both))[:40]!r}")
    if "prompt" not in row:
        raise RowError("has no column prompt; expected prompt, chosen and rejected")
    subset = row.get("subset")
    name = row.get("id")
    found = Row(
        "" if name is None else str(name),
        "all" if subset is None else text_of(subset, "subset"),
        prompt_of(row, "prompt", []),
        *answers.values(),
    )
    if found.subset.lower() == TIES:
        _check_ties_row(found)
    return found


def _answers(value: Any, side: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise RowError(f"{side} holds {type_name(value)}; expected a text or a list of texts")
    return tuple(text_of(text, f"{side}[{n}]") for n, text in enumerate(texts))


def _check_ties_row(row: Row) -> None:
    try:
        kind, _ = ties_id(row.id)
    except ValueError as error:
        raise RowError(str(error)) from None
    if (kind == "tied") != (len(row.chosen) > 1):
        raise RowError(f"{row.id} has {len(row.chosen)} chosen answers; expected one for ref and several for tied")


def _check_ties(source: str, rows: list[tuple[str, Row]]) -> None:
    counts = Counter(name for name, row in rows if row.subset.lower() == TIES)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(f"{source}: ids of the subset {TIES} occur more than once: {', '.join(repeated[:20])}")


def _item(name: str, row: Row, chat: Renderer, occurrences: Counter[str], source: str) -> dict[str, Any]:
    """A row of engine.schema.REWARD_BENCH_ITEMS. The order of answers is drawn, so that no position is the truth."""
    digest = content_id(row.messages)
    prompt_id = f"{digest}-{occurrences[digest]}"
    occurrences[digest] += 1
    try:
        text = chat.render(row.messages)[0]
    except ModelError as error:
        raise DataError(f"{source}, item {name} of {row.subset}: {error}") from error
    answers = [(answer, True) for answer in row.chosen] + [(answer, False) for answer in row.rejected]
    order = sorted(range(len(answers)), key=lambda n: derive_seed("reward_bench", row.subset, name, n))
    count = len(answers)
    return {
        "prompt_id": prompt_id,
        "messages": row.messages,
        "prompt_text": text,
        "prompt_token_ids": [],  # scorers read texts
        **NO_DATASET_COMPLETIONS,
        "completions": [answers[n][0] for n in order],
        "completion_token_ids": [[]] * count,
        "completion_logps": [0.0] * count,
        "finish_reasons": ["stop"] * count,
        "seeds": [0] * count,
        "weights": "",
        "num_from_policy": 0,
        "item_id": name,
        "subset": row.subset,
        "is_chosen": [answers[n][1] for n in order],
    }
