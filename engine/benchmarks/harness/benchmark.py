"""Tasks of EleutherAI's lm-evaluation-harness (lm-eval 0.4.13), which runs unmodified around our generators.

The harness makes its requests; they are tokenized as its own HFLM does and committed as input. Generators answer them
shard by shard. Then the harness evaluates with those answers, so its own filters, metrics and standard errors give the
numbers, and a restart asks nothing again. Numbers equal those of HFLM on the same weights in float32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import shown
from engine.config.benchmarks import HarnessConfig
from engine.data.ingest import Renderer, shards
from engine.errors import ConfigError, DataError, KumiteError
from engine.loop.roles import Generator, Roles, Timed
from engine.loop.stages import Stage, require_weights
from engine.schema import REQUESTS, RESPONSES
from engine.store.reader import Policy

INPUT = "lm_eval_input"
ANSWERS = "lm_eval_responses"
ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")
"""Of a task's functions in memory, which the harness writes into its configs; it would differ in every process."""
BOOTSTRAPS = 1_000
"""Resamples behind a standard error without a formula, as of a perplexity; 100,000 in the harness, on all cores."""


@dataclass
class Responses(Stage[pa.Table]):
    """The policy's answers to the harness's requests."""

    name = ANSWERS
    of = "version"
    schema = RESPONSES
    role = "generator"
    policy: Policy
    reads = INPUT
    reads_schema = REQUESTS
    reads_iteration = 0

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return roles.generator.submit(Generator.respond, table)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        return require_weights(result, self.policy)

    def counts(self, table: pa.Table, result: pa.Table) -> dict[str, int]:
        return {"contexts_cut": pc.sum(pc.greater(table["num_cut"], 0)).as_py() or 0}

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"requests": len(pc.list_flatten(table["digests"]))}


