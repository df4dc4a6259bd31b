"""The stages of MT-Bench: two turns of the policy, each at the temperature of its category, then the judgments.

A shard is one category, because the generator answers a table at one temperature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from engine.benchmarks.mt_bench import fastchat
from engine.benchmarks.mt_bench.fastchat import BenchPrompt
from engine.config.benchmarks import MTBenchConfig
from engine.data.chats import Message
from engine.data.ingest import Renderer
from engine.errors import ModelError
from engine.loop.roles import Generator, Judge, Pool, RoleName, Roles, Timed
from engine.loop.stages import Stage, require_weights
from engine.schema import (
    COMPLETIONS,
    MT_BENCH_ANSWERS,
    MT_BENCH_JUDGMENTS,
    MT_BENCH_QUESTIONS,
    PROMPTS,
    QUESTIONS,
    append,
)
from engine.seeds import derive_seed
from engine.store.reader import Policy

INPUT = "mt_bench_input"
FIRST_TURN = "mt_bench_first_turn"
ANSWERS = "mt_bench_answers"
JUDGMENTS = "mt_bench_judgments"


@dataclass
class FirstTurn(Stage[pa.Table]):
    """The policy's answers to the first turn of each question."""

    name = FIRST_TURN
    of = "version"
    schema = MT_BENCH_ANSWERS
    role = "generator"
    policy: Policy
    config: MTBenchConfig
    reads = INPUT
    reads_schema = MT_BENCH_QUESTIONS
    reads_iteration = 0

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        return _answer(roles, table, 1, self.config.max_new_tokens)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        require_weights(result, self.policy)
        return append(
            table,
            MT_BENCH_ANSWERS,
            self.name,
            answers=[_stripped(texts) for texts in result["completions"].to_pylist()],
            answer_ends=result["finish_reasons"].to_pylist(),
            weights=result["weights"].to_pylist(),
        )

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"answers": _num_answers(table)}


