#!/usr/bin/env python
"""Direct preference optimization (arXiv 2305.18290) with any loss of the family, offline or iterative.

Offline, on a preference set in any of the field's formats, with full weights or LoRA:

    python recipes/dpo.py --config recipes/configs/smoke_dpo.yaml
    python recipes/dpo.py --config my.yaml algorithm.losses='{ipo: 1}' algorithm.beta=0.05

Iterative: the policy answers, any scorer compares, and the best answer is trained against the worst:

    python recipes/dpo.py --config recipes/configs/smoke_online_dpo.yaml

docs/dpo.md has the losses, their equations and what was measured.
"""

import sys

from cluster.commands.train import main


def config() -> dict:
    """What makes this recipe DPO; everything else comes from the file and the command line."""
    return {"algorithm": {"name": "dpo"}}


if __name__ == "__main__":
    sys.exit(main(config(), __doc__))
