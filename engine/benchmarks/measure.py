"""Measures one version of the policy on benchmarks, from committed input to committed results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from engine.benchmarks.base import Benchmark, BenchmarkTables, results_table
from engine.benchmarks.contamination import fact_name, find_overlap
from engine.data.ingest import Renderer
from engine.errors import KumiteError, StoreError
from engine.loop.flow import Flow
from engine.schema import BENCHMARK_FILES, BENCHMARK_RESULTS, PROMPTS
from engine.store.reader import Policy, RunReader
from engine.store.run import RunStore


def measure(
    benchmarks: Sequence[Benchmark],
    policy: Policy,
    chat: Renderer,
    store: RunStore,
    flow: Flow,
    note: Callable[[str], None],
) -> list[str]:
    """Run every benchmark on `policy`, whose chat template is `chat`; what is committed is not computed again.

    A benchmark that fails is noted and recorded, and the next one runs: the policy is committed, and its training must
    not depend on its evaluation. Returns the names of those that failed. Raises StoreError.
    """
    failed = []
    for benchmark in benchmarks:
        try:
            _measure(benchmark, policy, chat, store, flow)
        except StoreError:
            raise
        except KumiteError as error:
            store.record(f"{benchmark.name} failed for version {policy.version}", reason=str(error))
            note(f"warning: {benchmark.name} of version {policy.version} failed: {error}")
            failed.append(benchmark.name)
    return failed


def record_overlaps(
    benchmarks: Sequence[Benchmark], store: RunStore, run: RunReader, note: Callable[[str], None]
) -> None:
    """Record in `store`, once, which of the benchmarks' committed prompts are training prompts of `run`."""
    for benchmark in benchmarks:
        fact = fact_name(benchmark.name)
        if store.recorded(fact) or not {"prompt_id", "messages"} <= set(benchmark.input_schema.names):
            continue
        training = (table for t in run.owners("prompts") for table in run.tables(t, "prompts", PROMPTS))
        overlap = find_overlap(training, BenchmarkTables(store, benchmark, 0).input())
        store.record(fact, **overlap.record)
        if overlap.exact or overlap.similar:
            note(f"warning: {benchmark.name}: {overlap}")


def _measure(benchmark: Benchmark, policy: Policy, chat: Renderer, store: RunStore, flow: Flow) -> None:
    version, stage = policy.version, f"{benchmark.name}_results"
    if store.has(version, stage, 0) or (not benchmark.depends_on_policy and store.owners(stage)):
        return
    flow.run(version, benchmark.stages(policy, chat), (0, benchmark.input_stage))
    tables = BenchmarkTables(store, benchmark, version)
    results = benchmark.results(tables)
    if kept := benchmark.kept_files(tables):
        files = pa.table([list(kept), list(kept.values())], schema=BENCHMARK_FILES)
        store.commit(version, f"{benchmark.name}_files", 0, files, BENCHMARK_FILES, of="version")
    store.commit(version, stage, 0, results_table(benchmark, results), BENCHMARK_RESULTS, of="version")
