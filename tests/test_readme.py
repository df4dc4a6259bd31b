"""README names every file that a reader may look for, and no file that is gone; links lead somewhere."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("engine", "actors", "cluster", "recipes")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def named(readme: str) -> set[str]:
    """Paths and globs in the tables of "The files"; a name without a folder lies where the one before it does."""
    found, layer = set(), ""
    for line in readme.partition("## The files")[2].splitlines():
        names = re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("|") else []
        if len(names) == 1 and names[0].rstrip("/") in LAYERS:
            layer, names = names[0].rstrip("/"), []
        folder = ""
        for name in names:
            above, slash, _ = name.rpartition("/")
            folder = above + slash if slash else folder
            found.add(f"{layer}/{name if slash else folder + name}")
    return found


def files() -> list[str]:
    """Modules, configurations and judge prompts, as paths from the repository."""
    kept = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if path.name != "__init__.py"]
    kept += [path for kind in ("configs/*", "judges/*") for path in (ROOT / "recipes").glob(kind)]
    return sorted(path.relative_to(ROOT).as_posix() for path in kept if path.is_file())


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_is_named_in_the_readme():
    names = named(README)
    assert [path for path in files() if not any(fnmatchcase(path, name) for name in names)] == []


def test_every_name_in_the_readme_is_a_file():
    assert sorted(name for name in named(README) if not any(ROOT.glob(name.rstrip("/")))) == []


def test_a_file_in_another_folder_is_not_taken_for_the_named_one():
    names = named("## The files\n| `engine/` | the method |\n|---|---|\n| `loop/stages.py`, `roles.py` | a; b |\n")
    assert names == {"engine/loop/stages.py", "engine/loop/roles.py"}


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
