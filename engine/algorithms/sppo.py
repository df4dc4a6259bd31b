"""SPPO, self-play preference optimization (arXiv 2405.00675): regress log-ratios onto win rates.

Each answer's log-ratio to the previous iterate is fitted to eta * (P_hat - baseline), where P_hat is
the share of the policy's own answers that it beats. The released code computes something else in
places; where it does, both forms are offered and the paper's is the default.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from engine.algorithm import Algorithm, Batch, Selection, row_of
from engine.maths import losses, preference

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

ESTIMATORS = {
    "pairwise": preference.pairwise_win_probabilities,
    "bt_aggregate": preference.bradley_terry_win_probabilities,
}


class SPPO(Algorithm):
    """Parameters of SPPO."""

    name: Literal["sppo"] = "sppo"
    eta: float = Field(default=1000.0, gt=0.0)
    """Step size of the multiplicative-weights update; 1 / `beta` of the released code."""
    estimator: Literal["pairwise", "bt_aggregate"] = "pairwise"
    """pairwise: sigmoid of the symmetrised pair logit (paper); bt_aggregate: of score differences (scripts)."""
    baseline: Literal["half", "logpartition"] | float = "half"
    """What a win rate is compared with: 1/2 (eq. 4.7), log Z / eta per prompt (eq. 4.5), or a number."""
    train_on: Literal["best_worst", "all"] = "best_worst"
    """The answers with the highest and lowest win rate, or all K."""
    ties: Literal["drop", "keep"] = "drop"
    """Prompts whose best and worst answer have equal win rates or are the same answer."""
    truncated: Literal["keep", "exclude"] = "keep"
    """Answers cut by the length limit: train on them, or leave them to the win rates alone."""
    empty: Literal["keep", "exclude"] = "keep"
    """Answers without text, likewise."""

    def select(self, scored: pa.Table) -> Selection:
        names = ("prompts", "ties", "no_pair", "missing", "duplicates", "truncated", "empty")
        counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        rows = [row for prompt in scored.to_pylist() if (row := self._row(prompt, counts))]
        return Selection.of(rows, counts, "sppo rows")

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        """One training row, or None where the declared rules leave nothing to learn from."""
        counts["prompts"] += 1
        counts["duplicates"] += len(prompt["answers"]) - len(set(prompt["answers"]))
        rates = preference.win_rates(ESTIMATORS[self.estimator](np.array(prompt["pair_logits"])))
        if np.isnan(rates).any():  # a judge gave no readable verdict in either order
            counts["missing"] += 1
            return None
        chosen = self._choose(rates, self._eligible(prompt, counts))
        if len(chosen) < 2:
            counts["no_pair"] += 1
            return None
        best, worst = chosen[int(np.argmax(rates[chosen]))], chosen[int(np.argmin(rates[chosen]))]
        if rates[best] == rates[worst] or prompt["answers"][best] == prompt["answers"][worst]:
            counts["ties"] += 1
            if self.ties == "drop":
                return None
        token_ids = [prompt["answer_token_ids"][i] for i in chosen]
        return row_of(prompt, chosen, token_ids, rates[chosen].tolist(), self._baseline(rates))

    def _eligible(self, prompt: dict, counts: Counter[str]) -> list[int]:
        """Indices of the answers that may train; counts what each rule looked at."""
        truncated = {i for i, reason in enumerate(prompt["finish_reasons"]) if reason == "length"}
        empty = {i for i, answer in enumerate(prompt["answers"]) if not answer.strip()}
        counts["truncated"] += len(truncated)
        counts["empty"] += len(empty)
        barred = (truncated if self.truncated == "exclude" else set()) | (empty if self.empty == "exclude" else set())
        return [i for i in range(len(prompt["answers"])) if i not in barred]

    def _choose(self, rates: np.ndarray, eligible: list[int]) -> list[int]:
        """Indices of the answers that train; among equals the first sampled wins, so ties never wobble."""
        if self.train_on == "all" or len(eligible) < 2:
            return eligible
        best = max(eligible, key=lambda i: (rates[i], -i))
        worst = min((i for i in eligible if i != best), key=lambda i: (rates[i], i))
        return [best, worst]

    def _baseline(self, rates: np.ndarray) -> float:
        if self.baseline == "half":
            return 0.5
        if self.baseline == "logpartition":
            return preference.log_partition(rates, self.eta) / self.eta
        return float(self.baseline)

    def loss(self, batch: Batch) -> Tensor:
        """[B] mean over the row's answers of equation 4.7 (4.12 for the pair, averaged as the released code does)."""
        return losses.sppo(batch.log_ratio, batch.win_rate, batch.baseline, self.eta).mean(dim=-1)

    def reward_scale(self) -> float:
        return 1.0 / self.eta
