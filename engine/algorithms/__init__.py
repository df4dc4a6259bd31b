"""The algorithms, one file each. A new one is a file here, and one entry in the dict and in the union below."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.algorithms.base import Algorithm
from engine.algorithms.dpo import DPO
from engine.algorithms.kto import KTO
from engine.algorithms.self_rewarding import SelfRewarding
from engine.algorithms.spac import SPAC
from engine.algorithms.spin import SPIN
from engine.algorithms.sppo import SPPO

ALGORITHMS: dict[str, type[Algorithm]] = {
    "sppo": SPPO,
    "dpo": DPO,
    "self_rewarding": SelfRewarding,
    "spac": SPAC,
    "spin": SPIN,
    "kto": KTO,
}

AlgorithmConfig = Annotated[SPPO | DPO | SelfRewarding | SPAC | SPIN | KTO, Field(discriminator="name")]
"""The types of a config's `algorithm:` section, selected by `name`."""
