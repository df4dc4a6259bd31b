"""The configuration of published benchmarks, `evaluation.benchmarks`: one section per benchmark."""

from __future__ import annotations

from engine.config.base import Section


class BenchmarksConfig(Section):
    """Published benchmarks on which every policy is measured."""