class Harness(Benchmark):
    """Tasks of the harness."""

    name = "lm_eval"
    input_schema = REQUESTS

    def __init__(self, config: HarnessConfig, shard_size: int):
        """shard_size: contexts per shard. Raises ConfigError where the harness is not installed."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError(
                ["evaluation.benchmarks.lm_eval needs lm-evaluation-harness: pip install 'kumite[harness]'"]
            )
        self._config, self._shard_size = config, shard_size
        self._evaluated: dict[int, dict[str, Any]] = {}

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        from engine.benchmarks.harness.model import Collector
        from engine.benchmarks.harness.tasks import harness_process, load_tasks

        tokenizer = getattr(chat, "tokenizer", None)
        if tokenizer is None:
            raise DataError("lm_eval asks the policy itself; it does not read answers from files")
        config = self._config
        model = Collector(tokenizer, getattr(chat, "template", None), config.max_length)
        rows = []
        with harness_process():
            loaded = load_tasks(config)
            for name, task in loaded.tasks.items():
                _check_can_be_asked(name, task)
                rows += model.rows(self._requests(name, task, model))
        if not rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in loaded.missing.items())
            raise DataError(f"lm_eval: no task has data ({reasons}); name files in evaluation.benchmarks.lm_eval.data")
        return shards(pa.Table.from_pylist(rows, REQUESTS), self._shard_size)

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        return [Responses(policy)]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        from engine.benchmarks.harness.results import table

        return table(self._config, self._evaluate(tables), _cut_by_task(tables))

    def kept_files(self, tables: BenchmarkTables) -> dict[str, str]:
        """The harness's own files: results.json, and samples_<task>.jsonl where `log_samples` asks for them."""
        from lm_eval.utils import handle_non_serializable

        document = dict(self._evaluate(tables))
        samples = document.pop("samples", {})

        def text(value: Any, indent: int | None = None) -> str:
            shown = json.dumps(value, indent=indent, default=handle_non_serializable)
            return ADDRESS.sub("", shown)

        files = {f"samples_{task}.jsonl": "".join(text(row) + "\n" for row in rows) for task, rows in samples.items()}
        return {"results.json": text(document, 2), **files}

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        return tables.kept_files()

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        from lm_eval import __version__

        digest = hashlib.sha256()
        for table in tables.input():
            digest.update(json.dumps(table["digests"].to_pylist()).encode())
        data = self._config.data
        return {
            "lm_eval": __version__,
            "requests": digest.hexdigest()[:16],
            "seeds": "the harness's own: 0, and 1234 for few-shot examples",
            "max_length": str(self._config.max_length),
            "chat template": "applied" if self._config.apply_chat_template else "not applied",
            "data": json.dumps({task: _names(files) for task, files in data.items()}) if data else "from the hub",
        }

    def is_published(self, metric: str) -> bool:
        """A task's number counts if its data is the hub's and its definition the harness's."""
        task, config = metric.partition("/")[0], self._config
        changed = [t["task"] for t in config.tasks if isinstance(t, dict) and not set(t) <= {"task", "num_fewshot"}]
        own = any(task == name or task.startswith(f"{name}_") or name.startswith(f"{task}_") for name in config.data)
        return not own and task not in changed and config.limit is None and config.include_path is None

    def _requests(self, name: str, task: Any, model: Any) -> list[Any]:
        """The requests of one task, as `evaluate` of the harness has them made."""
        config = self._config
        try:
            task.build_all_requests(
                limit=config.limit,
                rank=0,
                world_size=1,
                system_instruction=config.system_instruction,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
                chat_template=model.apply_chat_template if config.apply_chat_template else None,
                tokenizer_name="",
            )
        except KumiteError:
            raise
        except Exception as error:  # a task is code of the harness, run on rows of a file
            raise DataError(
                f"lm_eval: the requests of {name} cannot be made: {type(error).__name__}: {error}"
            ) from error
        return task.instances

    def _evaluate(self, tables: BenchmarkTables) -> dict[str, Any]:
        """What `evaluate` of the harness returns for one version, with `missing` and `notes` of its tasks."""
        if tables.version not in self._evaluated:
            from lm_eval.evaluator import evaluate

            from engine.benchmarks.harness.model import Answered
            from engine.benchmarks.harness.tasks import harness_process, load_tasks

            config, responses = self._config, list(_rows(tables))
            with harness_process():
                loaded = load_tasks(config)
                loaded.keep({row["task"] for row in responses})
                try:
                    found = evaluate(
                        lm=Answered(responses),
                        task_dict={"tasks": loaded.tasks, "groups": loaded.groups},
                        limit=config.limit,
                        bootstrap_iters=BOOTSTRAPS,
                        log_samples=config.log_samples,
                        system_instruction=config.system_instruction,
                        apply_chat_template=config.apply_chat_template,
                        fewshot_as_multiturn=config.fewshot_as_multiturn,
                    )
                except KumiteError:
                    raise
                except Exception as error:  # metrics are code of the harness, run on rows of a file
                    raise DataError(f"lm_eval: the harness failed: {type(error).__name__}: {error}") from error
            kept = {"entries": loaded.members, "missing": loaded.missing, "notes": loaded.notes}
            self._evaluated = {tables.version: dict(found) | kept}
        return self._evaluated[tables.version]


def _check_can_be_asked(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise DataError(f"lm_eval: {name} runs code that the policy writes, which is not done here; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"lm_eval: {name} needs more than text; leave it out")


def _rows(tables: BenchmarkTables) -> Iterator[dict[str, Any]]:
    names = ["task", "document", "request", "digests", "until", "num_samples", "num_cut", "logps", "greedy", "texts"]
    for table in tables.of(ANSWERS, RESPONSES):
        yield from table.select(names).to_pylist()


def _cut_by_task(tables: BenchmarkTables) -> dict[str, int]:
    """{task: contexts that were cut}."""
    cut: dict[str, int] = {}
    for table in tables.input():
        for row in table.select(["task", "num_cut"]).to_pylist():
            cut[row["task"]] = cut.get(row["task"], 0) + (row["num_cut"] > 0)
    return cut


def _names(files: str | dict[str, str]) -> str | dict[str, str]:
    return shown(files) if isinstance(files, str) else {split: shown(file) for split, file in files.items()}
