#!/usr/bin/env python
"""The demo: build the tearoom, then three iterations of SPPO on it with real vLLM, PairRM and DeepSpeed.

    make demo                                   (or: python -m recipes.demo)
    python -m recipes.demo seed=1 name=demo-1   any key of the config can be changed

docs/small_world.md says what the world is, and what its win rates show and do not show.
"""

import sys
from pathlib import Path

from cluster.commands.train import main

WORLD = Path("runs/demo-world")
CONFIG = "recipes/configs/demo.yaml"


def demo(overrides: list[str]) -> int:
    """Build the world unless it is there, then run or resume; return the exit code."""
    recipe = ({"algorithm": {"name": "sppo"}}, __doc__, ["--config", CONFIG, *overrides])
    if {"-h", "--help", "--help-all", "--dry-run"} & set(overrides):
        return main(*recipe)
    from recipes.experiments.tearoom.build import Settings, build

    print(f"building the tearoom in {WORLD} (about a minute, kept for later)", flush=True)
    figures = build(WORLD, Settings())
    print(
        f"policy: {figures['policy_parameters']:,} parameters, started on {figures['sft_examples']:,} flawed "
        f"demonstrations\nPairRM: {figures['pairrm_parameters']:,} parameters, agrees with the oracle on "
        f"{figures['pairrm_heldout_agreement']:.1%} of {figures['pairrm_heldout_pairs']} held-out pairs",
        flush=True,
    )
    return main(*recipe)


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
