"""README names every file that a reader may look for, and only existing files; links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("engine", "actors", "cluster", "recipes")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def named(readme: str) -> set[str]:
    """Paths in the tree of "The files": folders end with "/", and what is indented below lies in them."""
    found, stack = set(), []
    for line in readme.partition("## The files")[2].partition("```")[2].partition("```")[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.findall(r"(?<!\S)(?:[\w]+/|[\w]+\.py)(?=,?(?:\s|$))", line)
        if not names:
            continue
        del stack[depth:]
        found |= {"".join(stack) + name for name in names}
        stack.append(names[0] if names[0].endswith("/") else "")
    return found


def files() -> list[str]:
    """Modules of the four layers, as paths from the repository."""
    kept = (path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if path.name != "__init__.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in kept)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_is_named_in_the_readme_or_lies_in_a_folder_that_is_named_as_a_whole():
    names = named(README)
    whole = {name for name in names if name.endswith("/") and not any(n != name and n.startswith(name) for n in names)}
    assert [path for path in files() if path not in names and not any(path.startswith(name) for name in whole)] == []


def test_every_name_in_the_readme_exists():
    assert sorted(name for name in named(README) if not (ROOT / name).exists()) == []


def test_names_below_a_folder_lie_in_it():
    lines = ["engine/   the method", "  loop/", "    a.py  b.py  two files", "  c.py", "recipes/", "  d/  e/  both"]
    tree = "## The files\n```\n" + "\n".join(lines) + "\n```"
    assert named(tree) == {"engine/", "engine/loop/", "engine/loop/a.py", "engine/loop/b.py", "engine/c.py", "recipes/",
                           "recipes/d/", "recipes/e/"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_links_of_a_page_lead_to_files(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), {ROOT / "README.md"}
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = LINK.findall(page.read_text(encoding="utf-8"))
        waiting |= {(page.parent / link).resolve() for link in links if link.endswith(".md")} - seen
    assert [page.name for page in PAGES if page not in seen and page.parent == ROOT / "docs"] == []


def test_every_test_that_a_page_names_exists():
    """`path::test` in full; a bare `::test` lies in the file named before it."""
    missing = []
    for page in PAGES:
        text, file = page.read_text(encoding="utf-8"), ""
        for name, test in re.findall(r"`([\w/]*\.py)?::(\w+)`", text):
            file = name or file
            where = [ROOT / file] if "/" in file else [*(ROOT / "tests").rglob(file)]
            if not any(path.exists() and f"def {test}(" in path.read_text(encoding="utf-8") for path in where):
                missing.append(f"{page.name}: {file}::{test}")
    assert missing == []
