"""Plays the runs of a sweep, each in a process of its own, as many at a time as the cluster has room for."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster.commands.train import reported, run
from cluster.plan.machines import num_fitting
from cluster.plan.plan import needs
from cluster.sweep.adopt import adopt
from cluster.sweep.grid import Sweep, SweepRun
from engine.config.load import dump, load
from engine.store.disk import write_atomically
from engine.store.run import RunStore

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent ends."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended."""

    run: SweepRun
    exit_code: int
    log: Path
    """Everything that it printed."""


class Runner:
    """The processes of a sweep."""

    def __init__(self, sweep: Sweep, console: Console):
        self._sweep, self._console = sweep, console
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock, self._stopped = threading.Lock(), False

    def play(self) -> list[Outcome]:
        """Run or resume every run. A run that fails does not stop the others."""
        runs = self._sweep.runs
        for each in runs:
            write_atomically(self._file(each, ".yaml"), dump(each.config))
        from cluster.runtime.session import shared_session

        with shared_session(runs[0].config.cluster) as (environment, resources):
            parallel = min(num_fitting(needs(each.config), _colocated(each), resources) for each in runs)
            self._note(f"{len(runs)} runs in {self._sweep.folder}, {parallel} at a time")
            with ThreadPoolExecutor(parallel) as pool:
                try:
                    return list(pool.map(lambda each: self._play(each, environment), runs))
                except BaseException:
                    self._stop()
                    raise

    def _play(self, each: SweepRun, environment: Mapping[str, str]) -> Outcome:
        log = self._file(each, ".log")
        siblings = [str(self._sweep.folder / other.name) for other in self._sweep.runs if other is not each]
        command = [sys.executable, "-m", "cluster.sweep.runner", str(self._file(each, ".yaml")), *siblings]
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    return Outcome(each, 130, log)
                self._note(f"{each.name}: starts; what it prints is in {log}")
                process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
                self._processes[each.name] = process
            code = process.wait()
        self._note(f"{each.name}: finished" if code == 0 else f"{each.name}: failed with exit code {code}, see {log}")
        return Outcome(each, code, log)

    def _stop(self) -> None:
        """Let the running runs write their reports and end."""
        with self._lock:
            self._stopped = True
            for process in self._processes.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

    def _file(self, each: SweepRun, suffix: str) -> Path:
        return self._sweep.folder / "sweep" / f"{each.name}{suffix}"

    def _note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _colocated(each: SweepRun) -> bool:
    return each.config.cluster.placement == "colocated"


def main(arguments: list[str]) -> int:
    """Play one run of a sweep in this process: its config file, then the folders of its siblings."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a sweep that is killed leaves no run behind
    console = Console(width=160)
    file, *siblings = map(Path, arguments)

    def prepare(store: RunStore) -> None:
        for stage, count in adopt(store, config, siblings).items():
            console.print(f"adopted from another run of the sweep: {stage}, {count} shards", markup=False)

    config = load(file)
    return reported(console, lambda: run(config, console, prepare=prepare))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