@dataclass
class SecondTurn(Stage[pa.Table]):
    """The policy's answers to the second turn, after its own answer to the first.

    A second turn is not asked, and counted, if its prompt is longer than `max_prompt_tokens` or if the chat template
    refuses the policy's first answer.
    """

    name = ANSWERS
    of = "version"
    schema = MT_BENCH_ANSWERS
    role = "generator"
    policy: Policy
    config: MTBenchConfig
    chat: Renderer
    reads = FIRST_TURN
    reads_schema = MT_BENCH_ANSWERS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        asked = [prompt for row in table.to_pylist() if (prompt := self._prompt(row))]
        if not asked:
            return _done(COMPLETIONS.empty_table())
        return _answer(roles, pa.Table.from_pylist(asked, MT_BENCH_ANSWERS), 2, self.config.max_new_tokens)

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        require_weights(result, self.policy)
        answered = {row["prompt_id"]: row for row in result.to_pylist()}
        return pa.Table.from_pylist([_joined(row, answered) for row in table.to_pylist()], MT_BENCH_ANSWERS)

    def counts(self, table: pa.Table, result: pa.Table) -> dict[str, int]:
        expected = sum(len(turns) > 1 for turns in table["turns"].to_pylist())
        return {"second_turns_not_asked": expected - result.num_rows}

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"answers": _num_answers(table)}

    def _prompt(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with the prompt of its second turn; None if it has none, or none that can be asked."""
        if len(row["turns"]) < 2:
            return None
        messages: list[Message] = [
            *row["messages"],
            {"role": "assistant", "content": row["answers"][0]},
            {"role": "user", "content": row["turns"][1]},
        ]
        try:
            text, token_ids = self.chat.render(messages)
        except ModelError:
            return None
        if not 0 < len(token_ids) <= self.config.max_prompt_tokens:
            return None
        return row | {"messages": messages, "prompt_text": text, "prompt_token_ids": token_ids}


@dataclass(frozen=True)
class Game:
    """One question to the judge: about one turn, in one order of the answers."""

    row: dict[str, Any]
    turn: int
    order: int
    """`game` of engine.schema.MT_BENCH_JUDGMENTS."""
    prompt: BenchPrompt

    def user_part(self) -> str:
        """The prompt filled in as by run_judge_single and run_judge_pair of FastChat."""
        turns, policy, references = self.row["turns"], self.row["answers"], self.row["references"]
        texts = {f"ref_answer_{n}": text for n, text in enumerate(references[: self.turn], start=1)}
        shown = {"answer": policy}
        if self.order:
            first, second = (policy, self.row["baseline"]) if self.order == 1 else (self.row["baseline"], policy)
            shown = {"answer_a": first, "answer_b": second}
        if self.turn == 1:
            return self.prompt.fill(texts | {"question": turns[0]} | {side: said[0] for side, said in shown.items()})
        texts |= {f"question_{n}": turns[n - 1] for n in (1, 2)}
        return self.prompt.fill(texts | {f"{side}_{n}": said[n - 1] for side, said in shown.items() for n in (1, 2)})


@dataclass
class Judgments(Stage[pa.Table]):
    """The judge rates every answer, or compares it with the baseline's in both orders."""

    name = JUDGMENTS
    of = "version"
    schema = MT_BENCH_JUDGMENTS
    role: RoleName
    config: MTBenchConfig
    prompts: dict[str, BenchPrompt]
    seed: int
    policy = None
    reads = ANSWERS
    reads_schema = MT_BENCH_ANSWERS

    def submit(self, roles: Roles, table: pa.Table, shard: int) -> Future[Timed[pa.Table]]:
        questions = [self._question(game) for game in self._games(table)]
        judge = cast("Pool[Judge]", roles.annotator)  # the config was checked: the annotator is an LLM judge
        return judge.submit(Judge.ask, pa.Table.from_pylist(questions, QUESTIONS))

    def finish(self, table: pa.Table, result: pa.Table) -> pa.Table:
        games = zip(self._games(table), result.to_pylist(), strict=True)
        return pa.Table.from_pylist([_judgment(game, reply) for game, reply in games], MT_BENCH_JUDGMENTS)

    def counts(self, table: pa.Table, result: pa.Table) -> dict[str, int]:
        return {f"judgments_{end}": sum(e == end for e in result["reply_end"].to_pylist()) for end in UNFINISHED}

    def amounts(self, table: pa.Table) -> dict[str, float]:
        return {"judgments": table.num_rows}

    def _games(self, table: pa.Table) -> Iterator[Game]:
        pairwise = self.config.mode == "pairwise"
        for row in table.to_pylist():
            for turn in range(1, 1 + len(row["answers"])):
                prompt = self.prompts[fastchat.prompt_name(row["category"], turn, pairwise=pairwise)]
                for order in (1, 2) if pairwise else (0,):
                    yield Game(row, turn, order, prompt)

    def _question(self, game: Game) -> dict[str, Any]:
        user, system = game.user_part(), game.prompt.system
        if self.config.judge_system == "system":
            messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        elif system == PLAIN_SYSTEM:
            messages = [{"role": "user", "content": user}]
        else:
            messages = [{"role": "user", "content": f"[Instruction]\n{system}\n\n{user}"}]
        seed = derive_seed(self.seed, "mt_bench judge", game.row["prompt_id"], game.turn, game.order)
        return {
            "messages": messages,
            "seed": seed,
            "temperature": 0.0,
            "max_new_tokens": self.config.judge_max_new_tokens,
        }


PLAIN_SYSTEM = "You are a helpful assistant."
"""Says nothing about judging, so FastChat leaves it out for models without a system role."""
UNFINISHED = ("length", "overlong", "missing")
"""Ends of a judgment that is cut or does not exist."""
WINNERS = {1: {"A": "model_1", "B": "model_2"}, 2: {"A": "model_2", "B": "model_1"}}
"""The winner by `game` and verdict, as FastChat names it: model_1 is the policy."""


def _judgment(game: Game, reply: dict[str, Any]) -> dict[str, Any]:
    verdict = fastchat.parse_winner(reply["reply"])
    return {
        "question_id": game.row["question_id"],
        "category": game.row["category"],
        "turn": game.turn,
        "game": game.order,
        "prompt": game.prompt.name,
        "user_prompt": game.user_part(),
        "judgment": reply["reply"],
        "judgment_end": reply["reply_end"],
        "rating": math.nan if game.order else fastchat.parse_rating(reply["reply"]),
        "winner": WINNERS[game.order].get(verdict, verdict) if game.order else "",
        "judge": reply["judge"],
    }


def _answer(roles: Roles, table: pa.Table, turn: int, max_new_tokens: int) -> Future[Timed[pa.Table]]:
    """Ask the policy for one answer per row; the rows are of one category."""
    category = table["category"][0].as_py()
    return roles.generator.submit(
        Generator.generate,
        table.select(PROMPTS.names),
        iteration=0,  # the same seeds for every version
        num_samples=1,
        temperature=fastchat.TEMPERATURES.get(category, fastchat.OTHER_TEMPERATURE),
        purpose=f"mt_bench turn {turn}",
        max_new_tokens=max_new_tokens,
    )


def _joined(row: dict[str, Any], answered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row after its second turn; unchanged where that was not asked."""
    second = answered.get(row["prompt_id"])
    if second is None:
        return row
    prompt = {name: second[name] for name in ("messages", "prompt_text", "prompt_token_ids")}
    answers = {
        "answers": [*row["answers"], *_stripped(second["completions"])],
        "answer_ends": [*row["answer_ends"], *second["finish_reasons"]],
    }
    return row | prompt | answers


def _stripped(texts: Sequence[str]) -> list[str]:
    """Answers without white space around them, as in gen_model_answer.py."""
    return [text.strip() for text in texts]


def _done(result: pa.Table) -> Future[Timed[pa.Table]]:
    """A call that needs no role."""
    future: Future[Timed[pa.Table]] = Future()
    now = time.monotonic()
    future.set_result(Timed(result, now, now))
    return future


def _num_answers(table: pa.Table) -> int:
    return len(pc.list_flatten(table["answers"]))
