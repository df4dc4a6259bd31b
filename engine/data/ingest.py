"""From rows of any file to the PROMPTS table, one per iteration, in shards.

Everything that can be wrong with a prompt is found here, before a model is loaded, and is reported with
file and row, all at once. A text is passed on exactly as the file holds it. Where rows must be left
out or completed, a declared rule does it and a count says how often.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Literal, Protocol

import pyarrow as pa

from engine.config.prompts import PromptsConfig
from engine.data.chats import Message, Prompt, to_prompt
from engine.data.formats import Given, Layout, Layouts, to_given
from engine.data.rows import BadRow, Row, read_rows
from engine.errors import DataError, ModelError
from engine.schema import NOTHING_GIVEN, PROMPTS, conform
from engine.seeds import derive_seed
from engine.text import printable

NO_ANSWERS = Given()
KEYS = {
    "malformed": "on_malformed",
    "duplicates": "on_duplicate",
    "overlong": "on_overlong",
    "identical": "on_identical",
    "long_answers": "on_long_answer",
}
"""Keys of `prompts` that decide over rows, by the name under which such rows are counted."""
MAX_SHOWN = 20
"""Rows that an error message lists; the rest is counted."""
MAX_DROPPED = 10_000
"""Dropped rows that are kept by name; the counts are always exact."""


class Renderer(Protocol):
    """What turns a conversation into the policy's input; actors.chat.Chat is one.

    May have `num_defused`, the conversations and answers so far whose text held strings of control tokens.
    """

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """Return the text and the token ids. Raises ModelError for a conversation it cannot take."""
        ...

    def answer_ids(self, messages: list[Message], answer: str) -> list[int]:
        """Return the tokens of `answer` behind `messages`, the one that ends it included. Raises likewise."""
        ...


@dataclass(frozen=True)
class IngestResult:
    table: pa.Table
    """engine.schema.PROMPTS, in the order of the source; at least one row."""
    counts: dict[str, int]
    """rows read and used, and how many fell under each declared rule."""
    dropped: list[tuple[str, str]]
    """(where, reason) of rows left out, the first MAX_DROPPED of them."""


def read_prompts(config: PromptsConfig, source: str, given: Given = NO_ANSWERS) -> Iterator[Prompt | BadRow]:
    """Stream the conversations of one source with the answers asked for, and the rows that hold none, in order.

    The first row whose columns fit a format (see layouts.py) decides for the whole source.
    Raises DataError, while iterating, for a source that cannot be read or lacks the columns.
    """
    layouts = Layouts(config.column, config.format, given)
    layout, found, empty = None, None, True
    for row in read_rows(source, config.split, layouts):
        empty = False
        if isinstance(row, Row) and isinstance(row.value, dict):
            found = found or list(row.value)
            layout = layout or layouts.choose(row.value)
        yield row if isinstance(row, BadRow) else _prompt_of(row, layout, config.column, given.answers)
    if empty:
        raise DataError(f"{source}: holds no rows; expected at least one prompt")
    if (found or given.answers) and layout is None:
        raise layouts.missing(found or [], source)


def _prompt_of(row: Row, layout: Layout | None, column: str | None, answers: int) -> Prompt | BadRow:
    """The prompt of one row with as many answers as are wanted, or why there is none."""
    if layout is None or not layout.answers:
        if answers:
            return BadRow(row.where, "holds a prompt alone")
        return to_prompt(row, layout.prompt if layout else column)
    prompt = to_given(row, layout)
    if isinstance(prompt, BadRow):
        return prompt
    if not answers:  # held-out prompts are answered by the policy
        return replace(prompt, answers=(), win_rates=())
    if len(prompt.answers) != answers:
        return BadRow(row.where, f"brings {len(prompt.answers)} answers; expected {answers}")
    return prompt


def content_id(messages: list[Message]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the canonical JSON of `messages`."""
    canonical = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = json.dumps(canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def ingest(
    config: PromptsConfig, source: str, chat: Renderer, max_prompt_tokens: int, given: Given = NO_ANSWERS
) -> IngestResult:
    """Read, check and render the prompts of one source with their answers, each exactly once.

    prompt_id is `content_id` and the number of the occurrence ("5f0c...-0"), so that two rows never
    share an id or a seed, and so that neither file name nor order matters. Where one prompt brings several
    pairs, they are numbered in the order of the source.
    Raises one DataError with all rows that prompts.on_malformed, on_duplicate, on_overlong, on_identical or
    on_long_answer call errors, and where no prompt is left.
    """
    return _Ingestion(config, source, chat, max_prompt_tokens, given).run()


def _repeated_id(prompt: Prompt) -> str:
    """What a row repeats as a whole: the same prompt with other answers, or other labels, is another row."""
    digest = content_id(prompt.messages)
    if not prompt.answers:
        return digest
    text = json.dumps([prompt.answers, prompt.win_rates], ensure_ascii=False)
    return f"{digest} {hashlib.sha256(text.encode('utf-8')).hexdigest()}"


class _Ingestion:
    """The state of one `ingest`: what was seen, what was refused, what was counted."""

    def __init__(self, config: PromptsConfig, source: str, chat: Renderer, max_prompt_tokens: int, given: Given):
        self.config, self.source, self.chat, self.max_prompt_tokens = config, source, chat, max_prompt_tokens
        self.given, self.answers = given, AnswerRules(config, chat.answer_ids, given.max_tokens)
        self.policies: dict[str, str] = {
            "malformed": config.on_malformed,
            "duplicates": config.on_duplicate,
            "overlong": config.on_overlong,
        }
        if given.answers:
            self.policies |= {"identical": config.on_identical, "long_answers": config.on_long_answer}
        self.counts = Counter(dict.fromkeys(("rows", "used", *self.policies), 0))
        self.first: dict[str, str] = {}
        self.occurrences: Counter[str] = Counter()
        self.errors: list[str] = []
        self.num_errors: Counter[str] = Counter()
        self.dropped: list[tuple[str, str]] = []

    def run(self) -> IngestResult:
        defused = getattr(self.chat, "num_defused", 0)
        rows, tables = islice(self._usable(), self.config.limit), []
        while chunk := list(islice(rows, 4096)):  # Arrow takes a fraction of the memory of Python's objects
            tables.append(pa.Table.from_pylist(chunk, PROMPTS))
        self._raise_errors()
        self.counts["used"] = sum(table.num_rows for table in tables)
        self.counts["defused"] = getattr(self.chat, "num_defused", 0) - defused
        self.counts.update(self.answers.counts)
        if not tables:
            raise DataError(f"{self.source}: no usable prompts; {self._tally()}. First: {self.dropped[0][1]}")
        table = conform(pa.concat_tables(tables).combine_chunks(), PROMPTS, self.source)
        return IngestResult(table, dict(self.counts), self.dropped)

    def _usable(self) -> Iterator[dict[str, Any]]:
        for item in read_prompts(self.config, self.source, self.given):
            self.counts["rows"] += 1
            if isinstance(item, BadRow):
                self._refuse("malformed", item.where, item.reason)
            elif row := self._row(item):
                self.counts.update(item.notes)
                yield row

    def _row(self, prompt: Prompt) -> dict[str, Any] | None:
        """One row of PROMPTS, or None where a rule refuses it."""
        digest = content_id(prompt.messages)
        if self._is_refused_duplicate(_repeated_id(prompt), prompt):
            return None
        try:
            text, token_ids = self._rendered(prompt)
            given = self.answers.columns(prompt)
        except ModelError as error:
            self._refuse("malformed", prompt.where, str(error))
            return None
        except Refused as refusal:
            self._refuse(refusal.rule, prompt.where, str(refusal))
            return None
        prompt_id = f"{digest}-{self.occurrences[digest]}"
        self.occurrences[digest] += 1
        return {
            "prompt_id": prompt_id,
            "messages": prompt.messages,
            "prompt_text": text,
            "prompt_token_ids": token_ids,
            **given,
        }

    def _rendered(self, prompt: Prompt) -> tuple[str, list[int]]:
        text, token_ids = self.chat.render(prompt.messages)
        if not token_ids or len(token_ids) > self.max_prompt_tokens:
            rule, limit = ("overlong" if token_ids else "malformed"), self.max_prompt_tokens
            raise Refused(rule, f"{len(token_ids)} tokens; sampling.max_prompt_tokens is {limit}")
        return text, token_ids

    def _is_refused_duplicate(self, digest: str, prompt: Prompt) -> bool:
        where = prompt.where
        first = self.first.setdefault(digest, where)
        if first == where:
            return False
        if self.config.on_duplicate == "keep":
            self.counts["duplicates"] += 1
            return False
        self._refuse("duplicates", where, f"the same prompt{' and answers' if prompt.answers else ''} as {first}")
        return True

    def _refuse(self, rule: str, where: str, reason: str) -> None:
        self.counts[rule] += 1
        reason = printable(reason, "show")  # it may quote the row
        if self.policies[rule] == "error":
            self.num_errors[rule] += 1
            if len(self.errors) < MAX_SHOWN:
                self.errors.append(f"{where}: {reason}")
        elif len(self.dropped) < MAX_DROPPED:
            self.dropped.append((where, reason))

    def _raise_errors(self) -> None:
        count = self.num_errors.total()
        if not count:
            return
        more = [f"... and {count - len(self.errors)} more"] if count > len(self.errors) else []
        options = ", ".join(f"prompts.{KEYS[rule]}: drop" for rule in self.policies if self.num_errors[rule])
        raise DataError(
            f"{self.source}: {count} of {self.counts['rows']} rows cannot be used:\n"
            + "\n".join(f"  {line}" for line in [*self.errors, *more])
            + f"\nCorrect them, or leave such rows out with {options}"
        )

    def _tally(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if name != "defused")


def divide(
    table: pa.Table,
    iterations: int,
    use: Literal["parts", "all"],
    seed: int,
    shuffle: bool,
    limit: int | None = None,
) -> list[pa.Table]:
    """Return one PROMPTS table per iteration: disjoint near-equal parts, or all prompts each time.

    The order depends on (seed, prompt_id) alone, not on the order of the file nor on a library's
    random generator, and differs between iterations where each gets all. `limit` takes the first
    so many rows before. Raises DataError where an iteration would get no prompt.
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
    # Seeds have 31 bits, so some of 100 000 prompts do share one; the id decides between them.
    return sorted(range(len(ids)), key=lambda i: (derive_seed("shuffle", *seeds, ids[i]), ids[i]))


def ingest_iterations(
    config: PromptsConfig,
    chat: Renderer,
    max_prompt_tokens: int,
    iterations: int,
    seed: int,
    given: Given = NO_ANSWERS,
) -> tuple[list[pa.Table], list[IngestResult]]:
    """Return the prompts of each iteration, and what was ingested from each source.

    One source is divided by prompts.use; a list gives its n-th source, whole, to iteration n.
    """
    sources = [config.source] if isinstance(config.source, str) else config.source
    results = [ingest(config, source, chat, max_prompt_tokens, given) for source in sources]
    if isinstance(config.source, str):
        return divide(results[0].table, iterations, config.use, seed, config.shuffle), results
    if len(sources) != iterations:
        raise DataError(f"prompts.source lists {len(sources)} sources for {iterations} iterations")
    return [divide(result.table, 1, "all", seed, config.shuffle)[0] for result in results], results


def shards(table: pa.Table, shard_size: int) -> list[pa.Table]:
    """Return `table` in consecutive shards of `shard_size` rows, the last one perhaps smaller.

    Each is a copy: a slice drags the buffers of the whole table along wherever it is pickled.
    """
    slices = (table.slice(start, shard_size) for start in range(0, table.num_rows, shard_size))
    return [piece.take(list(range(piece.num_rows))) for piece in slices]


Tokens = Callable[[list[Message], str], list[int]]
"""(messages, answer) -> the answer's token ids, the one that ends it included."""


class Refused(Exception):
    """Why a row is left out, and the rule that says so."""

    def __init__(self, rule: str, reason: str):
        super().__init__(reason)
        self.rule = rule


class AnswerRules:
    """Turns answers into columns of PROMPTS and counts what was done to them."""

    def __init__(self, config: PromptsConfig, tokens: Tokens, max_tokens: int):
        self._on_long, self._tokens, self._max_tokens = config.on_long_answer, tokens, max_tokens
        self.counts: Counter[str] = Counter()
        """"truncated_answers": answers that lost their end."""

    def columns(self, prompt: Prompt) -> dict[str, Any]:
        """Return the given_* columns of the prompt. Raises Refused, and ModelError for what no tokens can say."""
        if not prompt.answers:
            return NOTHING_GIVEN
        _differ(prompt.answers, "both answers are the same text")
        token_ids = [self._tokens(prompt.messages, answer) for answer in prompt.answers]
        if not all(token_ids):
            raise ModelError("an answer has no tokens")
        _differ(token_ids, "both answers are the same tokens")
        kept = [self._kept(ids) for ids in token_ids]
        _differ(kept, f"both answers are the same in their first {self._max_tokens} tokens")
        self.counts["truncated_answers"] += sum(len(ids) > self._max_tokens for ids in token_ids)
        return {
            "given_answers": list(prompt.answers),
            "given_token_ids": kept,
            "given_win_rates": list(prompt.win_rates),
        }

    def _kept(self, token_ids: list[int]) -> list[int]:
        """The first tokens; an answer that was cut has no end-of-sequence token, as a sampled one."""
        if len(token_ids) > self._max_tokens and self._on_long != "truncate":
            length = f"an answer of {len(token_ids)} tokens"
            raise Refused("long_answers", f"{length}; sampling.max_new_tokens is {self._max_tokens}")
        return token_ids[: self._max_tokens]


def _differ(answers: Any, reason: str) -> None:
    """Raise Refused if the two answers of a pair are one: nothing can be learnt from preferring it to itself."""
    if len(answers) == 2 and answers[0] == answers[1]:
        raise Refused("identical", reason)
