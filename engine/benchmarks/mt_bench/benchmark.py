"""MT-Bench (arXiv 2306.05685): two-turn questions in eight categories, judged by an LLM with FastChat's prompts.

A score is comparable with published ones if questions, reference answers and judge prompts are FastChat's and the judge
is theirs, gpt-4. `provenance` says what was used.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.benchmarks.base import Benchmark, BenchmarkTables, Result
from engine.benchmarks.files import file_name, jsonl
from engine.benchmarks.mt_bench import fastchat
from engine.benchmarks.mt_bench.fastchat import BenchQuestion
from engine.benchmarks.mt_bench.results import SCALE, answer_results, categories, pair_results, single_results
from engine.benchmarks.mt_bench.stages import ANSWERS, FIRST_TURN, JUDGMENTS, FirstTurn, Judgments, SecondTurn
from engine.config.benchmarks import MTBenchConfig
from engine.config.run import RoleName
from engine.data.ingest import Renderer, content_id
from engine.errors import DataError, ModelError
from engine.loop.stages import Stage
from engine.schema import MT_BENCH_ANSWERS, MT_BENCH_JUDGMENTS, MT_BENCH_QUESTIONS, NO_DATASET_COMPLETIONS
from engine.store.reader import Policy

KEY = "evaluation.benchmarks.mt_bench"


class MTBench(Benchmark):
    """MT-Bench of one version of the policy."""

    name = "mt_bench"
    input_schema = MT_BENCH_QUESTIONS

    def __init__(self, config: MTBenchConfig, role: RoleName, seed: int):
        """role: that of the judge. seed: of the run."""
        self._config, self._role, self._seed = config, role, seed
        self._pairwise = config.mode == "pairwise"

    def inputs(self, chat: Renderer) -> list[pa.Table]:
        """One table per category, in the order of the questions' file."""
        config = self._config
        categories: dict[str, list[BenchQuestion]] = defaultdict(list)
        for question in fastchat.read_questions(config.questions):
            categories[question.category].append(question)
        references = fastchat.read_answers(config.references) if config.references else {}
        baseline = fastchat.read_answers(config.baseline) if config.baseline else {}
        tables, problems = [], []
        for questions in categories.values():
            rows = []
            for question in questions[: config.questions_per_category]:
                row, wrong = self._row(question, chat, references, baseline)
                rows.append(row)
                problems += wrong
            tables.append(rows)
        if problems:
            raise DataError(f"{KEY}: {len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))
        return [pa.Table.from_pylist(rows, MT_BENCH_QUESTIONS) for rows in tables]

    def stages(self, policy: Policy, chat: Renderer) -> list[Stage[Any]]:
        prompts = fastchat.read_judge_prompts(self._config.judge_prompts)
        return [
            FirstTurn(policy, self._config),
            SecondTurn(policy, self._config, chat),
            Judgments(self._role, self._config, prompts, self._seed),
        ]

    def results(self, tables: BenchmarkTables) -> list[Result]:
        judgments = _rows(tables.of(JUDGMENTS, MT_BENCH_JUDGMENTS))
        verdicts = pair_results(judgments) if self._pairwise else single_results(judgments)
        return [*verdicts, *answer_results(_rows(tables.of(ANSWERS, MT_BENCH_ANSWERS)))]

    def files(self, tables: BenchmarkTables, generator: str) -> dict[str, str]:
        """model_answer/ and model_judgment/ of FastChat's folder data/mt_bench."""
        answers, judgments = (
            _rows(tables.of(ANSWERS, MT_BENCH_ANSWERS)),
            _rows(tables.of(JUDGMENTS, MT_BENCH_JUDGMENTS)),
        )
        if self._pairwise:
            lines = fastchat.pair_lines(judgments, generator, Path(self._config.baseline or "").stem)
        else:
            lines = fastchat.single_lines(judgments, generator)
        judge = file_name(judgments[0]["judge"]) if judgments else "judge"
        kind = "pair" if self._pairwise else "single"
        return {
            f"model_answer/{file_name(generator)}.jsonl": jsonl(fastchat.answer_lines(answers, generator)),
            f"model_judgment/{judge}_{kind}.jsonl": jsonl(lines),
        }

    def plots(self, results: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """A radar of the policies, and of the models in `published`, by category."""
        from engine.report.radar import radar_file  # not above: reports read benchmarks

        models = {name: categories(values) for name, values in (*results.items(), *self._published())}
        image = radar_file("MT-Bench by category", models, *((0.0, 1.0) if self._pairwise else SCALE))
        return {"radar.svg": image} if image else {}

    def _published(self) -> Iterator[tuple[str, dict[str, float]]]:
        """(model, its numbers by metric) of the judgments that exist already."""
        if self._config.published is None:
            return
        category = {question.id: question.category for question in fastchat.read_questions(self._config.questions)}
        for model, ratings in fastchat.read_ratings(self._config.published, category).items():
            yield model, {result.metric: result.value for result in single_results(ratings)}

    def answers(self, path: Path, inputs: Sequence[pa.Table], policy: Policy) -> dict[str, list[pa.Table]]:
        """Both turns, from a file in the form of FastChat's model_answer/<model>.jsonl."""
        answers = fastchat.read_answers(str(path))
        shards = [table.to_pylist() for table in inputs]
        asked = [row for rows in shards for row in rows]
        missing = [r["question_id"] for r in asked if len(answers.get(r["question_id"], ())) < len(r["turns"])]
        if missing:
            raise DataError(f"{path}: lacks answers to {len(missing)} of {len(asked)} questions: {missing[:20]}")
        both = [[_answered(r, answers[r["question_id"]][: len(r["turns"])], policy) for r in rows] for rows in shards]
        first = [[_answered(r, answers[r["question_id"]][:1], policy) for r in rows] for rows in shards]
        return {
            stage: [pa.Table.from_pylist(rows, MT_BENCH_ANSWERS) for rows in tables]
            for stage, tables in ((FIRST_TURN, first), (ANSWERS, both))
        }

    def provenance(self, tables: BenchmarkTables) -> dict[str, str]:
        config = self._config
        judgments = _rows(tables.of(JUDGMENTS, MT_BENCH_JUDGMENTS))
        questions = [(row["question_id"], row["turns"], row["references"]) for row in _rows(tables.input())]
        prompts = fastchat.read_judge_prompts(config.judge_prompts)
        return {
            "questions": f"{len(questions)} of {Path(config.questions).name}, {_digest(questions)}",
            "judge": ", ".join(sorted({row["judge"] for row in judgments})),
            "judging": f"{config.mode}, temperature 0, at most {config.judge_max_new_tokens} tokens",
            "judge prompts": _digest([(p.name, p.system, p.template) for p in prompts.values()]),
            "sampling": f"FastChat's temperature of each category, top_p 1, at most {config.max_new_tokens} tokens",
            "seeds": f"derived from {self._seed}, the same for every version",
        }

    def _row(
        self,
        question: BenchQuestion,
        chat: Renderer,
        references: dict[int, tuple[str, ...]],
        baseline: dict[int, tuple[str, ...]],
    ) -> tuple[dict[str, Any], list[str]]:
        """A row of engine.schema.MT_BENCH_QUESTIONS, and what is wrong with it."""
        messages, problems = [{"role": "user", "content": question.turns[0]}], []
        try:
            text, token_ids = chat.render(messages)
        except ModelError as error:
            text, token_ids = "", []
            problems.append(f"{error}")
        limit = self._config.max_prompt_tokens
        if len(token_ids) > limit:
            problems.append(f"{len(token_ids)} tokens; {KEY}.max_prompt_tokens is {limit}")
        needed = {"references": references if question.category in fastchat.REFERENCE_CATEGORIES else None}
        needed["baseline"] = baseline if self._pairwise else None
        found = {}
        for key, answers in needed.items():
            found[key] = () if answers is None else answers.get(question.id, ())
            if answers is not None and len(found[key]) < len(question.turns):
                problems.append(f"{len(found[key])} of {len(question.turns)} turns in {KEY}.{key}")
        row = {
            "prompt_id": f"{content_id(messages)}-{question.id}",
            "messages": messages,
            "prompt_text": text,
            "prompt_token_ids": token_ids,
            **NO_DATASET_COMPLETIONS,
            "question_id": question.id,
            "category": question.category,
            "turns": list(question.turns),
            **{key: list(turns) for key, turns in found.items()},
        }
        return row, [f"question {question.id} ({question.category}): {problem}" for problem in problems]


def _answered(row: dict[str, Any], turns: Sequence[str], policy: Policy) -> dict[str, Any]:
    """A row of engine.schema.MT_BENCH_ANSWERS with `turns`, the answers that exist already."""
    return row | {"answers": list(turns), "answer_ends": ["stop"] * len(turns), "weights": policy.digest}


def _rows(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    return [row for table in tables for row in table.to_pylist()]


def _digest(content: Any) -> str:
    return f"sha256 {hashlib.sha256(repr(content).encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
