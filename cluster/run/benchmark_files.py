"""The files of benchmarks in the field's own formats, in the report of a run and in the folder of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.benchmarks.base import Benchmark, BenchmarkTables
from engine.store.disk import Disk
from engine.store.reader import RunReader


def write_files(
    folder: Path, benchmarks: Sequence[Benchmark], run: RunReader, names: Mapping[int, str], together: bool = False
) -> None:
    """Write the files of each benchmark that has results as folder/<benchmark>/<policy>/<file>.

    names: of the policy in files, by version. together: also those that show all versions.
    """
    disk = Disk()
    measured = [
        (benchmark, name, BenchmarkTables(run, benchmark, version))
        for version, name in names.items()
        for benchmark in benchmarks
        if run.shards(version, f"{benchmark.name}_results")
    ]
    for benchmark, name, tables in measured:
        for file, text in benchmark.files(tables, name).items():
            disk.write(folder / benchmark.name / name / file, text.encode("utf-8", "replace"))
    if together:
        write_together(folder, measured)


def write_together(folder: Path, measured: Sequence[tuple[Benchmark, str, BenchmarkTables]]) -> None:
    """Write the files that show several policies. measured: benchmark, name of the policy, what is committed."""
    for benchmark in {benchmark.name: benchmark for benchmark, _, _ in measured}.values():
        tables = {policy: of_policy for other, policy, of_policy in measured if other.name == benchmark.name}
        for name, text in benchmark.together(tables).items():
            Disk().write(folder / benchmark.name / name, text.encode("utf-8", "replace"))
