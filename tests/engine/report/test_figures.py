"""Each figure of an iteration is declared once, and docs/metrics.md describes all that a run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.config.preferences import PreferencesConfig
from engine.metrics.trackers import read_metrics
from engine.report.figures import FIGURES, ITERATION, JUDGE, WALL, Figure
from tests.runs import fake_config, play

ROOT = Path(__file__).parents[3]
DECLARED = (ITERATION, *FIGURES, *JUDGE, WALL)
SELF = {
    "kind": "judge",
    "server": {"kind": "policy"},
    "prompt": str(ROOT / "recipes/judges/pairwise.txt"),
    "null_model": "Hello.",
}

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def rows() -> list[list[list[str]]]:
    """The rows of the tables of docs/metrics.md; of each cell the names in it."""
    lines = (ROOT / "docs/metrics.md").read_text(encoding="utf-8").splitlines()
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]] for line in lines if line[:2] == "| "]


def documented(name: str, stages: set[str]) -> bool:
    """Whether a row begins with `name`, or with a pattern such as `time/<stage>/busy` that it matches."""
    patterns = (pattern.replace("<stage>", "|".join(stages).join("()")) for row in rows() for pattern in row[0])
    return any(re.fullmatch(pattern.replace("<amount>", "[a-z]+"), name) for pattern in patterns)


@pytest.mark.parametrize("figure", DECLARED, ids=lambda figure: figure.name)
def test_every_figure_has_a_row_with_its_metric_and_its_column(figure: Figure) -> None:
    names = {name for row in rows() for name in row[0]}
    if figure.metric is None:
        assert figure.name in names
        return
    assert set(figure.numbers(figure.metric, None)) <= names
    columns = {name for row in rows() if figure.metric in row[0] for cell in row[1:] for name in cell}
    assert not figure.heading or figure.name in columns


def test_no_two_figures_share_a_name_a_heading_or_a_metric() -> None:
    for names in zip(*((f.name, f.heading, f.metric) for f in DECLARED), strict=True):
        given = [name for name in names if name is not None]
        assert len(set(given)) == len(given)


def test_every_metric_that_a_run_writes_is_documented(tmp_path: Path) -> None:
    pairs = {"source": str(ROOT / "recipes/configs/smoke_preferences.jsonl")}
    config = fake_config(tmp_path, scorer=SELF)
    evaluation = config.evaluation.model_copy(update={"preferences": PreferencesConfig(**pairs)})
    folder = play(config.model_copy(update={"evaluation": evaluation}))
    written = {name for record in read_metrics(folder / "metrics.jsonl") for name in record}
    stages = {name.split("/")[1] for name in written if re.fullmatch("time/[^/]+/busy", name)}
    assert {name for name in written if not documented(name, stages)} == set()
    assert {figure.metric for figure in DECLARED if figure.metric} <= written


def test_no_metric_of_the_policy_or_the_judge_is_documented_that_is_not_there() -> None:
    names = {name for row in rows() for name in row[0] if re.match("(eval|evaluate|judge|score)/", name)}
    declared = {name for figure in DECLARED if figure.metric for name in figure.numbers(figure.metric, None)}
    assert names <= declared
