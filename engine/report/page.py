"""The content of the page of one run, as its template shows it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from engine.evaluation.ladder import Ladder
from engine.metrics.json_lines import Record
from engine.report.benchmark_tables import benchmark_tables
from engine.report.config_diff import Setting, all_settings, settings_changed
from engine.report.cost import spent
from engine.report.figures import ITERATION, MISSING, Figure, IterationSummary, columns, percent
from engine.report.run_charts import iteration_charts, spread_charts, step_charts
from engine.report.run_data import RunData
from engine.report.samples import MAX_CHARACTERS, Answer, HeldoutSample, Reply, Text, TrainingSample
from engine.report.timeline import time_chart, waiting

NUM_NOTES = 200
"""Notes shown, the last ones."""
TITLE = 140
"""Characters of a prompt in its line of the list."""
FAILURE = re.compile(
    r"warning|starting a replacement|restarting the group|going on with|failed|set aside|damaged|stopped: "
    r"|continues after"
)
"""Finds the notes about failures, and about what was repeated because of them."""

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def content(data: RunData) -> dict[str, Any]:
    """Everything that index.html.j2 shows."""
    summary = data.summary
    iterations = summary.iterations
    samples = [*map(heldout, data.heldout_samples), *map(training, data.training_samples)]
    shown: dict[str, Any] = {
        "run": summary,
        "answer": data.answer,
        "key_figures": key_figures(data),
        "tables": tables(iterations),
        "decisions": [f"{text[:1].upper()}{text[1:]}." for text in (d.in_words() for d in data.decisions)],
        "curves": [*iteration_charts(iterations), *step_charts(data.steps)],
        "ladder": ladder(data.ladder) if data.ladder else None,
        "benchmarks": benchmark_tables(data.benchmarks),
        "spreads": spread_charts(data.spreads),
        "judge": _table(columns("judge"), iterations),
        "heldout": [sample for sample in samples if sample["kind"] == "heldout"],
        "training": [sample for sample in samples if sample["kind"] != "heldout"],
        "kinds": _kinds(samples),
        "examples": [sample for sample in samples if sample.get("iteration") == len(iterations)],
        "sampling_note": sampling_note(data),
        "time_chart": time_chart(data.timeline),
        "waiting": _waiting(iterations),
        "spent": _spent(data),
        **notes(data),
        "changed": list(map(_setting, settings_changed(data.config))),
        "settings": list(map(_setting, all_settings(data.config))),
        "provenance": [(key, fact(value)) for key, value in summary.provenance.items()],
        "weights": weights(data),
    }
    return shown | {"sections": _sections(shown)}


def _sections(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, name) of the sections that the page has."""
    every = (
        ("answer", "The answer", True),
        ("iterations", "Iterations", True),
        ("curves", "Curves", True),
        ("ladder", "Ladder", shown["ladder"]),
        ("benchmarks", "Benchmarks", shown["benchmarks"]),
        ("judge", "Scorer and judge", shown["spreads"] or shown["judge"]),
        ("samples", "Samples", True),
        ("time", "Time", True),
        ("notes", "Notes", True),
        ("configuration", "Configuration", True),
        ("provenance", "Provenance", True),
    )
    return [(key, name) for key, name, is_there in every if is_there]


