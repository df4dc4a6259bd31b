"""SPPO, self-play preference optimization (arXiv 2405.00675): regress log-ratios onto win rates.

The log-ratio of each answer to the previous iterate is fitted to eta * (P_hat - baseline), where P_hat is the
answer's estimated win rate against the policy's own answers. Where the released code differs from the paper, both
forms are offered and the paper's is the default.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from engine.algorithms import losses, preference
from engine.algorithms.base import Batch, ScoredAnswers, best_and_worst, row_of

if TYPE_CHECKING:
    from torch import Tensor


class SPPO(ScoredAnswers):
    """Parameters of SPPO."""

    name: Literal["sppo"] = "sppo"
    eta: float = Field(default=1000.0, gt=0.0)
    """Step size of the multiplicative-weights update; 1 / beta of the released code."""
    estimator: Literal["pairwise", "bt_aggregate"] = "pairwise"
    """pairwise: sigmoid of the symmetrised pair logit (paper); bt_aggregate: of score differences (scripts)."""
    baseline: Literal["half", "logpartition"] | float = "half"
    """Subtracted from a win rate. half: 1/2 (eq. 4.7); logpartition: log Z / eta of the prompt (eq. 4.5); a number."""
    train_on: Literal["best_worst", "all"] = "best_worst"
    """The best and the worst answer, or all K answers."""
    choose_by: Literal["logit", "win_rate"] = "logit"
    """What best and worst are chosen by: the mean pair logit (paper, section 5, and scripts) or the win rate."""

    @property
    def win_estimator(self) -> str:
        return self.estimator

    def _row(self, prompt: dict, counts: Counter[str]) -> dict | None:
        eligible, logits = self._eligible(prompt, counts), np.array(prompt["pair_logits"])
        rates = preference.win_rates(preference.ESTIMATORS[self.estimator](logits))
        if np.isnan(rates).any():  # a pair has no readable verdict in either order
            counts["missing"] += 1
            return None
        if len(eligible) < 2:
            counts["no_pair"] += 1
            return None
        values = (preference.mean_logits(logits) if self.choose_by == "logit" else rates).tolist()
        best, worst = best_and_worst(values, eligible)
        if self._is_dropped_tie(prompt, best, worst, values, counts):
            return None
        chosen = eligible if self.train_on == "all" else [best, worst]
        token_ids = [prompt["completion_token_ids"][i] for i in chosen]
        return row_of(prompt, chosen, token_ids, rates[chosen].tolist(), self._baseline(rates))

    def _baseline(self, rates: np.ndarray) -> float:
        if self.baseline == "half":
            return 0.5
        if self.baseline == "logpartition":
            return preference.log_partition(rates, self.eta) / self.eta
        return float(self.baseline)

    def loss(self, batch: Batch) -> Tensor:
        """[B] mean of equation 4.7 over the row's answers; 4.12 for a pair, averaged as in the released code."""
        return losses.squared_error(batch.log_ratio, batch.win_rate, batch.baseline, self.eta).mean(dim=-1)

    def reward_scale(self) -> float:
        return 1.0 / self.eta
