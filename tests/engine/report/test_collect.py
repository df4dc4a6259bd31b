"""What a run's tables say in figures: the win rate of the uniform mixture of iterates, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.algorithms.spac import SPAC
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary, iteration_metrics
from engine.report.page import tables
from engine.report.render import iterations_csv
from engine.report.summary import Summary
from engine.schema import COMPLETIONS, HELDOUT_WIN_RATES, append
from engine.store.run import RunStore
from tests.tables import shard

MIXTURE = "evaluate/win_rate_mixture_vs_start"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore(tmp_path / "run") as store:
        yield store


def judge(store: RunStore, version: int, rates: dict[str, float], shard_number: int = 0) -> None:
    """Commit what the evaluator said of `version` against the start, by held-out prompt."""
    answered = shard(COMPLETIONS, [1] * len(rates), prompt_id=list(rates))
    wins = list(rates.values())
    columns = {
        "opponents": [[0, 7]] * len(wins),
        "win_rates": [[win, 0.5] for win in wins],
        "previous": [7] * len(wins),
        "current": [7] * len(wins),
        "evaluator": ["oracle"] * len(wins),
    }
    store.commit(
        version,
        "heldout_win_rates",
        shard_number,
        append(answered, HELDOUT_WIN_RATES, "test", **columns),
        HELDOUT_WIN_RATES,
    )


def mixture(store: RunStore, version: int) -> float | None:
    return iteration_metrics(store, SPAC(name="spac"), version - 1).get(MIXTURE)


def test_the_mixture_wins_what_its_iterates_win_on_average(store: RunStore) -> None:
    judge(store, 1, {"a": 0.5, "b": 1.0, "c": 0.0})
    judge(store, 2, {"a": 1.0, "b": 0.5, "c": 0.75})
    judge(store, 3, {"a": 0.75, "b": 0.0, "c": 1.0})
    assert mixture(store, 1) == pytest.approx(1.5 / 3)  # of one iterate: its own
    assert mixture(store, 2) == pytest.approx((1.5 + 2.25) / 2 / 3)
    assert mixture(store, 3) == pytest.approx((1.5 + 2.25 + 1.75) / 3 / 3)


def test_its_interval_is_over_prompts_of_means_over_versions(store: RunStore) -> None:
    """Iterates that win on different prompts make a mixture that is the same everywhere: no spread is left."""
    judge(store, 1, {"a": 1.0, "b": 0.0})
    judge(store, 2, {"a": 0.0, "b": 1.0})
    figures = iteration_metrics(store, SPAC(name="spac"), 1)
    assert [figures[MIXTURE + end] for end in ("_low", "", "_high")] == [0.5, 0.5, 0.5]
    assert figures["evaluate/win_rate_vs_start_low"] < 0.5 < figures["evaluate/win_rate_vs_start_high"]


def test_prompts_are_matched_by_id_and_count_where_every_iterate_has_a_verdict(store: RunStore) -> None:
    judge(store, 1, {"a": 1.0, "b": math.nan})
    judge(store, 1, {"c": 0.0}, shard_number=1)
    judge(store, 2, {"c": 0.5, "b": 1.0, "a": 0.5})
    assert mixture(store, 2) == pytest.approx(((1.0 + 0.5) / 2 + (0.0 + 0.5) / 2) / 2)


def test_without_a_verdict_on_one_of_the_iterates_there_is_no_mixture(store: RunStore) -> None:
    judge(store, 2, {"a": 0.5})
    assert mixture(store, 2) is None
    assert "evaluate/win_rate_vs_start" in iteration_metrics(store, SPAC(name="spac"), 1)


def test_the_report_shows_the_mixture_in_columns_of_its_own() -> None:
    rate = WinRate(0.611, 0.5, 0.7, 3)
    iterations = (IterationSummary(1, win_rate_mixture=rate),)
    heading, row = iterations_csv(Summary(name="mixed", iterations=iterations)).splitlines()
    cells = dict(zip(heading.split(","), row.split(","), strict=True))
    assert [cells[f"win_rate_mixture{end}"] for end in ("", "_low", "_high")] == ["0.611", "0.5", "0.7"]
    [(_, headings, rows)] = tables(iterations)
    assert headings == ["iteration", "mixture of iterates 1..t against start"]
    assert rows == [["1", "61.1 % [50.0, 70.0]"]]
