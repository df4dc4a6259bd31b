"""From the rows of any file to the PROMPTS table: rules for rows, prompt ids, iterations and shards.

Everything that can be wrong with a prompt is found here, before a model is loaded, and all of it is reported at once,
by file and row. A text is passed on exactly as the file holds it. Rows are left out, cut or completed only by a
declared rule, and a count says how often.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Literal, Protocol

import pyarrow as pa

from engine.config.prompts import PromptsConfig
from engine.data.chats import Message, Prompt
from engine.data.formats import Format, FormatChoice, PromptOnly, RequiredAnswers
from engine.data.rows import Row, read_rows
from engine.data.values import MAX_SHOWN, RefusedRow, RowError, list_refused
from engine.errors import DataError, ModelError
from engine.schema import NO_DATASET_COMPLETIONS, PROMPTS, conform
from engine.seeds import derive_seed

NO_ANSWERS = RequiredAnswers()
RULES = {
    "malformed": "on_malformed",
    "duplicates": "on_duplicate",
    "overlong": "on_overlong",
    "identical": "on_identical",
    "long_answers": "on_long_answer",
}
"""Rules for rows: the name under which such rows are counted -> the key of `prompts` that decides about them."""
ANSWER_RULES = ("identical", "long_answers")
"""Rules that apply only where answers are required."""
MAX_DROPPED = 10_000
"""Dropped rows that are kept by name; the counts are always exact."""


class Renderer(Protocol):
    """What turns a conversation into the policy's input; actors.chat.Chat is one.

    May have `num_defused`, the number of conversations and answers so far whose text held strings of control tokens.
    """

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """Return the text and the token ids. Raises ModelError for a conversation that it cannot render."""
        ...

    def answer_ids(self, messages: list[Message], answer: str) -> list[int]:
        """Return the token ids of `answer` after `messages`, with the one that ends it. Raises as `render`."""
        ...


@dataclass(frozen=True)
class IngestResult:
    table: pa.Table
    """engine.schema.PROMPTS, in the order of the source; at least one row."""
    counts: dict[str, int]
    """Rows read and used, and how many fell under each declared rule."""
    dropped: list[RefusedRow]
    """Rows left out, the first MAX_DROPPED of them."""


def read_prompts(
    config: PromptsConfig, source: str, required: RequiredAnswers = NO_ANSWERS
) -> Iterator[Prompt | RefusedRow]:
    """Stream the conversations of one source with the required answers, and the rows without, in order.

    The first row whose columns fit a format decides for the whole source.
    Raises DataError, while iterating, for a source that cannot be read or lacks the columns.
    """
    choice = FormatChoice(config.column, config.format, required)
    format: Format | None = None
    columns: list[str] = []
    is_empty = True
    for row in read_rows(source, choice.select, config.split):
        is_empty = False
        if isinstance(row, RefusedRow):
            yield row
            continue
        if isinstance(row.value, dict):
            columns = columns or list(row.value)
            format = format or choice.choose(row.value)
        try:
            yield _read(row, format or PromptOnly(config.column), required.count)
        except RowError as error:
            yield error.at(row.where)
    if is_empty:
        raise DataError(f"{source}: holds no rows; expected at least one prompt")
    if (columns or required.count) and format is None:
        raise choice.mismatch(columns, source)


def _read(row: Row, format: Format, num_answers: int) -> Prompt:
    """The prompt of a row with `num_answers` answers. Raises RowError."""
    if num_answers and not format.answers:
        raise RowError("holds a prompt alone")
    prompt = format.read(row)
    if not num_answers:  # held-out prompts are answered by the policy
        return replace(prompt, answers=(), win_rates=())
    if len(prompt.answers) != num_answers:
        raise RowError(f"brings {len(prompt.answers)} answers; expected {num_answers}")
    return prompt


def content_id(messages: list[Message]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the canonical JSON of `messages`."""
    canonical = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = json.dumps(canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def ingest(
    config: PromptsConfig,
    source: str,
    chat: Renderer,
    max_prompt_tokens: int,
    required: RequiredAnswers = NO_ANSWERS,
    section: str = "prompts",
) -> IngestResult:
    """Read, check and render the prompts of one source with their answers, each exactly once.

    prompt_id is `content_id` and the number of the occurrence ("5f0c...-0"): two rows never share an id or a seed, and
    ids depend neither on the file's name nor on the order of different prompts. Where one prompt brings several
    pairs, they are numbered in the order of the source.
    section: the key of `config` in the run's configuration, for messages.
    Raises one DataError with all rows that on_malformed, on_duplicate, on_overlong, on_identical or on_long_answer
    treat as errors; and DataError if no prompt is left.
    """
    return _Ingestion(config, source, chat, max_prompt_tokens, required, section).run()


class _Ingestion:
    """The state of one `ingest`: rows seen, refused and counted."""

    def __init__(
        self,
        config: PromptsConfig,
        source: str,
        chat: Renderer,
        max_prompt_tokens: int,
        required: RequiredAnswers,
        section: str,
    ):
        self.config, self.source, self.chat, self.section = config, source, chat, section
        self.max_prompt_tokens, self.required = max_prompt_tokens, required
        self.policies: dict[str, str] = {
            rule: getattr(config, key) for rule, key in RULES.items() if required.count or rule not in ANSWER_RULES
        }
        self.counts = Counter(dict.fromkeys(("rows", "used", *self.policies), 0))
        self.num_truncated = 0
        self.first_places: dict[str, str] = {}
        self.occurrences: Counter[str] = Counter()
        self.errors: list[RefusedRow] = []
        self.num_errors: Counter[str] = Counter()
        self.dropped: list[RefusedRow] = []

    def run(self) -> IngestResult:
        num_defused = getattr(self.chat, "num_defused", 0)
        rows, tables = islice(self._usable_rows(), self.config.limit), []
        while chunk := list(islice(rows, 4096)):  # Arrow takes a fraction of the memory of Python's objects
            tables.append(pa.Table.from_pylist(chunk, PROMPTS))
        self._raise_errors()
        if not tables:
            counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
            raise DataError(f"{self.source}: no usable prompts; {counts}. First: {self.dropped[0].reason}")
        self.counts["used"] = sum(table.num_rows for table in tables)
        self.counts["defused"] = getattr(self.chat, "num_defused", 0) - num_defused
        if self.required.count:
            self.counts["truncated_answers"] = self.num_truncated
        table = conform(pa.concat_tables(tables).combine_chunks(), PROMPTS, self.source)
        return IngestResult(table, dict(self.counts), self.dropped)

    def _usable_rows(self) -> Iterator[dict[str, Any]]:
        for prompt in read_prompts(self.config, self.source, self.required):
            self.counts["rows"] += 1
            row = prompt if isinstance(prompt, RefusedRow) else self._row_of(prompt)
            if isinstance(row, RefusedRow):
                self._refuse(row)
            else:
                yield row

    def _row_of(self, prompt: Prompt) -> dict[str, Any] | RefusedRow:
        """One row of PROMPTS, or the refused row."""
        digest = content_id(prompt.messages)
        try:
            self._check_duplicate(prompt, digest)
            text, token_ids = self._render(prompt.messages)
            answers = self._answer_columns(prompt)
        except RowError as error:
            return error.at(prompt.where)
        except ModelError as error:
            return RefusedRow(prompt.where, str(error))
        prompt_id = f"{digest}-{self.occurrences[digest]}"
        self.occurrences[digest] += 1
        self.counts.update(prompt.notes)
        return {
            "prompt_id": prompt_id,
            "messages": prompt.messages,
            "prompt_text": text,
            "prompt_token_ids": token_ids,
            **answers,
        }

    def _check_duplicate(self, prompt: Prompt, digest: str) -> None:
        """Raise RowError for a repeated row. The same prompt with other answers or win rates is another row."""
        if prompt.answers:
            answers = json.dumps([prompt.answers, prompt.win_rates]).encode("ascii")
            digest = f"{digest} {hashlib.sha256(answers).hexdigest()}"
        first = self.first_places.setdefault(digest, prompt.where)
        if first == prompt.where:
            return
        if self.config.on_duplicate != "keep":
            raise RowError(f"the same prompt{' and answers' if prompt.answers else ''} as {first}", "duplicates")
        self.counts["duplicates"] += 1

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        text, token_ids = self.chat.render(messages)
        if not token_ids or len(token_ids) > self.max_prompt_tokens:
            rule, limit = ("overlong" if token_ids else "malformed"), self.max_prompt_tokens
            raise RowError(f"{len(token_ids)} tokens; sampling.max_prompt_tokens is {limit}", rule)
        return text, token_ids

    def _answer_columns(self, prompt: Prompt) -> dict[str, Any]:
        """The dataset_* columns. Raises RowError, and ModelError for an answer that cannot be tokenized."""
        if not prompt.answers:
            return NO_DATASET_COMPLETIONS
        limit = self.required.max_tokens
        _check_differ(prompt.answers, "both answers are the same text")
        token_ids = [self.chat.answer_ids(prompt.messages, answer) for answer in prompt.answers]
        if not all(token_ids):
            raise RowError("an answer has no tokens")
        _check_differ(token_ids, "both answers are the same tokens")
        lengths = [len(ids) for ids in token_ids]
        if self.config.on_long_answer != "truncate" and (length := next((n for n in lengths if n > limit), 0)):
            raise RowError(f"an answer of {length} tokens; sampling.max_new_tokens is {limit}", "long_answers")
        # A truncated answer has no end-of-sequence token, as a sampled one.
        kept = [ids[:limit] for ids in token_ids]
        _check_differ(kept, f"both answers are the same in their first {limit} tokens")
        self.num_truncated += sum(length > limit for length in lengths)
        return {
            "dataset_completions": list(prompt.answers),
            "dataset_token_ids": kept,
            "dataset_win_rates": list(prompt.win_rates),
        }

    def _refuse(self, row: RefusedRow) -> None:
        self.counts[row.rule] += 1
        if self.policies[row.rule] == "error":
            self.num_errors[row.rule] += 1
            if len(self.errors) < MAX_SHOWN:
                self.errors.append(row)
        elif len(self.dropped) < MAX_DROPPED:
            self.dropped.append(row)

    def _raise_errors(self) -> None:
        if count := self.num_errors.total():
            options = ", ".join(
                f"{self.section}.{RULES[rule]}: drop" for rule in self.policies if self.num_errors[rule]
            )
            raise DataError(
                f"{self.source}: {count} of {self.counts['rows']} rows cannot be used:\n"
                f"{list_refused(self.errors, count)}\nCorrect them, or leave such rows out with {options}"
            )


def _check_differ(answers: Sequence[Any], reason: str) -> None:
    """Raise RowError if the two answers of a pair are the same: a preference between them teaches nothing."""
    if len(answers) == 2 and answers[0] == answers[1]:
        raise RowError(reason, "identical")


def divide(
    table: pa.Table,
    iterations: int,
    use: Literal["parts", "all"],
    seed: int,
    shuffle: bool,
    limit: int | None = None,
) -> list[pa.Table]:
    """Return one PROMPTS table per iteration: disjoint, nearly equal parts, or all prompts each time.

    The order depends on (seed, prompt_id) alone, not on the order of the file nor on a library's random generator. If
    each iteration gets all prompts, the order also depends on the iteration. Only the first `limit` rows are used.
    Raises DataError if an iteration would get no prompt.
    """
    table = table.slice(0, limit)
    needed = iterations if use == "parts" else 1
    if table.num_rows < needed:
        raise DataError(
            f"{table.num_rows} prompts for {iterations} iterations with prompts.use: {use}; "
            f"at least {needed} needed. Give more prompts, fewer iterations, or prompts.use: all"
        )
    if use == "all":
        return [table.take(_order(table, shuffle, seed, iteration)) for iteration in range(iterations)]
    order = _order(table, shuffle, seed)
    cuts = [len(order) * part // iterations for part in range(iterations + 1)]
    return [table.take(order[start:stop]) for start, stop in pairwise(cuts)]


def _order(table: pa.Table, shuffle: bool, *seeds: int) -> list[int]:
    if not shuffle:
        return list(range(table.num_rows))
    ids = table["prompt_id"].to_pylist()
    # Seeds have 31 bits, so among 100 000 prompts some share one; then the id decides.
    return sorted(range(len(ids)), key=lambda i: (derive_seed("shuffle", *seeds, ids[i]), ids[i]))


def ingest_iterations(
    config: PromptsConfig,
    chat: Renderer,
    max_prompt_tokens: int,
    iterations: int,
    seed: int,
    required: RequiredAnswers = NO_ANSWERS,
    section: str = "prompts",
) -> tuple[list[pa.Table], list[IngestResult]]:
    """Return the prompts of each iteration, and what was ingested from each source.

    One source is divided as config.use says; of a list, iteration n gets all prompts of the n-th source. section: the
    key of `config` in the run's configuration, for messages.
    """
    sources = [config.source] if isinstance(config.source, str) else config.source
    results = [ingest(config, source, chat, max_prompt_tokens, required, section) for source in sources]
    if isinstance(config.source, str):
        return divide(results[0].table, iterations, config.use, seed, config.shuffle), results
    if len(sources) != iterations:
        raise DataError(f"prompts.source lists {len(sources)} sources for {iterations} iterations")
    return [divide(result.table, 1, "all", seed, config.shuffle)[0] for result in results], results


def shards(table: pa.Table, shard_size: int) -> list[pa.Table]:
    """Return `table` in consecutive shards of `shard_size` rows; the last one may be smaller.

    Each is a copy: pickling a slice would pickle the buffers of the whole table.
    """
    slices = (table.slice(start, shard_size) for start in range(0, table.num_rows, shard_size))
    return [piece.take(list(range(piece.num_rows))) for piece in slices]
