"""The radar of several models: every model is a closed line over all categories, and names stay text."""

from __future__ import annotations

import math

import pytest

from engine.report.plots import svg
from engine.report.radar import radar

SCORES = {
    "first": {"writing": 8.0, "math": 4.0, "coding": 5.0},
    "second": {"writing": 7.0, "math": math.nan, "stem": 9.0},
}


def lines(figure):
    return figure.axes[0].get_lines()


def test_every_model_has_a_closed_line_over_all_categories():
    figure = radar(SCORES, 1.0, 10.0)
    first, second = lines(figure)
    assert first.get_ydata() == pytest.approx([8, 4, 5, math.nan, 8], nan_ok=True)
    assert second.get_ydata() == pytest.approx([7, math.nan, math.nan, 9, 7], nan_ok=True)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["writing", "math", "coding", "stem"]
    assert figure.axes[0].get_ylim() == (1.0, 10.0)


def test_fewer_than_three_categories_make_no_radar():
    assert radar({"one": {"writing": 1.0, "math": 2.0}}, 1.0, 10.0) is None
    assert radar({}, 1.0, 10.0) is None
    assert radar({"no judgment": dict.fromkeys(SCORES["first"], math.nan)}, 1.0, 10.0) is None


def test_more_models_than_colours_differ_in_colour_or_style():
    figure = radar({f"model {n}": SCORES["first"] for n in range(20)}, 1.0, 10.0)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines(figure)}) == 20


def test_hostile_names_stay_text_and_the_same_drawing_gives_the_same_bytes():
    hostile = {
        "_hidden": SCORES["first"],
        "$\\frac{": SCORES["first"],
        "<script>alert(1)</script>\n\x1b": SCORES["first"],
    }
    image = svg(radar(hostile, 1.0, 10.0))
    assert image == svg(radar(hostile, 1.0, 10.0))
    assert b"<script" not in image
    labels = [text.get_text() for text in radar(hostile, 1.0, 10.0).legends[0].get_texts()]
    assert labels == [" _hidden", "\\$\\frac{", "<script>alert(1)</script>\\n\\x1b"]
