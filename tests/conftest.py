"""Shared by all tests: one thread per process, no network for models, and the folder of public data."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch: tests share few cores, and a sum's order follows the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# The same examples on every machine, and no result that depends on the load.
settings.register_profile("kumite", deadline=None, derandomize=True, database=None)
settings.load_profile("kumite")

ROOT = Path(__file__).parent.parent


# What torch, transformers and pytest made until now stays until the end; a garbage collector that visits it again and
# again takes a sixth of the time of the fast tests.
def pytest_configure() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of public instructions, answers and leaderboards; tests that need it skip where there is none."""
    folder = os.environ.get("KUMITE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KUMITE_TEST_DATA does not name the folder of public test data")
    return Path(folder)


@pytest.fixture(scope="module")
def memory_is_durable_enough() -> Iterator[None]:
    """Skips waiting for the disk, in tests that do not depend on a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
