"""The numbers of MT-Bench from its judgments: those of FastChat's show_result.py, with intervals over questions.

Judgments that cannot be read are left out of every number and counted. Both turns of a question enter the overall mean,
and are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.benchmarks.base import Result
from engine.evaluation.statistics import clustered_mean, clustered_share, clustered_stderr

SCALE = (1.0, 10.0)
"""The ratings that the judge prompts ask for. FastChat takes others as they are; here they are counted too."""
CATEGORY = "category/"
"""Begins the metrics by category, from which reports draw radars."""
Outcome = Literal["win", "loss", "tie", "error"]


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one turn of one question."""

    question: int
    category: str
    turn: int
    value: float
    """A rating, or 1, 1/2 or 0 for a win, tie or loss; NaN: unreadable."""


def single_results(judgments: Iterable[Mapping[str, Any]]) -> list[Result]:
    """From rows of engine.schema.MT_BENCH_JUDGMENTS to ratings: overall, by turn and by category."""
    verdicts = [Verdict(row["question_id"], row["category"], row["turn"], row["rating"]) for row in judgments]
    outside = sum(not SCALE[0] <= verdict.value <= SCALE[1] for verdict in verdicts if not math.isnan(verdict.value))
    notes = [f"{outside} ratings lie outside {SCALE[0]:g} to {SCALE[1]:g}"] if outside else []
    return [*_means("score", verdicts, notes), _unreadable(verdicts)]


def pair_results(judgments: Iterable[Mapping[str, Any]]) -> list[Result]:
    """From rows of engine.schema.MT_BENCH_JUDGMENTS to win rates against the baseline.

    A turn is won only if both orders say so; verdicts that disagree are a tie. A turn with an unreadable game does not
    count. `win_rate_adjusted` counts ties as half a win.
    """
    games: dict[tuple[int, str, int], list[str]] = {}
    for row in judgments:
        games.setdefault((row["question_id"], row["category"], row["turn"]), []).append(row["winner"])
    outcomes = {key: outcome(winners) for key, winners in games.items()}
    scores: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0, "error": math.nan}

    def verdicts(value: Callable[[tuple[int, str, int]], float]) -> list[Verdict]:
        return [Verdict(*key, value=value(key)) for key in outcomes]

    def share(wanted: Outcome) -> list[Verdict]:
        return verdicts(lambda key: math.nan if outcomes[key] == "error" else float(outcomes[key] == wanted))

    def agrees(key: tuple[int, str, int]) -> float:
        return math.nan if "error" in games[key] else float(len(set(games[key])) == 1)

    adjusted = verdicts(lambda key: scores[outcomes[key]])
    return [
        _mean("win_rate", share("win"), is_share=True),
        _mean("loss_rate", share("loss"), is_share=True),
        *_means("win_rate_adjusted", adjusted, [], is_share=True),
        _mean("consistency", verdicts(agrees), is_share=True),
        _unreadable(adjusted),
    ]


def outcome(winners: Sequence[str]) -> Outcome:
    """Of the games of one turn, by their winners: "model_1" (the policy), "model_2", "tie" or "error"."""
    if "error" in winners:
        return "error"
    if len(set(winners)) > 1 or winners[0] == "tie":
        return "tie"
    return "win" if winners[0] == "model_1" else "loss"


def answer_results(answers: Sequence[Mapping[str, Any]]) -> list[Result]:
    """From rows of engine.schema.MT_BENCH_ANSWERS: how long the answers are, and what is missing."""
    texts = [(row["question_id"], text) for row in answers for text in row["answers"]]
    ends = [end for row in answers for end in row["answer_ends"]]
    expected = sum(len(row["turns"]) for row in answers)
    lengths, questions = [float(len(text)) for _, text in texts], [question for question, _ in texts]
    interval = clustered_mean(lengths, questions)
    stderr = clustered_stderr(lengths, questions)
    return [
        Result("answer_length", interval.mean, stderr, interval.low, interval.high, len(texts), "characters"),
        Result("truncated_answers", float(ends.count("length")), num=len(ends), note="answers cut by max_new_tokens"),
        Result(
            "unasked_turns",
            float(expected - len(texts)),
            num=expected,
            note="second turns whose prompt was too long, or whose first answer the chat template refuses",
        ),
    ]


def categories(values: Mapping[str, float]) -> dict[str, float]:
    """{category: value} of the metrics by category."""
    return {name.removeprefix(CATEGORY): v for name, v in values.items() if name.startswith(CATEGORY)}


def _means(metric: str, verdicts: Sequence[Verdict], notes: list[str], *, is_share: bool = False) -> Iterator[Result]:
    """The mean over all turns, of each turn, and of each category over its turns."""
    yield _mean(metric, verdicts, notes, is_share=is_share)
    for turn in sorted({verdict.turn for verdict in verdicts}):
        yield _mean(f"turn_{turn}", [verdict for verdict in verdicts if verdict.turn == turn], is_share=is_share)
    for category in dict.fromkeys(verdict.category for verdict in verdicts):
        yield _mean(
            f"{CATEGORY}{category}",
            [verdict for verdict in verdicts if verdict.category == category],
            is_share=is_share,
        )


def _mean(metric: str, verdicts: Sequence[Verdict], notes: Sequence[str] = (), *, is_share: bool = False) -> Result:
    """is_share: the values lie in [0, 1], so that the interval is Wilson's."""
    readable = [verdict for verdict in verdicts if not math.isnan(verdict.value)]
    missing = len(verdicts) - len(readable)
    words = [*([f"{missing} of {len(verdicts)} without a readable judgment are left out"] if missing else []), *notes]
    if not readable:
        return Result(metric, math.nan, note="; ".join(words))
    values, questions = [verdict.value for verdict in readable], [verdict.question for verdict in readable]
    interval = (clustered_share if is_share else clustered_mean)(values, questions)
    stderr = clustered_stderr(values, questions)
    return Result(metric, interval.mean, stderr, interval.low, interval.high, len(readable), "; ".join(words))


def _unreadable(verdicts: Sequence[Verdict]) -> Result:
    missing = sum(math.isnan(verdict.value) for verdict in verdicts)
    return Result("unreadable", float(missing), num=len(verdicts), note="turns without a readable judgment")
