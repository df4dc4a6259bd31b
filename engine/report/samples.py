"""The prompts that the report shows with their answers, and how win probabilities are spread.

Few prompts are shown, and long texts are cut, so that a page stays small whatever the size of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.algorithms.base import Algorithm
from engine.algorithms.preference import pairwise_win_probabilities, win_rates
from engine.schema import COMPLETIONS, HELDOUT_WIN_RATES, OTHER_PROMPT, SCORES, SELECTABLE, SELECTED
from engine.store.reader import RunReader

NUM_TRAINING = 6
"""Training prompts shown per iteration."""
NUM_ITERATIONS = 8
"""Iterations whose training prompts are shown."""
NUM_HELDOUT = 24
"""Held-out prompts shown."""
NUM_VERSIONS = 8
"""Versions whose held-out answers are shown."""
NUM_ANSWERS = 16
"""Answers shown per prompt."""
MAX_CHARACTERS = 4_000
"""Of a text; a longer one is cut."""
NUM_BINS = 20


@dataclass(frozen=True)
class Text:
    """A text of a data set or a model."""

    shown: str
    num_cut: int = 0
    """Characters left out at its end."""

    @classmethod
    def of(cls, text: str) -> Text:
        return cls(text[:MAX_CHARACTERS], max(0, len(text) - MAX_CHARACTERS))


@dataclass(frozen=True)
class Answer:
    """One answer to a training prompt."""

    text: Text
    origin: str
    """"policy", "start policy" or "data set"."""
    num_tokens: int
    win_rate: float | None
    """Estimated P(it beats the other answers of the prompt), in [0, 1]; None without a verdict."""
    use: str
    """"chosen", "rejected", "trained", or empty: not trained on."""
    is_truncated: bool = False


@dataclass(frozen=True)
class Reply:
    """What an LLM judge said about one answer, or about two in the order in which it saw them."""

    answer: int
    other: int | None
    text: Text


@dataclass(frozen=True)
class TrainingSample:
    """A training prompt in one iteration."""

    iteration: int
    """Counted from 1."""
    prompt_id: str
    prompt: tuple[tuple[str, Text], ...]
    """(role, text) of each message."""
    answers: tuple[Answer, ...]
    win_probs: tuple[tuple[float | None, ...], ...] = ()
    """[K][K] P(row beats column), by the scorer; None: no verdict. Empty without a scorer."""
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class HeldoutAnswer:
    version: int
    texts: tuple[Text, ...]
    win_rate: float | None
    """Against the start on this prompt, in [0, 1]; None: no verdict, or the start itself."""


@dataclass(frozen=True)
class HeldoutSample:
    """A held-out prompt with what every version answered."""

    prompt_id: str
    prompt: tuple[tuple[str, Text], ...]
    answers: tuple[HeldoutAnswer, ...]


@dataclass(frozen=True)
class Spread:
    """Histograms over NUM_BINS equal bins of [0, 1] in one iteration."""

    iteration: int
    pairs: tuple[int, ...]
    """Win probabilities P(i beats j) of pairs of answers, i < j, by the scorer."""
    chosen: tuple[int, ...]
    """Estimated win rates of the answers trained on as better."""
    rejected: tuple[int, ...]


def spaced(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, the first and the last among them, evenly spread."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(k * (len(numbers) - 1) / (most - 1))] for k in range(most)]


def training_samples(store: RunReader, algorithm: Algorithm, iterations: Sequence[int]) -> list[TrainingSample]:
    """Samples of some iterations (counted from 0), in order; the same prompts in all of them where they return."""
    samples: list[TrainingSample] = []
    wanted: list[str] = []
    for t in spaced(iterations, NUM_ITERATIONS):
        rows = _selected(store, t, wanted)
        wanted = wanted or list(rows)
        stage = algorithm.selects_from(t)
        found: dict[str, dict[str, Any]] = {}
        for shard in store.shards(t, stage):
            if len(found) == len(rows):
                break
            prompts = store.read(t, stage, shard, SELECTABLE[stage]).to_pylist()
            found |= {prompt["prompt_id"]: prompt for prompt in prompts if prompt["prompt_id"] in rows}
        samples += [_training_sample(t, found[name], row) for name, row in rows.items() if name in found]
    return samples


def _selected(store: RunReader, t: int, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """The first training rows of an iteration, those of the prompts `wanted` before others."""
    first: dict[str, dict[str, Any]] = {}
    same: dict[str, dict[str, Any]] = {}
    for table in store.tables(t, "selected", SELECTED):
        rows = table.select(["prompt_id", "completion_index", "win_rate"]).to_pylist()
        same |= {row["prompt_id"]: row for row in rows if row["prompt_id"] in wanted}
        first |= {row["prompt_id"]: row for row in rows[: NUM_TRAINING - len(first)]}
        if len(first) >= NUM_TRAINING and not wanted:
            break
    return dict(list({**same, **first}.items())[:NUM_TRAINING])


def _training_sample(t: int, prompt: dict[str, Any], row: dict[str, Any]) -> TrainingSample:
    uses = _uses(row)
    sampled = prompt.get("completions", [])
    from_policy = prompt.get("num_from_policy", len(sampled))
    probs = _win_probs(prompt)
    rates = [_number(rate) for rate in win_rates(probs)] if len(probs) else [None] * len(sampled)
    answers = [
        Answer(
            Text.of(text),
            "policy" if k < from_policy else "start policy",
            len(prompt["completion_token_ids"][k]),
            rates[k] if rates[k] is not None else uses.get(k, ("", None))[1],
            uses.get(k, ("", None))[0],
            prompt["finish_reasons"][k] == "length",
        )
        for k, text in enumerate(sampled[:NUM_ANSWERS])
    ]
    brought = zip(prompt["dataset_completions"], prompt["dataset_token_ids"], strict=True)
    answers += [
        Answer(Text.of(text), "data set", len(ids), uses.get(-1 - g, ("", None))[1], uses.get(-1 - g, ("", None))[0])
        for g, (text, ids) in enumerate(brought)
    ]
    shown = probs[:NUM_ANSWERS, :NUM_ANSWERS]
    return TrainingSample(
        t + 1,
        prompt["prompt_id"],
        _messages(prompt),
        tuple(answers),
        tuple(tuple(map(_number, line)) for line in shown.tolist()),
        tuple(
            Reply(v["answer"], v["other"] if v["other"] >= 0 else None, Text.of(v["text"]))
            for v in prompt.get("verdicts", [])
        ),
    )


def _uses(row: dict[str, Any]) -> dict[int, tuple[str, float]]:
    """{completion_index: (use, target)} of a training row; of more than two answers two are named."""
    pairs = [
        (index, rate)
        for index, rate in zip(row["completion_index"], row["win_rate"], strict=True)
        if index != OTHER_PROMPT
    ]
    if len(pairs) == 1:
        return {pairs[0][0]: ("trained", pairs[0][1])}
    best, worst = max(pairs, key=lambda pair: pair[1]), min(reversed(pairs), key=lambda pair: pair[1])
    names = {best[0]: "chosen", worst[0]: "rejected"}
    return {index: (names.get(index, "trained"), rate) for index, rate in pairs}


def _win_probs(prompt: dict[str, Any]) -> np.ndarray:
    """[K, K]; empty without verdicts."""
    logits = np.array(prompt.get("pair_logits", []), dtype=np.float64)
    return pairwise_win_probabilities(logits) if logits.ndim == 2 and len(logits) else np.empty((0, 0))


def _messages(prompt: dict[str, Any]) -> tuple[tuple[str, Text], ...]:
    return tuple((message["role"], Text.of(message["content"])) for message in prompt["messages"])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def heldout_samples(store: RunReader, versions: Sequence[int]) -> list[HeldoutSample]:
    """Held-out prompts spread evenly from where the last version loses to where it wins, with all versions' answers."""
    rates = {version: start_rates(store, version) for version in versions}
    judged = [version for version in versions if rates[version]]
    if not judged:
        return []
    last = rates[judged[-1]]
    order = sorted(last, key=lambda prompt: (math.isnan(last[prompt]), last[prompt]))
    wanted = [order[k] for k in spaced(range(len(order)), NUM_HELDOUT)]
    answers: dict[str, list[HeldoutAnswer]] = {name: [] for name in wanted}
    prompts: dict[str, tuple[tuple[str, Text], ...]] = {}
    for version in spaced(versions, NUM_VERSIONS):
        for name, (prompt, texts) in texts_of(store, version, wanted).items():
            prompts[name] = prompt
            answers[name].append(HeldoutAnswer(version, texts, _number(rates[version].get(name, math.nan))))
    return [HeldoutSample(name, prompts[name], tuple(answers[name])) for name in wanted if name in prompts]


