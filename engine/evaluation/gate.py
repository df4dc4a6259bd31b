"""The gate: which versions of the policy are promoted, and which one to take.

A version is promoted if its held-out win rate against the current version passes the rule and no alarm fires. The
current version is the one promoted last; the start policy before any. Each decision is computed from committed tables
alone and committed itself, so a resumed run decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa

from engine.config.evaluation import GateConfig
from engine.schema import GATE
from engine.store.reader import RunReader

STAGE = "gate"


@dataclass(frozen=True)
class Decision:
    """Whether one version was promoted."""

    version: int
    against: int
    """The version that was current."""
    promoted: bool
    win_rate: float
    """On held-out prompts, of the version against the current one, in [0, 1]; NaN without a verdict."""
    low: float
    high: float
    """Ends of its 95 % interval."""
    reasons: tuple[str, ...]
    """Why it was not promoted, one sentence for the rule and for each alarm; empty if it was."""

    def in_words(self) -> str:
        """One line for people."""
        rate = f"{100 * self.win_rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        if self.promoted:
            return f"version {self.version} is promoted: it wins {rate} against version {self.against}, and no alarm"
        return f"version {self.version} is not promoted: {'; '.join(self.reasons)}"


class Alarm(NamedTuple):
    """A figure of an iteration and the bound that it must keep."""

    figure: str
    """Its name in metrics.jsonl."""
    bound: float | None
    """None: no alarm."""
    is_maximum: bool
    text: str
    """What is wrong, with {value} and {bound}."""


def alarms(config: GateConfig) -> tuple[Alarm, ...]:
    """Every alarm of the gate."""
    return (
        Alarm("evaluate/length_ratio", config.max_length_ratio, True,
              "its answers are {value:.2f} times as long as those of the start, more than {bound:g} times"),
        Alarm("evaluate/kl", config.max_kl, True,
              "its KL divergence from the start is {value:.1f} nats per answer, more than {bound:g}"),
        Alarm("evaluate/truncation_rise", config.max_truncation_rise, True,
              "the share of truncated answers rose by {value:.2f} since the start, more than {bound:g}"),
        Alarm("evaluate/entropy_ratio", config.min_entropy_ratio, False,
              "its entropy per token is {value:.2f} times that of the start, less than {bound:g} times"),
        Alarm("score/agreement", config.min_agreement, False,
              "scorer and evaluator agree on {value:.2f} of the pairs, less than {bound:g}"),
        Alarm("select/tie_rate", config.max_tie_rate, True,
              "the scorer tells no best answer from the worst on {value:.2f} of the prompts, more than {bound:g}"),
        Alarm("judge/null_model_win_rate", config.max_null_model_win_rate, True,
              "the judge prefers an answer that says nothing on {value:.2f} of the prompts, more than {bound:g}"),
    )  # fmt: skip


def decide(config: GateConfig, version: int, current: int, figures: Mapping[str, float]) -> Decision:
    """Decide about `version` by the figures of its iteration, named as in metrics.jsonl."""
    name = "evaluate/win_rate_vs_current"
    rate, low, high = (figures.get(name + end, math.nan) for end in ("", "_low", "_high"))
    reasons = []
    if math.isnan(rate):
        reasons.append(f"there is no verdict on it against version {current}")
    elif low <= config.threshold:
        reasons.append(
            f"it wins {100 * rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] against version {current}, and the "
            f"interval is not above {100 * config.threshold:g} %"
        )
    for alarm in alarms(config):
        value = figures.get(alarm.figure)
        if alarm.bound is None or value is None:
            continue
        if value > alarm.bound if alarm.is_maximum else value < alarm.bound:
            reasons.append(alarm.text.format(value=value, bound=alarm.bound))
    return Decision(version, current, not reasons, rate, low, high, tuple(reasons))


def to_table(decision: Decision) -> pa.Table:
    """The decision as engine.schema.GATE."""
    return pa.Table.from_pylist([asdict(decision) | {"reasons": list(decision.reasons)}], schema=GATE)


def decisions(run: RunReader) -> list[Decision]:
    """The decisions of a run so far, in the order of the versions."""
    rows = [row for version in run.versions for table in run.tables(version, STAGE, GATE) for row in table.to_pylist()]
    return [Decision(**(row | {"reasons": tuple(row["reasons"])})) for row in rows]


def current_version(run: RunReader, before: int) -> int:
    """The version that is current when version `before` is decided about: the last promoted one, else the start."""
    return max((d.version for d in decisions(run) if d.promoted and d.version < before), default=0)


def best_version(run: RunReader) -> tuple[int, str]:
    """The version to take, and why."""
    decided = decisions(run)
    if not decided:
        last = max(run.versions, default=0)
        return (
            last,
            "the last one; versions are compared on held-out prompts (evaluation.prompts), and this run has none",
        )
    promoted = [decision for decision in decided if decision.promoted]
    if not promoted:
        return 0, f"the start model: none of the {len(decided)} versions was promoted"
    best = promoted[-1]
    text = f"promoted last; it wins {100 * best.win_rate:.1f} % [{100 * best.low:.1f}, {100 * best.high:.1f}] against "
    return best.version, f"{text}version {best.against}"
