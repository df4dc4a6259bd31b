"""Plays the runs of a sweep, each in a process of its own, as many at a time as the cluster has room for.

A run waits while another one computes what it could adopt, so that this is computed once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from rich.console import Console

from cluster.plan.cost import Prediction
from cluster.plan.machines import num_fitting
from cluster.plan.plan import needs
from cluster.run.play import reported, run
from cluster.sweep.adopt import adopt, is_computing
from cluster.sweep.grid import Sweep, SweepRun
from engine.config.load import dump, load
from engine.store.disk import write_atomically
from engine.store.run import RunStore

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent ends."""
COMMAND = (sys.executable, "-m", "cluster.sweep.runner")
"""Plays one run: its config file, then the folders of its siblings, are the arguments."""
CHECK_EVERY = 5.0
"""Seconds between two looks at whether a waiting run may start."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended."""

    run: SweepRun
    exit_code: int
    log: Path
    """Everything that it printed."""


@dataclass
class _Runs:
    """The runs of a sweep by what they do, by name."""

    waiting: dict[str, SweepRun]
    working: dict[str, tuple[SweepRun, subprocess.Popen[bytes]]] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)


class Runner:
    """The processes of a sweep."""

    def __init__(self, sweep: Sweep, console: Console, predictions: Mapping[str, Prediction] | None = None):
        """predictions: by the name of the run."""
        self._sweep, self._console, self._predictions = sweep, console, predictions or {}
        self._runs = _Runs({each.name: each for each in sweep.runs})
        self._exits: SimpleQueue[tuple[str, int]] = SimpleQueue()

    def play(self) -> list[Outcome]:
        """Run or resume every run. A run that fails does not stop the others."""
        for each in self._sweep.runs:
            write_atomically(self._file(each, ".yaml"), dump(each.config))
            if prediction := self._predictions.get(each.name):
                write_atomically(self._file(each, ".prediction.json"), json.dumps(prediction.record()))
        from cluster.runtime.session import shared_session

        first = self._sweep.runs[0].config.cluster
        with shared_session(first) as (environment, resources):
            parallel = num_parallel(self._sweep, resources)
            self._note(f"{len(self._sweep.runs)} runs in {self._sweep.folder}, up to {parallel} at a time")
            try:
                self._play(parallel, environment)
            except BaseException:
                self._stop()
                raise
        return [self._runs.ended[each.name] for each in self._sweep.runs]

    def _play(self, parallel: int, environment: Mapping[str, str]) -> None:
        runs = self._runs
        while runs.waiting or runs.working:
            for name, each in list(runs.waiting.items()):
                if len(runs.working) < parallel and not self._must_wait(each):
                    runs.working[name] = (each, self._start(each, environment))
                    del runs.waiting[name]
            try:
                name, code = self._exits.get(timeout=CHECK_EVERY)
            except Empty:
                continue
            each, _ = runs.working.pop(name)
            log = self._file(each, ".log")
            self._note(f"{name}: finished" if code == 0 else f"{name}: failed with exit code {code}, see {log}")
            runs.ended[name] = Outcome(each, code, log)

    def _must_wait(self, each: SweepRun) -> bool:
        """Whether a run at work computes what this one could adopt later."""
        working = (other for other, _ in self._runs.working.values())
        return any(is_computing(each.config, other.config, self._sweep.folder / other.name) for other in working)

    def _start(self, each: SweepRun, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start the process of a run, by the thread that stays until the sweep ends: the run ends with it."""
        log = self._file(each, ".log")
        self._note(f"{each.name}: starts; what it prints is in {log}")
        siblings = [str(self._sweep.folder / other.name) for other in self._sweep.runs if other is not each]
        command = [*COMMAND, str(os.getpid()), str(self._file(each, ".yaml")), *siblings]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True
            )
        Thread(target=lambda: self._exits.put((each.name, process.wait())), daemon=True).start()
        return process

    def _stop(self) -> None:
        """Let the runs at work write their reports and end."""
        processes = [process for _, process in self._runs.working.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    def _file(self, each: SweepRun, suffix: str) -> Path:
        return self._sweep.folder / "sweep" / f"{each.name}{suffix}"

    def _note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def num_parallel(sweep: Sweep, resources: Mapping[str, float]) -> int:
    """How many runs the resources have room for at the same time, whichever they are; at least 1."""
    configs = [each.config for each in sweep.runs]
    return min(num_fitting(needs(c), c.cluster.placement == "colocated", resources) for c in configs)


def main(arguments: list[str]) -> int:
    """Play one run of a sweep in this process: the sweep's process, the config file, the folders of the siblings."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a sweep that is killed leaves no run behind
    if os.getppid() != int(arguments[0]):
        return 1  # it was killed before that
    console = Console(width=160)
    file, *siblings = map(Path, arguments[1:])
    config, predicted = load(file), file.with_suffix(".prediction.json")

    def prepare(store: RunStore) -> None:
        for stage, count in adopt(store, config, siblings).items():
            console.print(f"adopted from another run of the sweep: {stage}, {count} shards", markup=False)

    prediction = json.loads(predicted.read_text(encoding="utf-8")) if predicted.exists() else None
    return reported(console, lambda: run(config, console, prepare=prepare, prediction=prediction))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
