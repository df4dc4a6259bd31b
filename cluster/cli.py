"""The `kumite` command: looking at run folders.

kumite status RUN   where a run stands
kumite verify RUN   check every hash again
kumite digest RUN   one hash over everything the run computed
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine.errors import KumiteError
from engine.store import inspection
from engine.store.lock import owner_of


def main(argv: list[str] | None = None) -> int:
    """Return 0, 1 if `verify` finds damage, or 2 if RUN is no run folder."""
    parser = argparse.ArgumentParser(prog="kumite", description="Look at run folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("status", "where a run stands"),
        ("verify", "check every hash again"),
        ("digest", "one hash over everything that the run computed, without times and paths"),
    ):
        commands.add_parser(name, help=text).add_argument("run", type=Path, metavar="RUN")
    arguments = parser.parse_args(argv)
    try:
        return {"status": _status, "verify": _verify, "digest": _digest}[arguments.command](arguments.run)
    except KumiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _status(run: Path) -> int:
    state = inspection.state(run)
    print(f"{run}: {'finished' if state['finished'] else 'not finished'}")
    for version, digest in sorted(state["weights"].items()):
        print(f"  weights {version}: {digest[:12]}")
    for name, stages in state["stages"].items():
        print(f"  {name}: " + ", ".join(f"{stage} {count} shards" for stage, count in stages.items()))
    for iteration, step in state["checkpoints"].items():
        print(f"  iteration {iteration}: the learner last saved at step {step}")
    owner = owner_of(run)
    print(f"  in use by {owner}" if owner else "  not in use")
    return 0


def _verify(run: Path) -> int:
    damages = inspection.damages(run)
    print(json.dumps({"run": str(run), "damages": damages}, indent=2))
    return 1 if damages else 0


def _digest(run: Path) -> int:
    print(inspection.run_digest(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
