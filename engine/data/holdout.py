"""Held-out preferences: the split of a preference set by prompt, and the checks of what is held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from engine.config.preferences import PreferencesConfig
from engine.config.run import RunConfig
from engine.data.formats import RequiredAnswers
from engine.data.ingest import IngestResult, Renderer, ingest_iterations
from engine.errors import DataError
from engine.seeds import derive_seed


@dataclass(frozen=True)
class HeldOut:
    """The preferences of a run that are held out; tables are engine.schema.PROMPTS."""

    training: list[pa.Table]
    """The rows of each iteration that are left to train on."""
    pairs: pa.Table
    """The held-out rows."""
    results: list[IngestResult]
    """What was read for them."""
    notes: list[str]


def held_out_pairs(
    config: RunConfig, preferences: PreferencesConfig, chat: Renderer, training: list[pa.Table]
) -> HeldOut:
    """Split the training rows of a run, or read its second preference set. Raises DataError as `hold_out` and `ingest`.

    training: the rows of each iteration.
    """
    results: list[IngestResult] = []
    notes: list[str] = []
    if preferences.share is not None:
        training, pairs = hold_out(training, preferences.share, config.seed)
    else:
        count, sampling = config.algorithm.num_heldout_completions, config.sampling
        section = "evaluation.preferences"
        required = RequiredAnswers(count, sampling.max_new_tokens, section)
        source, longest = preferences.prompts(), sampling.max_prompt_tokens
        (pairs,), results = ingest_iterations(source, chat, longest, 1, config.seed, required, section)
        notes = overlap(training, pairs, "held-out preferences")
    return HeldOut(
        training, pairs, results, [f"held-out preferences: {pairs.num_rows:,}", *notes, *check_preferences(pairs)]
    )


def content_of(prompt_id: str) -> str:
    """The hash of the prompt's content, which an id begins with."""
    return prompt_id.rsplit("-", 1)[0]


def hold_out(tables: list[pa.Table], share: float, seed: int) -> tuple[list[pa.Table], pa.Table]:
    """Split the prompts (engine.schema.PROMPTS) of all iterations: those that train, and those held out.

    share x the number of different prompts, rounded, is held out: those with the smallest seeds derived from (seed,
    content). Whether a prompt is held out does not depend on where it stands, and all its pairs go the same way.
    Raises DataError if nothing is held out, or if an iteration is left without a prompt.
    """
    contents = {content_of(name) for table in tables for name in table["prompt_id"].to_pylist()}
    order = sorted(contents, key=lambda content: (derive_seed("hold out", seed, content), content))
    chosen = set(order[: round(share * len(contents))])
    if not chosen:
        raise DataError(
            f"evaluation.preferences.share = {share:g} of {len(contents)} different prompts holds out none; raise it, "
            f"or name a second preference set in evaluation.preferences.source"
        )
    training, heldout, seen = [], [], set()
    for t, table in enumerate(tables):
        ids = table["prompt_id"].to_pylist()
        inside = [content_of(name) in chosen for name in ids]
        if all(inside):
            raise DataError(
                f"evaluation.preferences.share = {share:g} holds out all {len(ids)} rows of iteration {t + 1}; lower "
                f"it, or give more preferences or fewer iterations"
            )
        training.append(table.filter(pa.array([not held for held in inside])))
        rows = [(name, *answers) for name, answers in zip(ids, table["dataset_completions"].to_pylist(), strict=True)]
        heldout.append(
            table.filter(pa.array([held and row not in seen for held, row in zip(inside, rows, strict=True)]))
        )
        seen.update(rows)  # where every iteration has all prompts, a pair is held out once
    return training, pa.concat_tables(heldout).combine_chunks()


def check_preferences(heldout: pa.Table) -> list[str]:
    """Warnings about held-out preferences. Raises DataError if none of them prefers one answer."""
    labels = heldout["dataset_win_rates"].to_pylist()
    if all(len(set(rates)) == 1 if len(rates) > 1 else rates == [0.5] for rates in labels):
        raise DataError(
            f"evaluation.preferences: none of {len(labels)} held-out rows prefers one answer to the other (all are "
            f"labelled as ties), so there is nothing to validate on; check the labels"
        )
    single = {rates[0] > 0.5 for rates in labels if len(rates) == 1}
    if len(single) == 1:
        kind = "desirable" if single.pop() else "undesirable"
        return [
            f"warning: all {len(labels)} held-out answers are labelled {kind}; eval/rewards/margins needs both kinds "
            f"and is not measured"
        ]
    return []


def num_shared(training: Iterable[pa.Table], heldout: pa.Table) -> int:
    """Number of held-out rows whose prompt is also trained on."""
    trained = {content_of(name) for table in training for name in table["prompt_id"].to_pylist()}
    return sum(content_of(name) in trained for name in heldout["prompt_id"].to_pylist())


def overlap(training: Iterable[pa.Table], heldout: pa.Table, what: str) -> list[str]:
    """A warning if held-out rows, called `what`, have prompts that are also trained on."""
    shared = num_shared(training, heldout)
    return [f"warning: {shared:,} of {heldout.num_rows:,} {what} are also trained on"] if shared else []
