"""Runs whose pages are looked at, made once for all of these tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.report.pages import judged_run, poisoned_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return judged_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with hostile texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return poisoned_run(tmp_path_factory.mktemp("poisoned"))
