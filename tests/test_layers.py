"""The shape of the code, checked on its syntax trees: imports run down, and Ray stays in cluster/runtime/."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANK = {"engine": 0, "actors": 1, "cluster": 2, "recipes": 3}
ROOMS = {"plan": 0, "runtime": 1, "run": 2, "products": 3, "evaluation": 3, "sweep": 3, "commands": 4}
"""Of cluster/: a room imports from itself and from those below."""
MAX_FUNCTION_LINES = 60
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.system",
    "torch.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "subprocess.getoutput",
}


def violations(path: Path, source: str) -> list[str]:
    """Violations of the rules in the file `path` (relative to the repository), with line numbers."""
    tree = ast.parse(source)
    found = [*upward_imports(path, tree), *unsafe(tree), *long_functions(tree)]
    if path.parts[0] == "engine":
        found += unannotated(tree)
    return [f"{path}:{text}" for text in found]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def upward_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    home = path.parts[0]
    for line, module in imported(tree):
        top = module.partition(".")[0]
        if RANK.get(top, -1) > RANK[home]:
            yield f"{line}: {home} imports {module}, which lies above it"
        if top == "tests":
            yield f"{line}: imports {module} from the tests"
        if top == "ray" and path.parts[:2] != ("cluster", "runtime"):
            yield f"{line}: imports {module} outside cluster/runtime/"
        if home == top == "cluster" and path.parts[1] in ROOMS:
            yield from misplaced(path.parts[1], line, module)


def misplaced(room: str, line: int, module: str) -> Iterator[str]:
    other = module.split(".")[1]
    if other != room and ROOMS[other] >= ROOMS[room]:
        yield f"{line}: cluster/{room} imports {module}, which does not lie below it"


def unsafe(tree: ast.AST) -> Iterator[str]:
    for line, module in imported(tree):
        if module.partition(".")[0] in UNSAFE_MODULES:
            yield f"{line}: imports {module}, which runs code when it reads"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if (called := ast.unparse(node.func)) in UNSAFE_CALLS:
            yield f"{node.lineno}: calls {called}"
        if any(word.arg == "shell" and not is_false(word.value) for word in node.keywords):
            yield f"{node.lineno}: calls {called} with a shell"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in functions(tree):
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES:
            yield f"{node.lineno}: {node.name} has {length} lines"


def unannotated(tree: ast.AST) -> Iterator[str]:
    for node in functions(tree):
        if node.name.startswith("_"):
            continue
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [arg.arg for arg in every if arg.annotation is None and arg.arg not in ("self", "cls")]
        if bare or node.returns is None:
            yield f"{node.lineno}: {node.name} lacks annotations ({', '.join(bare) or 'of its result'})"


def sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for layer in RANK for path in (ROOT / layer).rglob("*.py"))


def test_there_are_files_to_check():
    assert {path.parts[0] for path in sources()} >= {"engine", "actors", "cluster"}


@pytest.mark.parametrize("path", sources(), ids=str)
def test_the_file_keeps_the_rules(path):
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


PLANTED = {
    "engine imports a role": ("engine/x.py", "from actors.scorers.pairrm.model import PairRM"),
    "a role imports the cluster": ("actors/x.py", "import cluster.runtime.pool"),
    "the cluster imports a recipe": ("cluster/x.py", "import recipes.sppo"),
    "an import upward inside a function": ("engine/x.py", "def f() -> None:\n    from cluster import pool"),
    "an import upward for types only": (
        "engine/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import actors",
    ),
    "Ray in a role": ("actors/x.py", "import ray"),
    "Ray in a recipe": ("recipes/x.py", "from ray.util import placement_group"),
    "the tests imported": ("actors/x.py", "import tests.runs"),
    "pickle": ("cluster/x.py", "import pickle"),
    "torch.load": ("actors/x.py", "torch.load('x')"),
    "yaml.load": ("engine/x.py", "yaml.load('x', Loader=yaml.SafeLoader)"),
    "eval": ("actors/x.py", "eval('1')"),
    "a shell": ("cluster/x.py", "subprocess.run('ls', shell=True)"),
    "no annotation of an argument": ("engine/x.py", "def f(x) -> int: ..."),
    "no annotation of a result": ("engine/x.py", "class A:\n    def f(self, x: int): ..."),
    "a long function": ("recipes/x.py", "def f():\n" + "    1\n" * MAX_FUNCTION_LINES),
    "Ray in a command": ("cluster/commands/x.py", "import ray"),
    "the plan imports the runtime": ("cluster/plan/x.py", "from cluster.runtime import pool"),
    "products import commands": ("cluster/products/x.py", "from cluster.commands.train import main"),
    "a sweep imports an evaluation": ("cluster/sweep/x.py", "from cluster.evaluation.results import write_results"),
}

INNOCENT = {
    "imports down": (
        "recipes/x.py",
        "import cluster.runtime.pool\nimport actors.scorers.pairrm.model\nimport engine.loop.self_play",
    ),
    "Ray in the runtime": ("cluster/runtime/x.py", "import ray"),
    "the plan imports itself": ("cluster/plan/x.py", "from cluster.plan.machines import Need"),
    "a model set to evaluate": ("actors/x.py", "model.eval()"),
    "the safe loader": ("engine/x.py", "yaml.safe_load('x')"),
    "a process without a shell": ("cluster/x.py", "subprocess.run(['ls'], shell=False)"),
    "a name that only begins alike": ("actors/x.py", "import rays"),
    "a private helper without annotations": ("engine/x.py", "def _f(x): ..."),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name):
    path, source = PLANTED[name]
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_allowed_is_left_alone(name):
    path, source = INNOCENT[name]
    assert violations(Path(path), source) == []
