"""Templates in which no value is markup.

Prompts and answers come from data sets and models and may be hostile. Every value in a template is escaped and made
printable, a content security policy allows the page's own style and script and nothing else, and each text is isolated
so that right-to-left text cannot reorder its surroundings.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import engine
from engine.report.figures import MISSING, count, percent
from engine.text import html, markdown, markdown_block

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, title: str, content: Mapping[str, Any], reload_seconds: int | None = None) -> str:
    """A whole page. reload_seconds: after so many seconds it loads itself again; None: never."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        _environment(_line, html)
        .get_template(template)
        .render(
            content,
            title=title,
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
            reload_seconds=reload_seconds,
            missing=MISSING,
            version=engine.__version__,
        )
    )


def _line(text: str) -> str:
    """One line of HTML; a percent sign stays with its number."""
    return html(text, newlines="show").replace(" %", "\u00a0%")


def render_markdown(template: str, content: Mapping[str, Any]) -> str:
    return _environment(markdown, markdown_block).get_template(template).render(content, missing=MISSING)


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, images in the page, nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment(line: Callable[[str], str], block: Callable[[str], str]) -> Environment:
    """Templates in which each value is escaped by `line`, or by `block` if the filter |block is used."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(line(str(value))),
    )
    environment.filters["block"] = lambda text: Markup(block(text))
    environment.filters["count"] = count
    environment.filters["share"] = lambda rate: MISSING if rate is None else percent(rate)
    environment.filters["share0"] = lambda rate: MISSING if rate is None else f"{100 * rate:.0f}"
    environment.filters["heat"] = heat
    return environment


def heat(share: float | None) -> str:
    """The class of a cell that shows a share in [0, 1]: h0 to h10, from lost to won."""
    return "" if share is None else f"h{round(10 * min(1.0, max(0.0, share)))}"
