#!/usr/bin/env python
"""Self-rewarding language models (arXiv 2401.10020): the policy judges its own answers and learns from them.

    python recipes/self_rewarding.py --config recipes/configs/smoke_self_rewarding.yaml
    python recipes/self_rewarding.py --config recipes/configs/self_rewarding_llama3_8b.yaml --dry-run

A start model that can judge is made by recipes/prepare/sft.py from instructions and judgements (IFT and EFT);
new prompts by recipes/prepare/self_instruct.py. docs/self_rewarding.md has the equations, the fixes that later
papers proposed, and what was measured.
"""

import sys

from cluster.commands.train import main


def config() -> dict:
    """What makes this recipe self-rewarding; everything else comes from the file and the command line."""
    return {"algorithm": {"name": "self_rewarding"}}


if __name__ == "__main__":
    sys.exit(main(config(), __doc__))
