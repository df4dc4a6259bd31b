#!/usr/bin/env python
"""SPIN, self-play fine-tuning (arXiv 2401.01335): demonstrations against the policy's own answers.

    python recipes/spin.py --config recipes/configs/smoke_spin.yaml

docs/spin.md has the equation, the choices and the differences from the released code.
"""

import sys

from cluster.commands.train import main


def config() -> dict:
    """What makes this recipe SPIN; everything else comes from the file and the command line."""
    return {"algorithm": {"name": "spin"}, "sampling": {"num_samples": 1}}


if __name__ == "__main__":
    sys.exit(main(config(), __doc__))
