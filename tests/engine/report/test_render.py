"""The report: complete, partial, and harmless whatever a model wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from engine.metrics.monitor import Monitor
from engine.metrics.trackers import read_metrics
from engine.report import plots
from engine.report.collect import Sample, WinRate
from engine.report.figures import IterationSummary
from engine.report.render import print_table, write_report
from engine.report.summary import Summary, complete

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
    "\x1b]0;owned\x07\x00\u202etxt.exe\ud800",
)
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "p",
    "div",
    "span",
    "strong",
    "pre",
    "ul",
    "li",
}
ELEMENTS |= {"table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"}


@pytest.fixture
def figures() -> None:
    """For tests that look at figures; the others are quicker without."""
    pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def figures_only_where_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(plots, "find_spec", lambda name: None)


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


def iteration(number: int, **changes: object) -> IterationSummary:
    values = IterationSummary(
        iteration=number,
        weights=f"sha256:{number}{number}",
        reference=f"sha256:{number - 1}{number - 1}",
        win_rate_start=WinRate(0.6, 0.55, 0.64, 400),
        win_rate_previous=WinRate(0.52, 0.47, 0.57, 400),
        mean_length=41.5,
        agreement=0.875,
        num_prompts=640,
        num_rows=1600,
        num_ties=12,
        num_truncated=3,
    )
    return replace(values, **changes)


def run(folder: Path, iterations: int = 2, steps: int = 5) -> Summary:
    """A finished run: its metrics on disk and its summary."""
    now = [0.0]
    with Monitor(folder, console=Console(file=io.StringIO()), clock=lambda: now[0]) as monitor:
        for t in range(1, iterations + 1):
            monitor.begin_iteration(t, iterations)
            now[0] += 4.0
            monitor.shard_done("generate", now[0] - 4.0, now[0], tokens=100.0)
            for step in range(1, steps + 1):
                now[0] += 1.0
                monitor.step(step, steps, {"loss": 1.0 / step, "rewards/margins": 0.5, "rewards/chosen": 0.25}, 1.0)
            monitor.end_iteration({})
    return Summary(
        name="tearoom",
        status="finished",
        num_iterations=iterations,
        judge="the oracle",
        start="sha256:00",
        config={"algorithm.eta": 1000.0},
        provenance={"scorer": "pairrm sha256:77", "seed": 3, "versions": {"torch": "2.13.0", "ray": "2.60.0"}},
        iterations=tuple(iteration(t) for t in range(1, iterations + 1)),
        samples=(Sample("Which tea?", "Sencha,\nof course.", "None.", 0.75, 0.25),),
    )


def test_a_finished_run_yields_four_files_and_nothing_half_written(tmp_path: Path):
    path = write_report(tmp_path, run(tmp_path))
    assert path == tmp_path / "report" / "index.html"
    assert {file.name for file in path.parent.iterdir()} == {
        "index.html",
        "report.md",
        "summary.json",
        "iterations.csv",
    }


def test_the_page_shows_results_samples_and_provenance(tmp_path: Path):
    page = Page(write_report(tmp_path, run(tmp_path)).read_text())
    for words in (
        "tearoom", "finished · 2 of", "the oracle", "60.0 % [55.0, 64.0]", "52.0 % [47.0, 57.0]", "41.5", "87.5 %",
        "1,600", "generate busy", "4.0 s", "Which tea?", "Sencha,\nof course.", "win rate 75.0 %", "algorithm.eta",
        "1000.0", "pairrm sha256:77", "sha256:00", "sha256:22", "0.2",
        "torch 2.13.0, ray 2.60.0",
    ):  # fmt: skip
        assert words in page.text, words
    assert "Not there yet" not in page.text


def test_the_page_is_self_contained_and_forbids_scripts(tmp_path: Path, figures: None):
    html = write_report(tmp_path, run(tmp_path)).read_text()
    page = Page(html)
    assert set(page.tags()) <= ELEMENTS
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*)</style>", html, re.DOTALL)
    assert policy is not None and style is not None
    assert "default-src 'none'" in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()}'" in policy
    assert [a["src"][:26] for tag, a in page.elements if tag == "img"] == ["data:image/svg+xml;base64,"] * 3
    assert "http://" not in html and "https://" not in html


def test_what_models_write_never_becomes_an_element_or_an_attribute(tmp_path: Path):
    harmless = run(tmp_path)
    expected = Page(write_report(tmp_path, replace(harmless, samples=harmless.samples * len(ATTACKS[:8]))).read_text())
    for attacks in (ATTACKS[:8], ATTACKS[8:]):
        samples = tuple(Sample(attack, attack, attack, 0.75, 0.25) for attack in attacks)
        page = Page(write_report(tmp_path, replace(harmless, samples=samples)).read_text())
        assert page.tags() == expected.tags()
        assert [set(attributes) for _, attributes in page.elements] == [set(a) for _, a in expected.elements]
        for attack in attacks:
            assert attack.rstrip("\ud800").replace("\x1b", "\\x1b").partition("\x07")[0] in page.text


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_notes_config_and_digests_are_escaped_too(tmp_path: Path, attack: str):
    with Monitor(tmp_path, console=Console(file=io.StringIO())) as monitor:
        monitor.note(attack)
    summary = Summary(
        name=attack, status=attack, judge=attack, start=attack, config={attack: attack}, provenance={attack: [attack]},
        iterations=(iteration(1, weights=attack, reference=attack),),
    )  # fmt: skip
    path = write_report(tmp_path, summary)
    html = path.read_text()
    assert set(Page(html).tags()) <= ELEMENTS
    assert not set(html + (path.parent / "report.md").read_text()) & set("\x00\x07\x1b\u202e\r")
    assert json.loads((path.parent / "summary.json").read_text())["name"] == attack


def test_markdown_keeps_answers_in_their_fences_and_cells_in_their_columns(tmp_path: Path):
    hostile = "```\n# Owned\n````\n<script>"
    summary = Summary("x", config={"a|b": "<b>*bold*</b> [link](javascript:1)"}, samples=(Sample(hostile, "b", "w"),))
    text = (write_report(tmp_path, summary).parent / "report.md").read_text()
    assert f"`````text\n{hostile}\n`````" in text
    assert r"| a\|b | \<b\>\*bold\*\</b\> \[link\]\(javascript:1\) |" in text


def test_the_csv_has_full_precision_and_intervals_in_columns_of_their_own(tmp_path: Path):
    path = write_report(tmp_path, run(tmp_path)).parent / "iterations.csv"
    first, second = csv.DictReader(path.open(newline=""))
    assert (first["iteration"], second["iteration"]) == ("1", "2")
    rates = [float(first[f"win_rate_start{end}"]) for end in ("", "_low", "_high")]
    assert rates == [0.6, 0.55, 0.64]
    assert (float(first["busy_generate_seconds"]), float(first["busy_learn_seconds"])) == (4.0, 5.0)
    assert float(first["wall_seconds"]) == 9.0


def test_losses_steps_and_times_come_from_the_metrics_where_the_summary_is_silent(tmp_path: Path):
    summary = complete(run(tmp_path), read_metrics(tmp_path / "metrics.jsonl"))
    last = summary.iterations[-1]
    assert (last.loss_first, last.loss_last, last.num_steps) == (1.0, 0.2, 5)
    assert (last.wall, last.times()) == (9.0, {"generate": (4.0, 5.0), "learn": (5.0, 4.0)})


def test_what_the_summary_says_wins_over_the_metrics(tmp_path: Path):
    run(tmp_path)
    summary = Summary("x", iterations=(iteration(1, loss_first=7.0, metrics={"time/wall": 3.0}),))
    first = complete(summary, read_metrics(tmp_path / "metrics.jsonl")).iterations[0]
    assert (first.loss_first, first.loss_last, first.wall) == (7.0, 0.2, 3.0)


def test_a_run_that_has_just_begun_has_a_report_that_says_so(tmp_path: Path, figures: None):
    page = Page(write_report(tmp_path, Summary("early")).read_text())
    assert page.text.lower().count("not there yet") == 7  # iterations, three figures, samples, config, provenance
    assert set(page.tags()) <= ELEMENTS


def test_an_iteration_under_way_is_listed_with_what_it_has_so_far(tmp_path: Path):
    now = [0.0]
    monitor = Monitor(tmp_path, console=Console(file=io.StringIO()), clock=lambda: now[0])
    monitor.begin_iteration(1, 3)
    monitor.step(1, 9, {"loss": 0.5}, 0.0)
    monitor.step(2, 9, {"loss": float("nan")}, 0.0)
    path = write_report(tmp_path, Summary("partial"))
    [row] = csv.DictReader((path.parent / "iterations.csv").open(newline=""))
    assert (row["iteration"], row["num_steps"], row["loss_first"], row["loss_last"]) == ("1", "2", "0.5", "")


def test_a_second_report_replaces_the_first(tmp_path: Path):
    summary = run(tmp_path)
    write_report(tmp_path, replace(summary, status="running"))
    assert "finished" in write_report(tmp_path, summary).read_text()


def test_damaged_metrics_are_reported_in_the_report(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("not json\n")
    assert "line 1: not a line of metrics" in Page(write_report(tmp_path, Summary("x")).read_text()).text


def test_without_matplotlib_the_report_has_a_note_in_place_of_figures(tmp_path: Path):
    page = Page(write_report(tmp_path, run(tmp_path)).read_text())
    assert "Figures need matplotlib" in page.text
    assert "img" not in page.tags()
    assert "60.0 % [55.0, 64.0]" in page.text


def test_numbers_that_json_lacks_are_null_in_the_summary_file(tmp_path: Path):
    summary = Summary("x", iterations=(iteration(1, loss_last=float("nan"), metrics={"learn/x": float("inf")}),))
    text = (write_report(tmp_path, summary).parent / "summary.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["iterations"][0]
    assert (written["loss_last"], written["metrics"]["learn/x"], written["num_rows"]) == (None, None, 1600)


def test_long_curves_are_thinned_to_means_that_keep_their_ends():
    steps = [(step, {"loss": float(step)}) for step in range(1, 10_001)]
    x, y = plots._curve(steps, "loss", 600)
    assert len(x) <= 600
    assert x[-1] == 10_000
    assert y[0] == pytest.approx(sum(range(1, x[0] + 1)) / x[0])


def test_the_same_run_gives_the_same_figures(tmp_path: Path, figures: None):
    summary = run(tmp_path)
    assert write_report(tmp_path, summary).read_bytes() == write_report(tmp_path, summary).read_bytes()


def test_the_terminal_table_shows_what_there_is_and_obeys_nothing():
    out = io.StringIO()
    partial = iteration(1, agreement=None, metrics={"time/wall": 90.0})
    print_table(Console(file=out, width=160, force_terminal=True), Summary("run [red]x\x1b[2J", iterations=(partial,)))
    text = out.getvalue()
    assert r"run [red]x\x1b[2J" in re.sub("\x1b\\[[0-9;]*m", "", text)
    assert "60.0 % [55.0, 64.0]" in text and "90.0 s" in text
    assert "oracle" not in text
    assert "\x1b[2J" not in text
