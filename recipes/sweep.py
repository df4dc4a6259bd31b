#!/usr/bin/env python
"""Many runs that differ in a few keys: every combination of the values in a sweep file.

python recipes/sweep.py --config recipes/configs/demo.yaml recipes/sweeps/demo.yaml
python recipes/sweep.py --config recipes/configs/demo.yaml recipes/sweeps/demo.yaml iterations=1 --dry-run

docs/sweeps.md describes the file, and what the runs share.
"""

import sys

from cluster.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