def texts_of(
    store: RunReader, version: int, wanted: list[str]
) -> dict[str, tuple[tuple[tuple[str, Text], ...], tuple[Text, ...]]]:
    """{prompt_id: (prompt, answers)} of one version for some held-out prompts."""
    return {
        row["prompt_id"]: (_messages(row), tuple(Text.of(text) for text in row["completions"][:NUM_ANSWERS]))
        for row in _heldout_rows(store, version, wanted)
    }


def _heldout_rows(store: RunReader, version: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    for table in store.tables(version, "heldout_completions", COMPLETIONS):
        rows = table.select(["prompt_id", "messages", "completions"]).to_pylist()
        yield from (row for row in rows if row["prompt_id"] in wanted)


def start_rates(store: RunReader, version: int) -> dict[str, float]:
    """{held-out prompt_id: win rate of the version against the start, in [0, 1], NaN without a verdict}."""
    rates = {}
    for table in store.tables(version, "heldout_win_rates", HELDOUT_WIN_RATES):
        for row in table.select(["prompt_id", "opponents", "win_rates"]).to_pylist():
            rates[row["prompt_id"]] = row["win_rates"][row["opponents"].index(0)]
    return rates


def spread(store: RunReader, t: int) -> Spread | None:
    """The histograms of iteration t, counted from 0; None if nothing was compared and nothing selected."""
    pairs: list[float] = []
    trained: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for table in store.tables(t, "scores", SCORES):
        for logits in table["pair_logits"].to_pylist():
            probs = pairwise_win_probabilities(np.array(logits, dtype=np.float64))
            pairs += probs[np.triu_indices(len(probs), k=1)].tolist()
    for table in store.tables(t, "selected", SELECTED):
        for row in table.select(["completion_index", "win_rate"]).to_pylist():
            for use, rate in _uses(row).values():
                trained.setdefault(use, []).append(rate)
    if not pairs and not trained["chosen"]:
        return None
    return Spread(t + 1, _bins(pairs), _bins(trained["chosen"]), _bins(trained["rejected"]))


def _bins(values: list[float]) -> tuple[int, ...]:
    known = np.array([value for value in values if not math.isnan(value)])
    return tuple(np.histogram(known, bins=NUM_BINS, range=(0.0, 1.0))[0].tolist())
