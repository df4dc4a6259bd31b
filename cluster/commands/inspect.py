"""kumite status, verify, digest: look at a run folder without changing it."""

from __future__ import annotations

import argparse
import json

from cluster.commands.command import Command, add_run
from engine.store import inspection
from engine.store.disk import owner_of


class Status(Command):
    name = "status"
    summary = "where a run stands"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        run = arguments.run
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


class Verify(Command):
    name = "verify"
    summary = "check every hash again"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Return 1 if there is damage."""
        damages = inspection.damages(arguments.run)
        print(json.dumps({"run": str(arguments.run), "damages": damages}, indent=2))
        return 1 if damages else 0


class Digest(Command):
    name = "digest"
    summary = "one hash over everything that the run computed, without times and paths"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        print(inspection.run_digest(arguments.run))
        return 0
