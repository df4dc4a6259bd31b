"""Rows of a preference set from the tables of a run, under the column names of TRL, of Snorkel's set and of SPPO's.

    TRL        prompt, chosen, rejected (conversational, explicit prompt); completion, label for single answers
    Snorkel    prompt_id, all_generated_responses, all_rm_scores
    SPPO       generate_0 ..., rm_scores, probability, chosen_probs, chosen_probs_win, chosen_probs_lose

A missing verdict, NaN in the tables, is null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms import preference
from engine.algorithms.base import best_and_worst
from engine.schema import MESSAGES, OTHER_PROMPT, REALS, VERDICT

MATRIX = pa.list_(REALS)
TEXTS = pa.list_(pa.string())


@dataclass(frozen=True)
class Layout:
    """Which columns a set has; all its splits have the same ones."""

    labelled: bool
    """Whether a row is one answer with a label, as KTO learns from, rather than a pair."""
    num_answers: int
    """The largest number of sampled answers of a row; 0: none were sampled."""
    scored: bool
    """Whether answers were compared."""

    @property
    def schema(self) -> pa.Schema:
        columns = [("prompt_id", pa.string()), ("prompt", MESSAGES)]
        if self.labelled:
            columns += [("completion", MESSAGES), ("label", pa.bool_())]
        else:
            columns += [("chosen", MESSAGES), ("rejected", MESSAGES)]
            columns += [(name, pa.float64()) for name in ("chosen_probs", "chosen_probs_win", "chosen_probs_lose")]
        if self.num_answers:
            columns += [("all_generated_responses", TEXTS), ("finish_reasons", TEXTS), ("seeds", pa.list_(pa.int64()))]
            columns += [("response_policy_ids", TEXTS), ("temperature", pa.float64()), ("top_p", pa.float64())]
            columns += [(f"generate_{k}", MESSAGES) for k in range(self.num_answers)]
        if self.scored:
            columns += [("all_rm_scores", REALS), ("rm_scores", REALS), ("probability", MATRIX)]
            columns += [("pair_logits", MATRIX), ("verdicts", pa.list_(VERDICT)), ("judge_id", pa.string())]
        return pa.schema([*columns, ("iteration", pa.int32()), ("policy_id", pa.string()), ("seed", pa.int64())])

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The rows as a table; NaN at any depth, and a column that a row does not have, become null."""
        names = self.schema.names
        return pa.Table.from_pylist([{name: nulled(row.get(name)) for name in names} for row in rows], self.schema)


