"""What an iteration's tables say of its LLM judge, and what of it a person should be told.

Reads SCORED and CANARY; other scorers than judges have no figures here. docs/judges.md says what each means.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from engine.maths.judging import Habits, canary_win_rate, habits
from engine.schema import CANARY, SCORED
from engine.store.run import RunStore

ENOUGH = 8
"""Verdicts from which on it is no coincidence that all are the same."""


def judge_figures(store: RunStore, t: int) -> dict[str, float]:
    """Iteration t's `judge/...` metrics; empty where no LLM judge scored it."""
    total = Habits()
    for table in store.tables(t, "scored", SCORED):
        total = sum((_habits(row) for row in _judged_rows(table)), total)
    if not total.num_asked:
        return {}
    figures = {"num_asked": float(total.num_asked), **total.figures()}
    canary = [prob for table in store.tables(t, "canary", CANARY) for prob in table["win_prob"].to_pylist()]
    if (rate := canary_win_rate(canary)) is not None:
        figures["canary_win_rate"] = rate
    return {f"judge/{name}": value for name, value in figures.items()}


def judge_warnings(figures: Mapping[str, float]) -> list[str]:
    """Sentences about a judge whose verdicts say little of the answers, from the metrics of an iteration."""
    found = []
    read = figures.get("judge/num_asked", 0.0) * (1.0 - figures.get("judge/missing_rate", 0.0))
    if figures.get("judge/commonest_verdict") == 1.0 and read >= ENOUGH:
        found.append(
            f"warning: the judge always says the same ({_always(figures)}, {read:,.0f} times); its verdicts tell "
            f"nothing about the answers"
        )
    if (missing := figures.get("judge/missing_rate", 0.0)) > 0.5:
        found.append(f"warning: {missing:.0%} of the judge's replies could not be read; look at the column verdicts")
    if (unjudged := figures.get("evaluate/missing_rate", 0.0)) > 0.5:
        found.append(f"warning: the evaluator gave no verdict on {unjudged:.0%} of the held-out prompts")
    if (canary := figures.get("judge/canary_win_rate", 0.0)) > 0.5:
        found.append(
            f"warning: the judge prefers an answer that says nothing to the policy's on {canary:.0%} of the prompts "
            f"on which it was tried"
        )
    return found


def _always(figures: Mapping[str, float]) -> str:
    if "judge/position_bias" not in figures:
        return "one score for all"
    if figures.get("judge/tie_rate") == 1.0:
        return "a tie"
    return "the answer shown first" if figures["judge/position_bias"] > 0 else "the answer shown second"


def _judged_rows(table: pa.Table) -> list[dict]:
    rows = table.select(["pair_logits", "verdicts", "answer_token_ids"]).to_pylist()
    return [row for row in rows if row["verdicts"]]


def _habits(row: dict) -> Habits:
    questions = [(verdict["answer"], verdict["other"], verdict["value"]) for verdict in row["verdicts"]]
    return habits(row["pair_logits"], questions, [len(ids) for ids in row["answer_token_ids"]])
