"""kumite best: the version of the policy to take, and what the gate decided about each."""

from __future__ import annotations

import argparse

from cluster.commands.command import Command, add_run
from engine.evaluation.gate import best_version, decisions
from engine.store.reader import RunReader


class Best(Command):
    name = "best"
    summary = "the version of the policy to take, and why"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        run = RunReader(arguments.run)
        version, reason = best_version(run)
        policy = run.policy(version)
        print(f"version {version}: {reason}")
        if policy is not None:
            print(f"  {policy.folder}\n  weights {policy.digest[:12]}")
        for decision in decisions(run):
            print(f"  {decision.in_words()}")
        return 0
