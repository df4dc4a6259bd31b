"""What a run shows, in plain sentences: did it get better, which version to take, what to worry about.

Every sentence follows from figures and from the gate's decisions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.evaluation.gate import Decision
from engine.evaluation.ladder import Ladder
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary, percent

LONGER = 1.2
"""From this length ratio on, a win may be due to length."""


@dataclass(frozen=True)
class Answer:
    headline: str
    sentences: tuple[str, ...] = ()
    take: int | None = None
    """The version to take."""
    worries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the answer is computed from."""

    status: str
    iterations: Sequence[IterationSummary]
    num_planned: int
    judge: str | None
    """Who decided the win rates, in words."""
    is_own_judge: bool
    """The training scorer did."""
    has_heldout: bool
    """Whether the run has held-out prompts."""
    decisions: Sequence[Decision] = ()
    ladder: Ladder | None = None
    best: tuple[int, str] | None = None
    """The version to take, and why."""
    notes: Sequence[str] = ()


def answer(facts: Facts) -> Answer:
    """The answer of a run, finished or not."""
    judged = [i for i in facts.iterations if i.win_rate_start]
    if not judged:
        return Answer(_without_win_rate(facts), (), None, tuple(_worries(facts, None)))
    last = judged[-1]
    rate = last.win_rate_start
    assert rate is not None
    sentences = [_how_sure(last.iteration, rate, facts)]
    if len(judged) > 1:
        sentences.append(_path(judged))
    take = None
    if facts.best:
        take, why = facts.best
        sentences.append(f"Take version {take}: {why}.")
    return Answer(_headline(rate, facts.status), tuple(sentences), take, tuple(_worries(facts, last)))


def verdict(rate: WinRate) -> str:
    """better, worse, or unclear: what the interval of a win rate says."""
    return "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else "unclear"


def _headline(rate: WinRate, status: str) -> str:
    so_far = "" if status == "finished" else " so far"
    return {
        "better": f"Yes, it got better{so_far}: it wins {percent(rate.value)} against its start.",
        "worse": f"No, it got worse{so_far}: it wins only {percent(rate.value)} against its start.",
        "unclear": f"No difference is shown{so_far}: it wins {percent(rate.value)} against its start.",
    }[verdict(rate)]


def _without_win_rate(facts: Facts) -> str:
    if not facts.has_heldout:
        return "Whether it got better was not measured: the run has no held-out prompts."
    return "Nothing is known yet: no version has been compared with the start."


def _how_sure(iteration: int, rate: WinRate, facts: Facts) -> str:
    prompts = f" on {rate.num_prompts:,} held-out prompts" if rate.num_prompts else " on held-out prompts"
    by = f", as judged by {facts.judge}" if facts.judge else ""
    interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"
    sure = {
        "better": "all of it above 50 %",
        "worse": "all of it below 50 %",
        "unclear": "which includes 50 %, no difference",
    }[verdict(rate)]
    return f"Version {iteration} wins {percent(rate.value)}{prompts}{by}; the 95 % interval is {interval}, {sure}."


def _path(judged: Sequence[IterationSummary]) -> str:
    """How the versions did against the ones that they were trained from."""
    steps = [(i.iteration, i.win_rate_previous) for i in judged if i.win_rate_previous]
    better = [number for number, rate in steps if rate and verdict(rate) == "better"]
    if len(better) == len(steps):
        return f"Each of its {len(steps)} versions wins against the one that it was trained from."
    others = [str(number) for number, rate in steps if number not in better]
    many = f"Version {others[0]} does" if len(others) == 1 else f"Versions {', '.join(others[:-1])} and {others[-1]} do"
    return f"{many} not win against the one before with certainty; the other {len(better)} of {len(steps)} do."


def _worries(facts: Facts, last: IterationSummary | None) -> list[str]:
    worries = []
    if facts.status != "finished":
        done = sum(1 for i in facts.iterations if i.wall)
        state = facts.status if facts.status.startswith("stopped") else f"it is {facts.status}"
        worries.append(f"The run is not finished: {state}; {done} of {facts.num_planned} iterations are complete.")
    if facts.has_heldout and facts.is_own_judge:
        worries.append(
            "The win rates are the training scorer's own. What it overrates it also trains for; another evaluator "
            "(evaluation.scorer) would show that."
        )
    worries += [f"The gate did not promote version {d.version}: {'; '.join(d.reasons)}." for d in _refused(facts)]
    worries += _length(last) + _cycles(facts.ladder)
    warnings = (re.sub(r"^(iteration \d+: )?warning: ", "", note) for note in facts.notes if "warning: " in note[:32])
    worries += [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in dict.fromkeys(warnings)]
    retries = sum(bool(re.search(r"starting a replacement|restarting the group|going on with", n)) for n in facts.notes)
    if retries:
        worries.append(f"Work was repeated after {retries:,} failures of replicas; results do not depend on that.")
    if last is not None:
        worries.append("This is one run with one seed: the intervals cover the choice of prompts, not of seeds.")
    return worries


def _refused(facts: Facts) -> list[Decision]:
    return [decision for decision in facts.decisions if not decision.promoted]


def _length(last: IterationSummary | None) -> list[str]:
    if last is None or last.length_ratio is None or 1 / LONGER < last.length_ratio < LONGER:
        return []
    return [f"Answers are {last.length_ratio:.2f} times as long as those of the start; judges often prefer length."]


def _cycles(ladder: Ladder | None) -> list[str]:
    if ladder is None or not ladder.cycles:
        return []
    a, b, c = ladder.cycles[0]
    return [
        f"Versions beat each other in {len(ladder.cycles):,} circles, such as {a} over {b} over {c} over {a}: winning "
        f"against the version before then shows no progress."
    ]
