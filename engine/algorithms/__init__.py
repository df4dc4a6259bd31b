"""Every algorithm, one file each. A new one is a file here and a line in this dict."""

from __future__ import annotations

from engine.algorithm import Algorithm
from engine.algorithms.spac import SPAC
from engine.algorithms.sppo import SPPO

ALGORITHMS: dict[str, type[Algorithm]] = {
    "spac": SPAC,
    "sppo": SPPO,
}

AlgorithmConfig = SPPO
"""The union over ALGORITHMS that a config's `algorithm:` section may hold, told apart by `name`."""
