"""TensorBoard, Weights & Biases, MLflow and Trackio get the metrics of steps and iterations, beside metrics.jsonl.

Each is one class and one entry of SERVICES. The horizontal axis of all of them is the optimizer step, counted through
all iterations; a restarted run continues what it began. A tracker works in a thread of its own, and one that fails is
noted and left out from then on: training never waits for a server, and never stops because of one.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from engine.errors import ConfigError
from engine.metrics.json_lines import Record
from engine.metrics.trackers import FILE_NAME, Kind, Tracker, read_metrics

CLOSING_SECONDS = 60.0
"""How long a finished run waits for a tracker to send what is left."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker records about a run."""

    folder: Path
    name: str
    id: str
    """The same for every process of the run, and for no other run."""
    project: str = "kumite"
    config: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value, in full; a configuration holds no secrets."""


class Service(ABC):
    """A client of one tracker. `start` is called once, before the first `log`."""

    package: ClassVar[str]
    """What is imported; the extra of pyproject.toml has the name of the tracker."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @abstractmethod
    def start(self, step: int) -> None:
        """Begin or continue the run; `step` is that of the first metrics to come."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send finite metrics."""

    @abstractmethod
    def finish(self) -> None:
        """Send what is left."""


class TensorBoard(Service):
    """Event files in the run's folder, written by tensorboardX."""

    package = "tensorboardX"

    def start(self, step: int) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        suffix = f".{time.time_ns()}"  # file names count seconds: a fast restart would overwrite the last file
        # What the process before wrote from this step on is hidden.
        self._writer = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=step, filename_suffix=suffix)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class WandB(Service):
    """Weights & Biases. WANDB_MODE=offline keeps everything in the run's folder, for `wandb sync`."""

    package = "wandb"

    def start(self, step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=self.run.project,
            name=self.run.name,
            id=self.run.id,
            resume="allow",
            dir=str(self.run.folder),
            config=dict(self.run.config),
            settings=wandb.Settings(silent=True),
        )
        # An axis of our own: wandb's steps may not go back, and a restarted run repeats some.
        self._run.define_metric("optimizer_step")
        self._run.define_metric("*", step_metric="optimizer_step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "optimizer_step": step})

    def finish(self) -> None:
        self._run.finish()


class MLflow(Service):
    """MLflow at MLFLOW_TRACKING_URI; without it, a database in the run's folder."""

    package = "mlflow"

    def start(self, step: int) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        files = None if uri else f"{self.run.folder}/mlflow"
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{self.run.folder}/mlflow.db")
        experiment = self._client.get_experiment_by_name(self.run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.run.project, files)
        found = self._client.search_runs([number], f"tags.kumite_run = '{self.run.id}'")
        if found:
            self._id = found[0].info.run_id
            return
        tags = {"kumite_run": self.run.id}
        self._id = self._client.create_run(number, run_name=self.run.name, tags=tags).info.run_id
        for key, value in self.run.config.items():
            self._client.log_param(self._id, key, str(value))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in metrics.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class Trackio(Service):
    """Trackio, which keeps its database on this machine unless it is told otherwise (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

    package = "trackio"

    def start(self, step: int) -> None:
        import trackio

        self._run = trackio.init(
            project=self.run.project, name=self.run.id, config=dict(self.run.config), resume="allow", embed=False
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


SERVICES: dict[str, type[Service]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
"""By their names in tracking.report_to, which are those of transformers and TRL."""


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError, naming each tracker of `names` whose package is not installed."""
    missing = [name for name in names if find_spec(SERVICES[name].package) is None]
    if missing:
        raise ConfigError(
            [
                f"tracking.report_to: {name} needs the package {SERVICES[name].package}; install it (pip install "
                f"'kumite[{name}]') or leave {name} out: {FILE_NAME} holds the same numbers"
                for name in missing
            ]
        )


def open_services(names: Sequence[str], run: TrackedRun, note: Callable[[str], None]) -> list[Tracker]:
    """The trackers of a run. Raises ConfigError as `check_installed` does. `note` gets a sentence about a failure."""
    check_installed(names)
    past = read_metrics(run.folder / FILE_NAME)
    return [ServiceThread(name, SERVICES[name](run), StepCounter(past), note) for name in names]


class ServiceThread:
    """Hands the metrics of steps and iterations to a service, in order and in a thread of its own."""

    def __init__(self, name: str, service: Service, steps: StepCounter, note: Callable[[str], None]) -> None:
        self._name, self._service, self._steps, self._note = name, service, steps, note
        self._queue: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(
        self, kind: Kind, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        """Take a step's or an iteration's finite metrics; ignore other kinds."""
        if kind not in ("step", "iteration") or iteration is None:
            return
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._queue.put((finite, self._steps.total(iteration, step)))

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._note(f"warning: {self._name} did not finish within {CLOSING_SECONDS:g} s; {FILE_NAME} is complete")

    def _work(self) -> None:
        started = False
        try:
            while (item := self._queue.get()) is not None:
                metrics, step = item
                if not started:
                    self._service.start(step)
                    started = True
                self._service.log(metrics, step)
            if started:
                self._service.finish()
        except Exception as error:  # of any library, server or network
            self._note(
                f"warning: {self._name} failed and gets no more metrics ({type(error).__name__}: {error}); "
                f"{FILE_NAME} is complete"
            )


class StepCounter:
    """Counts optimizer steps through all iterations, for trackers whose horizontal axis is one number."""

    def __init__(self, past: list[Record]) -> None:
        self._last: dict[int, int] = {}
        for record in past:
            if record["kind"] == "step":
                self.total(record["iteration"], record["step"])

    def total(self, iteration: int, step: int | None) -> int:
        """Steps from the start of the run to `step` of `iteration`; None: to the iteration's last step so far."""
        last = self._last.get(iteration, 0)
        self._last[iteration] = max(last, step or 0)
        return sum(n for earlier, n in self._last.items() if earlier < iteration) + (last if step is None else step)
