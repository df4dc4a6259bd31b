"""One run from its folder to its report.

Owns the run folder and the monitor, prepares prompts and the start model, runs the loop, and writes the report whether
the run finishes or fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from actors.factories import Chat, Engines
from cluster.run.benchmark_files import write_files
from cluster.run.run_folder import begin, commit_inputs
from engine.benchmarks import benchmarks
from engine.benchmarks.measure import record_overlaps
from engine.config.run import RunConfig
from engine.data.formats import RequiredAnswers
from engine.data.holdout import held_out_pairs, overlap
from engine.data.ingest import ingest_iterations, shards
from engine.loop.self_play import SelfPlay, open_iterations, result_version
from engine.loop.validation import PAIRS
from engine.loop.weight_probe import ProbeBatch, probe_batch
from engine.metrics.monitor import Monitor
from engine.metrics.services import TrackedRun, open_services
from engine.metrics.timeline import read_timeline
from engine.metrics.trackers import Tracker
from engine.report.config_diff import all_settings
from engine.report.cost import in_words, spent
from engine.report.live import LiveReport
from engine.report.render import print_table, write_report
from engine.report.run_data import STOPPED, RunData
from engine.report.summary import Summary
from engine.schema import PROMPTS
from engine.store.disk import Disk
from engine.store.manifest import Record
from engine.store.run import RunStore

UPLOADED = "runtime_resources"
"""Part of the path to which Ray unpacks the working directory of a submitted job."""


class Job:
    """An open run folder, and everything around the loop. A context manager."""

    def __init__(self, config: RunConfig, console: Console, disk: Disk | None = None, engines: Engines | None = None):
        """`engines`: the classes of the roles; None: the real ones."""
        self._config, self._console, self._engines = config, console, engines or Engines()
        self.folder = Path(config.output).resolve() / config.name  # actors have other working directories
        self.store = RunStore(self.folder, disk, self.note)
        try:
            remarks = begin(self.store, config)
            self._monitor = Monitor(self.folder, console=console, trackers=self._trackers())
        except BaseException:
            self.store.close()
            raise
        for remark in remarks:
            self.note(remark)

    def play(self, prepare: Callable[[RunStore], None] = lambda store: None, prediction: Record | None = None) -> None:
        """Compute what is missing of the run; nothing if it is finished.

        prepare: called with the store when prompts and start policy are committed. prediction: of the time and money
        of the whole run; recorded if this is its beginning.
        """
        if prediction and not self.store.recorded("prompts"):
            self.store.record("prediction", **prediction)
        if self.store.recorded("finished") and not any(True for _ in open_iterations(self._config, self.store)):
            self.note(f"{self.folder} is finished already; there is nothing left to compute")
            return
        self.note(f"run folder {self.folder.resolve()}")
        if UPLOADED in self.folder.resolve().parts:
            self.note(
                "warning: this folder is in Ray's copy of the submitted files and is deleted with it; "
                "set output= to a full path"
            )
        model = self._engines.start_model(self._config, self.folder)
        chat = self._engines.chat(self._config.model.model_copy(update={"path": str(model)}))
        self.store.pin("tokenizer and chat template", chat.digest)
        self._ingest_prompts(chat)
        record_overlaps(benchmarks(self._config), self.store, self.store, self.note)
        probe = self._probe(chat)
        from cluster.runtime.launch import launched

        with launched(self._config, self._engines, probe, self.note, self.store.pin) as roles:
            policy = self.store.register_start(model, roles.open_learner)
            prepare(self.store)
            SelfPlay(self._config, roles, self.store, self._monitor, probe, chat).run(policy)
        self.store.record("finished")
        if words := in_words(spent(self.store, self._config, read_timeline(self.folder))):
            self.note(words)

    def report(self, status: str = "finished") -> tuple[Path, Summary]:
        """Write the report of the run so far and the benchmarks' files; return its page and its content."""
        if status.startswith(STOPPED):
            self._monitor.note(status)
        self._monitor.close()
        names = {version: f"{self._config.name}-{version}" for version in self.store.versions}
        write_files(self.folder / "report" / "benchmarks", benchmarks(self._config), self.store, names, together=True)
        data = RunData(self.store, self._config, status)
        return write_report(data), data.summary

    def show(self) -> None:
        """Print the table of a finished run, and the paths of report and weights."""
        page, summary = self.report()
        print_table(self._console, summary)
        last = self.store.policy(result_version(self._config, self.store))
        where = f"report   {page}\nweights  {last.folder if last else '-'}"
        if last and last.base:
            where += f"\n         an adapter of {last.base}; a whole model: kumite merge {self.folder} OUTPUT"
        self._console.print(where, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._monitor.close()
        self.store.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self, status: str) -> Summary:
        """Return the content of the report, computed from committed tables and metrics alone."""
        return RunData(self.store, self._config, status).summary

    def note(self, text: str) -> None:
        """Print a line, and write it to metrics.jsonl once that is open."""
        monitor = getattr(self, "_monitor", None)
        if monitor is not None:
            monitor.note(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _trackers(self) -> list[Tracker]:
        """What gets the metrics beside metrics.jsonl. Raises ConfigError for a package that is not installed."""
        config, provenance = self._config, (self.folder / "run.json").read_bytes()
        settings = {setting.key: setting.value for setting in all_settings(config)}
        run_id = f"{config.name}-{hashlib.sha256(provenance).hexdigest()[:8]}"
        run = TrackedRun(self.folder, config.name, run_id, config.tracking.project, settings)
        live = [LiveReport(self.store, config, self.note)] if config.tracking.live_report else []
        return [*open_services(config.tracking.report_to, run, self.note), *live]

    def _ingest_prompts(self, chat: Chat) -> None:
        """Read, render and commit all prompts once. The sources are read again only to repair a damaged shard."""
        record = self.store.recorded("prompts")
        if record and all(self.store.has(*shard) for shard in record["shards"]):
            return
        config, longest = self._config, self._config.sampling.max_prompt_tokens
        algorithm = config.algorithm
        required = RequiredAnswers(
            algorithm.num_dataset_completions, config.sampling.max_new_tokens, f"algorithm.name = {algorithm.name}"
        )
        tables, results = ingest_iterations(config.prompts, chat, longest, config.iterations, config.seed, required)
        stages, notes = [], list[str]()
        if config.preferences:
            held = held_out_pairs(config, config.preferences, chat, tables)
            tables, results, notes = held.training, results + held.results, held.notes
            stages.append((0, PAIRS, held.pairs))
        stages += [(t, "prompts", table) for t, table in enumerate(tables)]
        if config.evaluation and config.evaluation.prompts:
            (heldout,), heldout_results = ingest_iterations(
                config.evaluation.prompts, chat, longest, 1, config.seed, section="evaluation.prompts"
            )
            stages.append((0, "heldout_prompts", heldout))
            results += heldout_results
            notes += overlap(tables, heldout, "held-out prompts")
        size = config.shard_size
        inputs = [(t, stage, list(shards(table, size)), PROMPTS) for t, stage, table in stages]
        inputs += [(0, b.input_stage, b.inputs(chat), b.input_schema) for b in benchmarks(config)]
        for result in results:
            self.note("prompts: " + ", ".join(f"{name} {count:,}" for name, count in result.counts.items() if count))
        for note in notes:
            self.note(note)
        begun = record is not None
        names = [shard for part in inputs for shard in commit_inputs(self.store, *part, begun)]
        if not record:
            self.store.record("prompts", shards=names)

    def _probe(self, chat: Chat) -> ProbeBatch:
        sampling = self._config.sampling
        prompts = self.store.read(0, "prompts", 0, PROMPTS)
        length = sampling.max_prompt_tokens + sampling.max_new_tokens
        tokens = min(16, sampling.max_new_tokens)
        return probe_batch(prompts, chat.vocabulary, self._config.seed, max_length=length, num_tokens=tokens)
