"""Configs, help texts and plans are shown at once, because they import no heavy library."""

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

LOAD = """
from engine.config.keys import describe
from engine.config.load import config_digest, dump, load
config = load("recipes/configs/sppo_llama3_8b.yaml", ["learner.optimizer.lr=1e-6"])
dump(config), config_digest(config), describe()
"""

PROBE = """
import contextlib, importlib, io, json, runpy, sys

def show_help(path):
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
    assert out.getvalue().strip(), "no help was printed"

heavy, brought = set(), {}
for kind, name in json.loads(sys.argv[1]):
    {"module": importlib.import_module, "help": show_help, "code": exec}[kind](name)
    new = {module for module in %r if module in sys.modules} - heavy
    heavy |= new
    brought[name] = sorted(new)
print(json.dumps(brought))
"""


def brought_by(*subjects: tuple[str, str]) -> dict[str, list[str]]:
    """The heavy modules that each of these (kind, name) brings into one fresh interpreter, after those before it."""
    command = [sys.executable, "-c", PROBE % (HEAVY,), json.dumps(subjects)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def brought() -> dict[str, list[str]]:
    modules = [("module", name) for name in LIGHT_MODULES]
    return brought_by(*modules, ("code", LOAD), *(("help", str(recipe)) for recipe in RECIPES))


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_brings_nothing_heavy(brought, module):
    assert brought[module] == []


def test_loading_and_describing_a_config_brings_nothing_heavy(brought):
    assert brought[LOAD] == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_help_of_a_recipe_brings_nothing_heavy(brought, recipe):
    assert brought[str(recipe)] == []


PAPER = "recipes/configs/sppo_llama3_8b.yaml"


PLANS = {
    "dry run": (["--config", PAPER, "--dry-run"], 0, "dry run: nothing was started"),
    "plan that does not fit": (["--config", PAPER, "--dry-run", "cluster.stated.gpus=4"], 2, "the plan does not fit"),
    "mistake": (["--config", PAPER, "learner.lr=1"], 2, "learner.lr: unknown key"),
}


def test_a_plan_and_a_mistake_bring_nothing_heavy():
    scripts = [
        f"""
from cluster.commands.train import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main({{}}, "", {arguments!r}) == {code}
assert {words!r} in out.getvalue(), out.getvalue()
"""
        for arguments, code, words in PLANS.values()
    ]
    assert set(map(tuple, brought_by(*(("code", script) for script in scripts)).values())) == {()}


def test_the_probe_sees_a_heavy_import_and_names_the_one_that_brings_it():
    heavy = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"
    assert brought_by(("module", "json"), ("code", heavy), ("module", "csv")) == {
        "json": [],
        heavy: ["torch"],
        "csv": [],
    }