def key_figures(data: RunData) -> list[tuple[str, str, str]]:
    """(name, value, detail) of what a reader looks for first."""
    judged = [i for i in data.summary.iterations if i.win_rate_start]
    if not judged:
        return []
    last = judged[-1]
    rate = last.win_rate_start
    assert rate is not None
    figures = [("wins against the start", percent(rate.value), f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %")]
    if data.answer.take is not None:
        figures.append(("version to take", str(data.answer.take), f"of {max(data.store.versions)}"))
    if last.length_ratio is not None:
        figures.append(("length of answers", f"{last.length_ratio:.2f} ×", "that of the start"))
    if last.kl is not None:
        figures.append(("KL from the start", f"{last.kl:.2f}", "nats per answer"))
    return figures


def tables(iterations: Sequence[IterationSummary]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(name, headings, rows) of the tables of iterations; figures that no iteration has are left out."""
    groups = (("Results", columns("results")), ("Training", columns("work")))
    return [(name, *table) for name, figures in groups if (table := _table(figures, iterations))]


def _table(figures: Sequence[Figure], iterations: Sequence[IterationSummary]) -> Table | None:
    known = [f for f in figures if any(f.value(i) is not None for i in iterations)]
    if not known:
        return None
    shown = [ITERATION, *known]
    return [f.heading or f.name for f in shown], [[f.text(i) for f in shown] for i in iterations]


def ladder(found: Ladder) -> dict[str, Any]:
    """The ladder with its numbers as text."""
    names = [f"{version}" for version in found.versions]
    ratings = [
        (f"version {version}", f"{found.elo[k]:,.0f}", f"[{found.elo_low[k]:,.0f}, {found.elo_high[k]:,.0f}]")
        for k, version in enumerate(found.versions)
    ]
    if found.cycles:
        a, b, c = found.cycles[0]
        words = f"There are {len(found.cycles):,} circles, such as {a} over {b} over {c} over {a}; no rating fits them."
    else:
        words = "No versions beat each other in a circle."
    if not math.isnan(found.cyclic_share):
        words += f" Ratings leave {percent(found.cyclic_share)} of the squared log-odds unexplained."
    rows = [(f"version {version}", found.wins[k].tolist()) for k, version in enumerate(found.versions)]
    return {"num_prompts": found.num_prompts, "words": words, "names": names, "rows": rows, "ratings": ratings}


def heldout(sample: HeldoutSample) -> dict[str, Any]:
    """A held-out prompt: what every version answered."""
    rates = [answer.win_rate for answer in sample.answers if answer.win_rate is not None]
    last = rates[-1] if rates else None
    return {
        "kind": "heldout",
        "rate": "" if last is None else f"{last:.4f}",
        "title": title(sample.prompt),
        "outcome": "no verdict" if last is None else f"the last version wins {percent(last)}",
        "prompt": untitled(sample.prompt),
        "answers": [
            {
                "title": f"version {a.version}" if a.version else "start",
                "rate": None if a.win_rate is None else percent(a.win_rate),
                "texts": a.texts,
            }
            for a in sample.answers
        ],
    }


def training(sample: TrainingSample) -> dict[str, Any]:
    """A training prompt in one iteration: its answers, verdicts, and what was trained on."""
    names = [chr(ord("a") + k) for k in range(len(sample.win_probs))]
    chosen = next((a.win_rate for a in sample.answers if a.use in ("chosen", "trained")), None)
    return {
        "kind": f"iteration-{sample.iteration}",
        "iteration": sample.iteration,
        "rate": "" if chosen is None else f"{chosen:.4f}",
        "title": title(sample.prompt),
        "outcome": f"{len(sample.answers)} answers" if len(sample.answers) != 1 else "one answer",
        "prompt": untitled(sample.prompt),
        "answers": [
            {
                "title": names[k] if k < len(names) else a.origin,
                "use": a.use if a.use in ("chosen", "rejected") else "",
                "details": _details(a, k < len(names)),
                "text": a.text,
            }
            for k, a in enumerate(sample.answers)
        ],
        "names": names,
        "matrix": list(zip(names, sample.win_probs, strict=True)),
        "replies": [(_about(names, reply), reply.text) for reply in sample.replies],
    }


def _about(names: Sequence[str], reply: Reply) -> str:
    """Which answers a judge's reply is about."""
    asked = [reply.answer] if reply.other is None else [reply.answer, reply.other]
    return "about " + " against ".join(names[k] if k < len(names) else str(k + 1) for k in asked)


def _details(answer: Answer, is_named: bool) -> str:
    parts = (
        answer.origin if is_named and answer.origin != "policy" else "",
        answer.use,
        "" if answer.win_rate is None else f"win rate {percent(answer.win_rate)}",
        f"{answer.num_tokens:,} tokens",
        "cut by the length limit" if answer.is_truncated else "",
    )
    return " · ".join(part for part in parts if part)


def untitled(prompt: tuple[tuple[str, Text], ...]) -> tuple[tuple[str, Text], ...]:
    """The prompt, unless its title says it in full."""
    return () if len(prompt) == 1 and prompt[0][1].shown.strip() == title(prompt) else prompt


def title(prompt: Sequence[tuple[str, Text]]) -> str:
    """The beginning of the last message of a prompt, on one line."""
    text = " ".join(prompt[-1][1].shown.split()) if prompt else ""
    return text if len(text) <= TITLE else text[: TITLE - 1] + "…"


def _kinds(samples: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    kinds = dict.fromkeys(sample["kind"] for sample in samples)
    return [(kind, "held-out prompts" if kind == "heldout" else kind.replace("-", " ")) for kind in kinds]


def sampling_note(data: RunData) -> str:
    """Which prompts are shown, of how many."""
    parts = []
    if data.heldout_samples:
        parts.append(
            f"{len(data.heldout_samples):,} held-out prompts, spread evenly from where the last version loses to where "
            f"it wins, with the answers of every version side by side"
        )
    if data.training_samples:
        num = len(data.training_samples)
        parts.append(f"the first training prompts of the iterations, {num:,} in all, with every answer and verdict")
    return f"Shown are {' and '.join(parts)}. Texts above {MAX_CHARACTERS:,} characters are cut." if parts else ""


def _waiting(iterations: Sequence[IterationSummary]) -> tuple[list[str], list[list[str]], list[str]] | None:
    found = waiting(iterations)
    if not found:
        return None
    names = ("wall time", *dict.fromkeys(stage for entry in found for stage, _ in entry.stages), "nothing")
    shares = [dict(entry.stages) | {"nothing": entry.nothing} for entry in found]
    rows = [[names[0], *(f"{entry.wall:,.1f} s" for entry in found)]]
    rows += [[name, *(percent(share[name]) if name in share else MISSING for share in shares)] for name in names[1:]]
    lines = [f"Iteration {entry.iteration}: {entry.in_words()}." for entry in found if entry.stages]
    return ["stage", *(f"iteration {entry.iteration}" for entry in found)], rows, lines


def _spent(data: RunData) -> Table | None:
    """What the run took and cost, beside the prediction if there is one."""
    lines = [line.texts() for line in spent(data.store, data.config, data.timeline)]
    if not lines:
        return None
    if not data.store.recorded("prediction"):
        return ["", "actual"], [[name, actual] for name, _, actual, _ in lines]
    return ["", "predicted", "actual", "prediction off by"], lines


def notes(data: RunData) -> dict[str, Any]:
    """Messages of the run: what failed or was repeated, and all the others."""
    entries = [(_when(record), record["text"]) for record in data.notes]
    entries = [("", problem) for problem in data.problems] + entries
    return {
        "failures": [entry for entry in entries if not entry[0] or FAILURE.search(entry[1])][-NUM_NOTES:],
        "notes": entries[-NUM_NOTES:],
        "notes_left_out": len(entries) if len(entries) > NUM_NOTES else 0,
    }


def _when(record: Record) -> str:
    try:
        return datetime.fromisoformat(record["time"]).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (KeyError, TypeError, ValueError):
        return MISSING


def weights(data: RunData) -> list[tuple[str, str, str]]:
    """(policy, digest of its weights, digest of its reference)."""
    summary = data.summary
    made = ((f"iteration {i.iteration}", i.weights or MISSING, i.reference or MISSING) for i in summary.iterations)
    return [("start", summary.start or MISSING, ""), *made]


def _setting(setting: Setting) -> tuple[str, str, str]:
    return setting.key, _shown(setting.value), _shown(setting.default) if setting.has_default else MISSING


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else fact(value)


def fact(value: Any) -> str:
    """A value of the configuration or the provenance; a mapping as `torch 2.13, ray 2.60`."""
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