@dataclass(frozen=True)
class Source:
    """Where the rows of one split come from."""

    iteration: int
    """Counted from 1."""
    start: str
    """Digest of the policy that the run started from."""
    seed: int
    """Of the run."""
    temperature: float
    top_p: float
    win_probabilities: Callable[[np.ndarray], np.ndarray]
    """[K, K] pair logits -> [K, K] P(i beats j)."""

    @property
    def columns(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "seed": self.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


def training_rows(table: pa.Table, selected: pa.Table, source: Source, labelled: bool) -> Iterator[dict[str, Any]]:
    """The rows that trained: `selected` (engine.schema.SELECTED) with the texts of the `table` it was made of."""
    prompts = {row["prompt_id"]: row for row in table.to_pylist()}
    for row in selected.to_pylist():
        prompt = prompts[row["prompt_id"]]
        probability = source.win_probabilities(np.array(prompt["pair_logits"])) if "pair_logits" in prompt else None
        columns = {"prompt_id": row["prompt_id"], "prompt": prompt["messages"], **source.columns}
        columns |= _answers(prompt, source) | _scores(prompt, probability)
        yield columns | (_labelled(row, prompt) if labelled else _pair(row, prompt, probability))


def heldout_rows(table: pa.Table, start: pa.Table, source: Source) -> Iterator[dict[str, Any]]:
    """Held-out prompts with a verdict: the policy's only answer against the start policy's.

    table: engine.schema.HELDOUT_WIN_RATES of a version that answered once; start: COMPLETIONS of the start policy. The
    verdicts are wins and losses, so P is 1 or 0. Ties and prompts without a verdict are left out.
    """
    for row, other in zip(table.to_pylist(), start.to_pylist(), strict=True):
        win = row["win_rates"][row["opponents"].index(0)]
        if math.isnan(win) or win == 0.5:
            continue
        both = {name: [*row[name], *other[name]] for name in ("completions", "finish_reasons", "seeds")}
        prompt = {**row, **both, "num_from_policy": 1}
        probability = np.array([[0.5, win], [1.0 - win, 0.5]])
        choice = {"completion_index": [0, 1] if win > 0.5 else [1, 0], "win_rate": [1.0, 0.0]}
        columns = {"prompt_id": row["prompt_id"], "prompt": row["messages"], **source.columns}
        columns |= _answers(prompt, source) | {"judge_id": row["evaluator"], "probability": probability.tolist()}
        yield columns | _pair(choice, prompt, probability)


def dataset_rows(table: pa.Table, source: Source, labelled: bool) -> Iterator[dict[str, Any]]:
    """Held-out preferences of a data set (engine.schema.PROMPTS), as they were given."""
    for prompt in table.to_pylist():
        rates = prompt["dataset_win_rates"]
        row = {"completion_index": [-1 - g for g in range(len(rates))], "win_rate": rates}
        columns = {"prompt_id": prompt["prompt_id"], "prompt": prompt["messages"], "seed": source.seed}
        yield columns | (_labelled(row, prompt) if labelled else _pair(row, prompt, None))


def _answers(prompt: dict[str, Any], source: Source) -> dict[str, Any]:
    """The sampled answers; {} where there are none."""
    if "completions" not in prompt:
        return {}
    answers, own, policy = prompt["completions"], prompt["num_from_policy"], prompt["weights"]
    return {
        "policy_id": policy,
        "all_generated_responses": answers,
        "finish_reasons": prompt["finish_reasons"],
        "seeds": prompt["seeds"],
        "response_policy_ids": [policy] * own + [source.start] * (len(answers) - own),
        **{f"generate_{k}": [*prompt["messages"], _assistant(answer)] for k, answer in enumerate(answers)},
    }


def _scores(prompt: dict[str, Any], probability: np.ndarray | None) -> dict[str, Any]:
    """What the scorer said; {} where it was not asked.

    rm_scores: mean_j (M_ij - M_ji) with the zero diagonal, as in SPPO's scripts.
    """
    if probability is None:
        return {}
    rm_scores = (2 * preference.mean_logits(np.array(prompt["pair_logits"]))).tolist()
    return {
        "all_rm_scores": prompt["scores"] or rm_scores,
        "rm_scores": rm_scores,
        "probability": probability.tolist(),
        "pair_logits": prompt["pair_logits"],
        "verdicts": prompt["verdicts"],
        "judge_id": prompt["scorer"],
    }


def _labelled(row: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    """One answer of a data set with its label."""
    text = answer_text(prompt, row["completion_index"][0])
    return {"completion": [_assistant(text)], "label": row["win_rate"][0] > 0.5}


def _pair(row: dict[str, Any], prompt: dict[str, Any], probability: np.ndarray | None) -> dict[str, Any]:
    """Chosen and rejected, with SPPO's probabilities where both were compared, else the labels that trained."""
    (chosen, win), (rejected, lose) = _chosen_and_rejected(row)
    between: float | None = win if math.isclose(win + lose, 1.0) else None
    if probability is not None and min(chosen, rejected) >= 0:
        win, lose = preference.win_rates(probability)[[chosen, rejected]].tolist()
        between = float(probability[chosen, rejected])
    return {
        "chosen": [_assistant(answer_text(prompt, chosen))],
        "rejected": [_assistant(answer_text(prompt, rejected))],
        "chosen_probs": between,
        "chosen_probs_win": win,
        "chosen_probs_lose": lose,
    }


def _chosen_and_rejected(row: dict[str, Any]) -> list[tuple[int, float]]:
    """[(completion_index, win rate)] of the chosen and of the rejected answer.

    A pair, also one of a data set with samples behind it, begins with the two; among answers that all were sampled
    they are the best and the worst.
    """
    pairs = zip(row["completion_index"], row["win_rate"], strict=True)
    answers = [(index, rate) for index, rate in pairs if index != OTHER_PROMPT]
    if len(answers) == 2 or min(answers)[0] < 0:
        return answers[:2]
    best, worst = best_and_worst([rate for _, rate in answers], range(len(answers)))
    return [answers[best], answers[worst]]


def answer_text(prompt: dict[str, Any], index: int) -> str:
    """The text behind a `completion_index`: a sampled answer, or one of the data set."""
    return prompt["completions"][index] if index >= 0 else prompt["dataset_completions"][-1 - index]


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def nulled(value: Any) -> Any:
    """The same value with None in place of NaN, at any depth."""
    if isinstance(value, list):
        return [nulled(item) for item in value]
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
