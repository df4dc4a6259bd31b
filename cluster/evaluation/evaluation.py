"""One evaluation: benchmarks on the policies of one source, in a folder of its own, to committed results."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from rich.console import Console

from actors.factories import Engines
from cluster.evaluation.candidates import NO_MODEL, Candidate, Source
from cluster.run.run_folder import begin, commit_inputs
from engine.benchmarks import benchmarks
from engine.benchmarks.base import Benchmark, BenchmarkTables
from engine.benchmarks.measure import measure, record_overlaps
from engine.config.evaluate import EvaluateConfig
from engine.data.chats import Message
from engine.data.ingest import Renderer
from engine.loop.flow import Flow
from engine.loop.weight_probe import ProbeBatch
from engine.metrics.monitor import Monitor
from engine.store.reader import RunReader
from engine.store.run import RunStore


class PlainText:
    """Renders prompts where only answers in files are judged, so that no policy reads them."""

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        return "\n".join(message["content"] for message in messages), []

    def answer_ids(self, messages: list[Message], answer: str) -> list[int]:
        return []


class Evaluation:
    """The open folder of an evaluation. A context manager; the same folder is continued."""

    def __init__(self, source: Source, config: EvaluateConfig, console: Console, engines: Engines | None = None):
        """engines: the classes of the roles; None: the real ones. Raises StoreError for a folder that was begun with
        another config or other policies."""
        self.source, self._config, self._engines = source, config, engines or Engines()
        self.benchmarks = benchmarks(config)
        self.folder = Path(config.output).resolve() / config.name / source.name
        self.store = RunStore(self.folder, note=lambda text: console.print(text, markup=False, highlight=False))
        try:
            remarks = begin(self.store, config)
            for candidate in source.candidates:
                self.store.pin(f"policy {candidate.policy.version}", candidate.policy.digest)
            self._monitor = Monitor(self.folder, console=console)
        except BaseException:
            self.store.close()
            raise
        for remark in remarks:
            self._monitor.note(remark)

    def run(self) -> list[str]:
        """Compute what is missing. Returns one sentence for each benchmark that failed."""
        self._commit_inputs()
        if self.source.run:
            record_overlaps(self.benchmarks, self.store, RunReader(self.source.run), self._monitor.note)
        for candidate in self.source.candidates:
            if candidate.answers:
                self._commit_answers(candidate, candidate.answers)
        versions = [candidate.policy.version for candidate in self.source.candidates]
        if all(self.store.has(version, f"{b.name}_results", 0) for version in versions for b in self.benchmarks):
            return []
        from cluster.runtime.launch import launched

        failed = []
        note = self._monitor.note
        with launched(self._config, self._engines, ProbeBatch([], []), note, self.store.pin) as roles:
            flow = Flow(self.store, roles, self._monitor)
            for candidate in self.source.candidates:
                names = measure(self.benchmarks, candidate.policy, self._chat, self.store, flow, note)
                failed += [f"{name} of {candidate.name}" for name in names]
        return failed

    def tables(self, benchmark: Benchmark, candidate: Candidate) -> BenchmarkTables:
        return BenchmarkTables(self.store, benchmark, candidate.policy.version)

    def close(self) -> None:
        self._monitor.close()
        self.store.close()

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit_inputs(self) -> None:
        record = self.store.recorded("inputs")
        if record and all(self.store.has(*shard) for shard in record["shards"]):
            return
        parts = [(0, b.input_stage, b.inputs(self._chat), b.input_schema) for b in self.benchmarks]
        names = [shard for part in parts for shard in commit_inputs(self.store, *part, record is not None)]
        if not record:
            self.store.record("inputs", shards=names)

    def _commit_answers(self, candidate: Candidate, path: Path) -> None:
        """Commit the answers of a file where the stages would ask a policy."""
        version = candidate.policy.version
        for benchmark in self.benchmarks:
            inputs = list(self.tables(benchmark, candidate).input())
            for stage, tables in benchmark.answers(path, inputs, candidate.policy).items():
                for shard, table in enumerate(tables):
                    if not self.store.has(version, stage, shard):
                        self.store.commit(version, stage, shard, table, table.schema, of="version")

    @cached_property
    def _chat(self) -> Renderer:
        if self.source.config == NO_MODEL:
            return PlainText()
        chat = self._engines.chat(self._config.model)
        self.store.pin("tokenizer and chat template", chat.digest)
        return chat
