"""Charts: every point lies where its value is, numbers are beside them, and names are no markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from engine.report.run_charts import MAX_POINTS, step_charts
from engine.report.svg import Chart, Point, Scale, Series, curves, histogram, nice_step, numbers, radar


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart.svg))


def test_points_lie_on_the_scale_of_the_grid_lines():
    chart = curves("t", "c", [Series("a", (Point(1, 0.2, 0.1, 0.3), Point(3, 0.8)))], "x", whole=True)
    root = parsed(chart)
    ticks = {}
    for text in root.findall("text"):
        if text.get("text-anchor") == "end":
            ticks[float(text.text or "")] = float(text.get("y", 0)) - 3.5
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.findall("circle")]
    slope = (ticks[0.8] - ticks[0.2]) / 0.6
    assert [y for _, y in dots] == pytest.approx([ticks[0.2], ticks[0.8]], abs=0.02)
    [whisker] = [line for line in root.findall("line") if "whisker" in line.get("class", "")]
    assert float(whisker.get("y2", 0)) - float(whisker.get("y1", 0)) == pytest.approx(0.2 * slope, abs=0.02)
    assert chart.rows == (("1", "0.2 [0.1, 0.3]"), ("3", "0.8"))


def test_a_single_value_and_equal_values_have_a_chart():
    for points in ((Point(1, 0.5),), (Point(1, 0.0), Point(2, 0.0))):
        assert parsed(curves("t", "c", [Series("a", points)], "x", whole=True)).findall("circle")


def test_names_are_text_whatever_they_hold():
    hostile = '"><script>alert(1)</script>'
    for chart in (
        curves(hostile, "", [Series(hostile, (Point(1, 2),))], hostile),
        histogram(hostile, "", [(hostile, [1, 2])], hostile),
        radar(hostile, "", [hostile] * 3, [(hostile, [1, 2, 3])], 0, 3),
    ):
        root = parsed(chart)  # parsing fails on broken markup
        assert {element.tag for element in root.iter()} <= {
            "svg", "title", "desc", "line", "path", "text", "circle", "rect", "polygon"}  # fmt: skip


def test_ticks_are_round_and_as_short_as_they_can_be():
    assert [nice_step(rough) for rough in (0.03, 0.05, 1.2, 70)] == [0.05, 0.05, 2.0, 100.0]
    assert numbers(Scale(0.0, 0.0003, 0, 1).ticks(3)) == [(0.0, "0.0000"), (0.0001, "0.0001"), (0.0002, "0.0002"), (
        pytest.approx(0.0003), "0.0003")]  # fmt: skip
    assert [text for _, text in numbers([0.0, 20.0, 40.0])] == ["0", "20", "40"]


def test_a_histogram_shows_shares_and_its_table_counts():
    chart = histogram("t", "c", [("a", [1, 3]), ("b", [2, 2])], "x")
    assert chart.rows == (("0–0.5", "1", "2"), ("0.5–1", "3", "2"))
    titles = re.findall(r"<title>([^<]*)</title>", str(chart.svg))
    assert "a: 75.0% in 0.5–1" in titles


def test_a_radar_leaves_out_what_was_not_measured():
    chart = radar("t", "c", ["a", "b", "c", "d"], [("one", [1.0, None, 3.0, 2.0])], 0.0, 4.0)
    assert len(parsed(chart).findall("circle")) == 3
    assert chart.rows[1] == ("b", "–")


def test_long_curves_are_thinned_to_means_that_keep_their_ends():
    records = [{"iteration": 1, "step": step, "kind": "step", "loss": float(step)} for step in range(1, 10_001)]
    [chart] = step_charts(records)
    path = parsed(chart).find("path")
    assert path is not None
    assert 100 < len(path.get("d", "").split("L")) <= MAX_POINTS
    assert len(chart.rows) <= 42
    assert chart.rows[-1][0] == "10000"
