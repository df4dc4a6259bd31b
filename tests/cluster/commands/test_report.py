"""kumite report: one run again, a run that goes on, several runs on one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands.cli import main
from engine.config.load import dump
from engine.report.live import watch
from engine.store.reader import RunReader
from engine.store.run import RunStore
from tests.runs import fake_config, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, memory_is_durable_enough: None) -> Path:
    return play(fake_config(tmp_path_factory.mktemp("runs"), tracking={"live_report": True}))


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "report" not in path.parts
    }


def test_a_run_with_a_live_report_wrote_it_after_each_iteration(run: Path):
    page = (run / "report/index.html").read_text()
    assert "2 of 2 iterations" in page and 'http-equiv="refresh"' in page


def test_the_report_is_written_from_the_folder_alone_and_changes_nothing_else(run: Path, capsys):
    before = files(run)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report/index.html")
    assert "finished · 2 of 2 iterations" in (run / "report/index.html").read_text()
    assert files(run) == before


def test_a_live_page_is_written_until_the_run_ends(tmp_path: Path):
    folder, pages = tmp_path / "run", []
    with RunStore(folder) as store:
        store.record("prompts", shards=[])
        (folder / "config.yaml").write_text(dump(fake_config(tmp_path)))

        def wait(seconds: float) -> None:
            pages.append((folder / "report/index.html").read_text())
            if len(pages) == 3:
                store.record("finished")

        watch(folder, 7, wait)
    assert all('http-equiv="refresh" content="7"' in page and "running · 0 of 2" in page for page in pages)
    assert 'http-equiv="refresh"' not in (folder / "report/index.html").read_text()
    assert RunReader(folder).recorded("finished")


def test_several_runs_make_one_page(run: Path, tmp_path: Path, capsys):
    page = tmp_path / "both.html"
    assert main(["report", str(run), str(run), "--output", str(page)]) == 0
    assert "2 runs compared" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "{run}"], "name the page that compares the 2 runs: --output FILE"),
        (["{run}", "{run}", "--live", "-o", "x.html"], "--live is for the page of one run"),
        (["{run}", "--live", "--every", "0"], "expected at least 1 second"),
        (["/nowhere"], "is not a run folder"),
    ],
)
def test_what_cannot_be_done_is_said(run: Path, capsys, arguments: list[str], words: str):
    assert main(["report", *(argument.format(run=run) for argument in arguments)]) == 2
    assert words in capsys.readouterr().err
