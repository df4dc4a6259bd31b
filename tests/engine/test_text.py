"""Model text on a terminal and in a page: everything that could act becomes a visible code."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import html, markdown, markdown_block, printable

any_text = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None))


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("safe\rfake", "safe\\rfake"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202etxt.exe", "a\\u202etxt.exe"),
        ("\u2066admin\u2069", "\\u2066admin\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\U000e0041hidden", "\\U000e0041hidden"),
        ("half \ud83d", "half \\ud83d"),
        ("nul\0", "nul\\x00"),
    ],
)
def test_what_could_act_on_a_terminal_is_shown_as_a_code(given_text: str, shown: str) -> None:
    assert printable(given_text) == shown


@pytest.mark.parametrize("text", ["שלום עולם", "日本語", "👩‍👩‍👧", "नमस्ते", "naïve\ttab\nline", r"C:\new\x1b", ""])
def test_ordinary_text_in_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_line_breaks_can_be_shown_so_that_a_text_fits_a_table_cell() -> None:
    assert printable("a\tb\nc\r\n", newlines="show") == "a\\tb\\nc\\r\\n"


def test_html_cannot_be_left_by_markup_or_quotes() -> None:
    assert html("<b>\"x\"&'y'\x1b") == "&lt;b&gt;&quot;x&quot;&amp;&#x27;y&#x27;\\x1b"


@given(any_text)
def test_no_text_keeps_a_control_character_or_a_surrogate(text: str) -> None:
    shown = printable(text)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} <= {"\n", "\t"}
    assert not any(unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI") for c in shown)
    shown.encode("utf-8")


@given(any_text)
def test_printing_twice_changes_nothing_more(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert not set(html(text)) & set("<>\"'")


def test_markdown_shows_every_character_of_a_text_as_itself() -> None:
    assert markdown("[a](http://x) | *b* <i>\n# c") == r"\[a\]\(http://x\) \| \*b\* \<i\>\\n\# c"


@given(any_text)
def test_no_text_ends_its_code_block(text: str) -> None:
    first, *middle, last = markdown_block(text).split("\n")
    assert first == f"{last}text" and not any(last in line for line in middle)
