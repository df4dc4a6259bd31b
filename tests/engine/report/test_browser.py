"""The pages in a real browser: nothing cut off, no complaint, hostile text stays text, search and sort by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.report.compare_page import write_comparison
from engine.report.run_data import read_run
from tests.engine.report.browser import Visit, browser
from tests.engine.report.pages import ATTACKS, page_of

pytestmark = pytest.mark.real

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, run: Path, poisoned: Path) -> dict[str, Path]:
    """The page of a run, of one with hostile texts, and of the two compared."""
    folder = tmp_path_factory.mktemp("compared")
    compared = write_comparison([read_run(run), read_run(poisoned)], folder / "compared.html")
    return {"run": page_of(run), "poisoned": page_of(poisoned), "compared": compared}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "poisoned", "compared"])
def test_nothing_is_cut_off_and_nothing_complains(chromium: Any, pages: dict[str, Path], name: str, width: int):
    visit = Visit(chromium, pages[name], width)
    assert not visit.is_wider_than_the_window()
    assert visit.check("cutOff()") == []
    visit.check("openAll()")
    assert not visit.is_wider_than_the_window()
    assert visit.check("cutOff()") == []
    assert visit.complaints == []
    assert visit.requests == [pages[name].as_uri()], "a page loads nothing but itself"


def test_hostile_text_is_shown_and_never_runs(chromium: Any, pages: dict[str, Path]):
    visit = Visit(chromium, pages["poisoned"])
    visit.check("openAll()")
    text = visit.page.inner_text("body")
    for attack in ATTACKS[:-1]:
        assert attack in text
    assert visit.page.title() == "run – Kumite report"
    assert visit.page.url == pages["poisoned"].as_uri()
    assert visit.page.evaluate("document.querySelectorAll('img, iframe, form, base, math, script[src]').length") == 0
    assert visit.complaints == []


def test_the_policy_stops_a_script_that_got_in_all_the_same(chromium: Any, pages: dict[str, Path], tmp_path: Path):
    page = pages["run"].read_text().replace("<main", "<script>document.title = 'owned'</script><main")
    path = tmp_path / "page.html"
    path.write_text(page)
    visit = Visit(chromium, path)
    assert visit.page.title() == "run – Kumite report"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_samples_are_searched_filtered_and_ordered_by_keyboard(chromium: Any, pages: dict[str, Path]):
    page = Visit(chromium, pages["run"]).page
    every = page.locator(".sample:visible").count()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("no such words anywhere")
    assert page.locator(".sample:visible").count() == 0
    assert page.inner_text("#found") == f"0 of {every}"
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    assert page.locator(".sample:visible").count() == every
    page.keyboard.press("Tab")
    page.keyboard.type("held")
    assert 0 < page.locator(".sample:visible").count() < every
    page.keyboard.press("Tab")
    page.keyboard.type("highest")
    rates = page.evaluate("[...document.querySelectorAll('.sample')].map(sample => sample.dataset.rate)")
    rates = [float(rate) for rate in rates if rate]
    assert rates == sorted(rates, reverse=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".sample[open]").count() == every


def test_tables_are_sorted_by_keyboard_in_both_directions(chromium: Any, pages: dict[str, Path]):
    page = Visit(chromium, pages["run"]).page
    heading = page.locator("#iterations table.sortable th button").first
    rows = "[...document.querySelector('#iterations table.sortable').tBodies[0].rows].map(r => r.cells[0].innerText)"
    heading.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(rows) == ["1", "2"]
    page.keyboard.press("Enter")
    assert page.evaluate(rows) == ["2", "1"]
    assert page.locator("#iterations th[aria-sort=descending]").count() == 1


def test_every_control_can_be_reached_and_shows_where_the_focus_is(chromium: Any, pages: dict[str, Path]):
    page = Visit(chromium, pages["run"]).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_schemes(chromium: Any, pages: dict[str, Path], scheme: str):
    visit = Visit(chromium, pages["run"], color_scheme=scheme)
    visit.check("openAll()")
    assert visit.check("lowContrast()") == []
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (scheme == "dark")


PLANTED = {
    "cutOff()": (
        "<p style='width: 2000px'>wide</p>",
        "<p style='overflow: hidden; width: 9px; white-space: nowrap'>a long text</p>",
        "<svg width=40 height=20><text x=20 y=9>beyond its edge</text></svg>",
    ),
    "lowContrast()": ("<p style='color: #999; background: #fff'>pale</p>",),
}


@pytest.mark.parametrize(("check", "flaw"), [(check, flaw) for check, flaws in PLANTED.items() for flaw in flaws])
def test_a_planted_flaw_is_found(chromium: Any, tmp_path: Path, check: str, flaw: str):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><body><p>fine</p>{flaw}</body>")
    assert len(Visit(chromium, path).check(check)) == 1


def test_on_paper_everything_is_open_and_nothing_is_cut(chromium: Any, pages: dict[str, Path]):
    visit = Visit(chromium, pages["run"], width=720)
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.page.emulate_media(media="print")
    assert visit.page.locator(".sample[open]").count() == visit.page.locator(".sample").count() > 0
    assert not visit.page.locator("nav").is_visible() and not visit.page.locator(".finder").is_visible()
    assert not visit.is_wider_than_the_window()
    assert len(visit.page.pdf()) > 10_000


def test_without_scripts_everything_is_shown(chromium: Any, pages: dict[str, Path]):
    page = Visit(chromium, pages["run"], java_script_enabled=False).page
    assert page.locator(".sample").count() > 0
    assert page.locator(".sample:visible").count() == page.locator(".sample").count()
    assert not page.locator(".finder").is_visible()
