#!/usr/bin/env python
"""SPPO, self-play preference optimization (arXiv 2405.00675), on any model, prompts and scorer.

python recipes/sppo.py --config recipes/configs/smoke_sppo.yaml
python recipes/sppo.py --config recipes/configs/sppo_llama3_8b.yaml --dry-run
ray job submit --working-dir . -- python recipes/sppo.py --config recipes/configs/sppo_llama3_8b.yaml
"""

import sys

from cluster.commands.train import main


def config() -> dict:
    """What makes this recipe SPPO; everything else comes from the file and the command line."""
    return {"algorithm": {"name": "sppo"}}


if __name__ == "__main__":
    sys.exit(main(config(), __doc__))
