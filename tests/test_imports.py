"""Configs, help texts and plans answer at once, because nothing heavy is imported on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "trl", "matplotlib")
LIGHT_MODULES = [
    "engine",
    "engine.schema",
    "engine.config.run",
    "engine.config.load",
    "engine.algorithms",
    "actors.scorers.builtin",
    "actors.generator",
    "cluster.commands.train",
    "cluster.commands.cli",
    "cluster.plan.plan",
]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.py") if "__main__" in path.read_text())

REPORT = "import sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"


def heavy_modules_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after `code`."""
    script = f"{code}\n{REPORT.format(heavy=HEAVY)}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_brings_nothing_heavy(module):
    assert heavy_modules_after(f"import {module}") == []


def test_loading_and_describing_a_config_brings_nothing_heavy():
    code = """
from engine.config.explain import describe
from engine.config.load import config_digest, dump, load
config = load("recipes/configs/sppo_llama3_8b.yaml", ["learner.optimizer.lr=1e-6"])
dump(config), config_digest(config), describe()
"""
    assert heavy_modules_after(code) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_help_of_a_recipe_brings_nothing_heavy(recipe):
    code = f"""
import contextlib, io, runpy, sys
sys.argv = [{str(recipe)!r}, "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
        runpy.run_path({str(recipe)!r}, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
assert out.getvalue().strip(), "no help was printed"
"""
    assert heavy_modules_after(code) == []


PAPER = "recipes/configs/sppo_llama3_8b.yaml"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config", PAPER, "--dry-run"], 0, "dry run: nothing was started"),
        (["--config", PAPER, "--dry-run", "cluster.stated.gpus=4"], 2, "the plan does not fit"),
        (["--config", PAPER, "learner.lr=1"], 2, "learner.lr: unknown key"),
    ],
    ids=["dry run", "plan that does not fit", "mistake"],
)
def test_a_plan_and_a_mistake_bring_nothing_heavy(arguments, code, words):
    script = f"""
import contextlib, io
from cluster.commands.train import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main({{}}, "", {arguments!r}) == {code}
assert {words!r} in out.getvalue(), out.getvalue()
"""
    assert heavy_modules_after(script) == []


def test_the_probe_sees_a_heavy_import():
    assert heavy_modules_after("import sys, types; sys.modules['torch'] = types.ModuleType('torch')") == ["torch"]
