"""The radar of several models in a file: every model with its legend, and names that stay text."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from engine.report.radar import radar_file

SVG = "{http://www.w3.org/2000/svg}"
SCORES = {
    "first": {"writing": 8.0, "math": 4.0, "coding": 5.0},
    "second": {"writing": 7.0, "math": math.nan, "stem": 9.0},
}


def texts(image: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(image).iter(f"{SVG}text")]


def test_every_model_has_a_polygon_over_what_it_was_measured_on_and_a_line_in_the_legend():
    image = radar_file("MT-Bench", SCORES, 1.0, 10.0)
    areas = [node for node in ElementTree.fromstring(image).iter(f"{SVG}polygon") if "area" in node.get("class")]
    assert [len(area.get("points").split()) for area in areas] == [3, 2]
    assert texts(image)[:4] == ["writing", "math", "coding", "stem"]
    assert texts(image)[-2:] == ["first", "second"]


def test_fewer_than_three_categories_or_no_number_make_no_radar():
    assert radar_file("x", {"one": {"writing": 1.0, "math": 2.0}}, 1.0, 10.0) is None
    assert radar_file("x", {}, 1.0, 10.0) is None
    assert radar_file("x", {"no judgment": dict.fromkeys(SCORES["first"], math.nan)}, 1.0, 10.0) is None


def test_a_model_without_any_number_is_left_out():
    image = radar_file("x", {**SCORES, "no judgment": {"writing": math.nan}}, 1.0, 10.0)
    assert "no judgment" not in texts(image)


def test_hostile_names_stay_text():
    hostile = {"<script>alert(1)</script>\n\x1b": SCORES["first"], "]]></style><b>&": SCORES["second"]}
    image = radar_file("x", hostile, 1.0, 10.0)
    assert texts(image)[-2:] == ["<script>alert(1)</script>\\n\\x1b", "]]></style><b>&"]
    assert not list(ElementTree.fromstring(image).iter(f"{SVG}script"))
