#!/usr/bin/env python
"""SPAC, self-play with an adversarial critic (arXiv 2406.04274), on an offline preference set.

    python recipes/spac.py --config recipes/configs/smoke_spac.yaml

The losses are derived from the paper's abstract and from notes of others, not copied from its text:
docs/spac.md has the derivation, the choices and what was measured.
"""

import sys

from cluster.commands.train import main


def config() -> dict:
    """What makes this recipe SPAC; everything else comes from the file and the command line."""
    return {"algorithm": {"name": "spac"}}


if __name__ == "__main__":
    sys.exit(main(config(), __doc__))
