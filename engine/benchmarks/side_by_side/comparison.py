"""Answers of any number of policies to the same instructions beside each other: DataFrame, CSV, Markdown, HTML.

Models wrote the answers, so no format takes them for markup: HTML and Markdown are escaped, and in CSV a cell that a
spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import DataError
from engine.text import html, markdown, markdown_block, printable

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem}"
    "article{border-top:1px solid #8886;padding:1rem 0}.answers{display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr))}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:.3rem 0}h2,h3{font-size:1rem;margin:.3rem 0}"
    "small{opacity:.75}"
)


@dataclass(frozen=True)
class Answer:
    """What one policy answered."""

    text: str
    is_truncated: bool
    score: float = math.nan
    """Of the annotator; NaN: it gives none."""


@dataclass(frozen=True)
class Comparison:
    """An instruction with the answer of each policy."""

    prompt_id: str
    instruction: str
    seen: str
    """"no", "exact" or "n-gram": whether it was trained on; "": not known."""
    answers: dict[str, Answer]
    """By the policy's name."""


def compare(
    instructions: Mapping[str, str], answers: Mapping[str, Mapping[str, Answer]], seen: Mapping[str, str] | None = None
) -> list[Comparison]:
    """One comparison per instruction, in their order.

    instructions: {prompt id: text}. answers: {policy: {prompt id: answer}}. seen: {prompt id: "exact" or "n-gram"} of
    those that were trained on; None: not known. Raises DataError, with all that is missing, unless every policy answers
    every instruction.
    """
    missing = {policy: len(instructions.keys() - given.keys()) for policy, given in answers.items()}
    if any(missing.values()):
        lacking = ", ".join(f"{policy} lacks {count}" for policy, count in missing.items() if count)
        raise DataError(f"of {len(instructions)} instructions {lacking}; every policy must answer the same ones")
    return [
        Comparison(
            name,
            text,
            "" if seen is None else seen.get(name, "no"),
            {policy: given[name] for policy, given in answers.items()},
        )
        for name, text in instructions.items()
    ]


def to_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per instruction: prompt_id, instruction, seen, and answer, characters, truncated, score per policy."""
    import pandas as pd

    return pd.DataFrame(_records(comparisons))


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """The columns of `to_frame`; a score that is not known is empty."""
    buffer = io.StringIO()
    rows = _records(comparisons)
    writer = csv.DictWriter(
        buffer, list(rows[0]) if rows else ["prompt_id", "instruction", "seen"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """A section per instruction, with the answers as blocks of text."""
    parts = ["# Answers side by side", ""]
    for number, comparison in enumerate(comparisons, start=1):
        parts += [f"## {number}{_seen(comparison)}", "", markdown_block(comparison.instruction), ""]
        for policy, answer in comparison.answers.items():
            parts += [f"**{markdown(policy)}** ({_facts(answer)})", "", markdown_block(answer.text), ""]
    return "\n".join(parts)


def to_html(comparisons: Sequence[Comparison]) -> str:
    """A page of its own without scripts."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Answers side by side</title><style>{_STYLE}</style></head><body><h1>Answers side by side</h1>",
    ]
    for number, comparison in enumerate(comparisons, start=1):
        parts.append(f"<article><h2>{number}{_seen(comparison)}</h2><pre>{html(comparison.instruction)}</pre>")
        parts.append('<div class="answers">')
        for policy, answer in comparison.answers.items():
            heading = f"<h3>{html(policy, newlines='show')} <small>{_facts(answer)}</small></h3>"
            parts.append(f"<section>{heading}<pre>{html(answer.text)}</pre></section>")
        parts.append("</div></article>")
    return "\n".join([*parts, "</body></html>", ""])


def _records(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    rows = []
    for comparison in comparisons:
        row: dict[str, object] = {
            "prompt_id": comparison.prompt_id,
            "instruction": comparison.instruction,
            "seen": comparison.seen,
        }
        for policy, answer in comparison.answers.items():
            row[f"{policy}/answer"] = answer.text
            row[f"{policy}/characters"] = len(answer.text)
            row[f"{policy}/truncated"] = answer.is_truncated
            row[f"{policy}/score"] = answer.score
        rows.append(row)
    return rows


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else value
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def _facts(answer: Answer) -> str:
    score = "" if math.isnan(answer.score) else f", score {answer.score:.3g}"
    return f"{len(answer.text)} characters{', truncated' if answer.is_truncated else ''}{score}"


def _seen(comparison: Comparison) -> str:
    notes = {"exact": " (trained on)", "n-gram": " (shares words in a row with a training prompt)"}
    return notes.get(comparison.seen, "")
