"""The report: complete, partial, and harmless whatever a model wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.config.load import dump
from engine.metrics.monitor import Monitor
from engine.metrics.trackers import read_metrics
from engine.report.collect import WinRate
from engine.report.figures import IterationSummary
from engine.report.render import iterations_csv, print_table, write_report
from engine.report.run_data import read_run
from engine.report.summary import Summary, complete
from engine.store.run import RunStore
from tests.engine.report.pages import ATTACKS, Page, page_of
from tests.runs import fake_config

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")

ELEMENTS = {
    *("html", "head", "meta", "link", "title", "style", "script", "body", "header", "nav", "main", "section", "footer"),
    *("h1", "h2", "h3", "p", "a", "ul", "li", "dl", "dt", "dd", "div", "span", "pre", "time", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("label", "input", "select", "option", "button", "output"),
    *("svg", "desc", "line", "path", "text", "circle", "rect", "polygon"),
}


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Path]:
    """A run folder in which nothing has been computed."""
    config = fake_config(tmp_path)
    with RunStore(tmp_path / "run") as store:
        store.record("prompts", shards=[])
        (tmp_path / "run/config.yaml").write_text(dump(config))
        yield tmp_path / "run"


def test_a_finished_run_yields_four_files_and_nothing_half_written(run: Path):
    path = page_of(run)
    assert path == run / "report" / "index.html"
    names = {file.name for file in path.parent.iterdir()}
    assert names - {"benchmarks"} == {"index.html", "report.md", "summary.json", "iterations.csv"}


def test_the_page_has_every_section_and_says_what_it_found(run: Path):
    page = Page(page_of(run).read_text())
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    ids = {a["id"] for tag, a in page.elements if a.get("id")}
    assert {link[1:] for link in links if link} <= ids
    for words in (
        "finished · 2 of 2 iterations", "wins against start", "judge: orders agree", "Version 1 is", "Win rate", "Loss",
        "Every version against every other, on 8 held-out prompts", "Win probabilities", "Who worked when",
        "What the judge said", "chosen", "rejected", "P(row beats column)", "held-out", "sampling.num_samples",
        "version to take",
    ):  # fmt: skip
        assert words in page.text, words
    assert "Not there yet" not in page.text


def test_the_page_loads_nothing_and_runs_only_its_own_script(run: Path):
    html = page_of(run).read_text()
    page = Page(html)
    assert set(page.tags()) <= ELEMENTS
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    for name in ("style", "script"):
        [text] = re.findall(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "http://" not in html and "https://" not in html
    assert not [a for _, a in page.elements if a.get("src") or a.get("style")]


def test_what_models_write_never_becomes_an_element_or_an_attribute(run: Path, poisoned: Path):
    harmless, page = Page(page_of(run).read_text()), Page(page_of(poisoned).read_text())
    assert set(page.tags()) <= ELEMENTS
    assert page.tags().count("script") == 1
    names = {name for _, attributes in harmless.elements for name in attributes}
    assert {name for _, attributes in page.elements for name in attributes} <= names
    for attack in ATTACKS:
        shown = attack.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\x00", "\\x00")
        assert shown.replace("\u202e", "\\u202e") in page.text


def test_no_file_of_the_report_holds_control_characters(poisoned: Path):
    page_of(poisoned)
    for name in ("index.html", "report.md", "iterations.csv", "summary.json"):
        assert not set((poisoned / "report" / name).read_text()) & set("\x00\x07\x1b\u202e\r"), name


def test_values_of_the_configuration_and_titles_are_escaped_too(begun: Path):
    config = fake_config(begun.parent, model={"path": ATTACKS[0], "dtype": "float32"})
    (begun / "config.yaml").write_text(dump(config))
    (begun / "run.json").write_text(json.dumps({attack: [attack] for attack in ATTACKS}))
    page = Page(page_of(begun).read_text())
    assert set(page.tags()) <= ELEMENTS and page.tags().count("script") == 1
    assert page.text.count(ATTACKS[0]) >= 3


def test_long_texts_are_cut_and_the_page_says_by_how_much(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.report.samples.MAX_CHARACTERS", 2)
    assert "more characters are in the run's tables" in Page(page_of(run).read_text()).text


def test_markdown_keeps_answers_in_their_fences_and_cells_in_their_columns(poisoned: Path):
    page_of(poisoned)
    text = (poisoned / "report/report.md").read_text()
    outside = re.sub(r"(`{3,})text\n.*?\n\1", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert "judge: orders agree" in outside


def test_a_run_that_has_just_begun_has_a_report_that_says_so(begun: Path):
    page = Page(page_of(begun).read_text())
    assert "Nothing is known yet" in page.text
    assert page.text.count("Not there yet") == 5  # iterations, curves, samples, time, provenance
    assert "The run is not finished: it is running; 0 of 2 iterations are complete." in page.text


def test_a_stopped_run_says_why(begun: Path):
    with Monitor(begun, console=Console(file=io.StringIO())) as monitor:
        monitor.note("stopped: disk full")
    data = read_run(begun)
    assert data.status == "running"  # the fixture holds the folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.report.run_data.owner_of", lambda folder: None)
        assert read_run(begun).status == "stopped: disk full"


def test_damaged_metrics_are_reported_in_the_report(begun: Path):
    (begun / "metrics.jsonl").write_text("not json\n")
    (begun / "timeline.jsonl").write_text("[]\n")
    text = Page(page_of(begun).read_text()).text
    assert text.count("line 1: not a line of metrics") >= 2


def test_the_same_run_gives_the_same_page(run: Path):
    assert page_of(run).read_bytes() == page_of(run).read_bytes()


def test_a_page_that_reloads_itself_says_how_often(run: Path):
    path = write_report(read_run(run), reload_seconds=7)
    assert '<meta http-equiv="refresh" content="7">' in path.read_text()
    assert 'http-equiv="refresh"' not in page_of(run).read_text()


def iteration(number: int, **changes: object) -> IterationSummary:
    values = IterationSummary(
        iteration=number,
        win_rate_start=WinRate(0.6, 0.55, 0.64, 400),
        mean_length=41.5,
        agreement=0.875,
        num_rows=1600,
    )
    return replace(values, **changes)


def measured(folder: Path, iterations: int = 2, steps: int = 5) -> list[dict]:
    """What a run of these steps writes to metrics.jsonl."""
    now = [0.0]
    with Monitor(folder, console=Console(file=io.StringIO()), clock=lambda: now[0]) as monitor:
        for t in range(1, iterations + 1):
            monitor.begin_iteration(t, iterations)
            now[0] += 4.0
            monitor.shard_done("generate", now[0] - 4.0, now[0], tokens=100.0)
            for step in range(1, steps + 1):
                now[0] += 1.0
                monitor.step(step, steps, {"loss": 1.0 / step}, 1.0)
            monitor.end_iteration({})
    return read_metrics(folder / "metrics.jsonl")


def test_the_csv_has_full_precision_and_intervals_in_columns_of_their_own(tmp_path: Path):
    summary = complete(Summary("x", iterations=(iteration(1), iteration(2))), measured(tmp_path))
    first, second = csv.DictReader(io.StringIO(iterations_csv(summary)))
    assert (first["iteration"], second["iteration"]) == ("1", "2")
    assert [float(first[f"win_rate_start{end}"]) for end in ("", "_low", "_high")] == [0.6, 0.55, 0.64]
    assert (float(first["busy_generate_seconds"]), float(first["busy_learn_seconds"])) == (4.0, 5.0)
    assert float(first["wall_seconds"]) == 9.0


def test_losses_steps_and_times_come_from_the_metrics_where_the_summary_is_silent(tmp_path: Path):
    last = complete(Summary("x", iterations=(iteration(1),)), measured(tmp_path)).iterations[-1]
    assert (last.loss_first, last.loss_last, last.num_steps) == (1.0, 0.2, 5)
    assert (last.wall, last.times()) == (9.0, {"generate": (4.0, 5.0), "learn": (5.0, 4.0)})


def test_what_the_summary_says_wins_over_the_metrics(tmp_path: Path):
    summary = Summary("x", iterations=(iteration(1, loss_first=7.0, metrics={"time/wall": 3.0}),))
    first = complete(summary, measured(tmp_path)).iterations[0]
    assert (first.loss_first, first.loss_last, first.wall) == (7.0, 0.2, 3.0)


def test_numbers_that_json_lacks_are_null_in_the_summary_file(begun: Path):
    with Monitor(begun, console=Console(file=io.StringIO())) as monitor:
        monitor.begin_iteration(1, 2)
        monitor.step(1, 9, {"loss": float("nan")}, 0.0)
    page_of(begun)
    text = (begun / "report/summary.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (written["iterations"][0]["loss_last"], written["iterations"][0]["num_steps"]) == (None, 1)


def test_the_terminal_table_shows_what_there_is_and_obeys_nothing():
    out = io.StringIO()
    partial = iteration(1, agreement=None, metrics={"time/wall": 90.0})
    print_table(Console(file=out, width=160, force_terminal=True), Summary("run [red]x\x1b[2J", iterations=(partial,)))
    text = out.getvalue()
    assert r"run [red]x\x1b[2J" in re.sub("\x1b\\[[0-9;]*m", "", text)
    assert "60.0 % [55.0, 64.0]" in text and "90.0 s" in text
    assert "oracle" not in text
    assert "\x1b[2J" not in text
