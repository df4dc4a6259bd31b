"""The tables that roles exchange, declared once, in dataflow order.

Each stage adds columns and never renames one. Roles exchange the same Arrow tables that are stored on disk.

    PROMPTS -> COMPLETIONS -> SCORES -> PREVIOUS_SCORES -> SELECTED -> REF_LOGPS    training rows
                              SCORES -> AGREEMENT                                  scorer compared with evaluator
               COMPLETIONS -> NULL_MODEL                                           null-model baseline
    PROMPTS -> SELECTED -> REF_LOGPS -> VALIDATION                                 held-out preferences
    PROMPTS -> COMPLETIONS -> HELDOUT_WIN_RATES -> GATE                            held-out prompts
                           -> HELDOUT_START_LOGPS
    ... -> BENCHMARK_RESULTS                                                       published benchmarks
    QUESTIONS -> REPLIES                                                           any questions to an LLM judge

K is the number of completions sampled per prompt, n the number of completions in a training row (2 for a pair), G the
number of completions that a data set brings with a prompt (0; 1 for a demonstration; 2 for a preference pair).
"""

from __future__ import annotations

import re

import pyarrow as pa

from engine.errors import SchemaError

_SURROGATES = re.compile("[\ud800-\udfff]")

VERSION = 4
"""Written into each table's metadata; raised when a column changes its meaning."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
IDS = pa.list_(pa.int32())
REALS = pa.list_(pa.float64())
VERDICT = pa.struct(
    [
        ("answer", pa.int32()),  # index of the completion judged; in a comparison, of the one shown first
        ("other", pa.int32()),  # index of the one shown second; -1 if the judge saw only one
        ("text", pa.string()),  # the judge's reply, unchanged
        ("value", pa.float64()),  # the score, or the logit of "first is better", read from it; NaN: unreadable
    ]
)


def _schema(name: str, *fields: tuple[str, pa.DataType]) -> pa.Schema:
    metadata = {"kumite_table": name, "kumite_schema_version": str(VERSION)}
    return pa.schema([pa.field(column, kind) for column, kind in fields], metadata=metadata)


def _extend(base: pa.Schema, name: str, *fields: tuple[str, pa.DataType]) -> pa.Schema:
    return _schema(name, *((f.name, f.type) for f in base), *fields)


PROMPTS = _schema(
    "prompts",
    ("prompt_id", pa.string()),  # content hash, with an occurrence number for duplicates
    ("messages", MESSAGES),  # the conversation before the completion
    ("prompt_text", pa.string()),  # the chat template's rendering, exactly the text that the policy reads
    ("prompt_token_ids", IDS),
    ("dataset_completions", pa.list_(pa.string())),  # [G] of the data set, chosen before rejected
    ("dataset_token_ids", pa.list_(IDS)),  # [G][tokens], with the tokens that end a completion
    ("dataset_win_rates", REALS),  # [G] in [0, 1]: 1 and 0 for a plain label, 1/2 for a tie, 1 for a demonstration
)

NO_DATASET_COMPLETIONS: dict[str, list] = {"dataset_completions": [], "dataset_token_ids": [], "dataset_win_rates": []}
"""The part of a PROMPTS row for a prompt without completions."""

COMPLETIONS = _extend(
    PROMPTS,
    "completions",
    ("completions", pa.list_(pa.string())),  # [K]
    ("completion_token_ids", pa.list_(IDS)),  # [K][tokens], EOS only where the completion stopped by itself
    ("completion_logps", REALS),  # [K] nats, summed over tokens, at temperature 1, whatever the sampling temperature
    ("finish_reasons", pa.list_(pa.string())),  # [K] "stop" | "length"
    ("seeds", pa.list_(pa.int64())),  # [K]
    ("weights", pa.string()),  # digest of the policy
    ("num_from_policy", pa.int32()),  # completions of that policy, which come first; the others are the start policy's
)

SCORES = _extend(
    COMPLETIONS,
    "scores",
    ("pair_logits", pa.list_(REALS)),  # [K][K], M[i][j] > 0: i, shown first, beats j; NaN: no verdict
    ("scores", REALS),  # [K] from a scorer that rates completions one by one, NaN: no score; [] from other scorers
    ("num_truncated", pa.int32()),  # comparisons in which a text was too long for the scorer and was cut
    ("verdicts", pa.list_(VERDICT)),  # replies of an LLM judge; [] for other scorers
    ("scorer", pa.string()),  # id of the scorer; for a judge with its model, prompt version and settings
)

PREVIOUS_SCORES = _extend(
    SCORES,
    "previous_scores",
    ("previous_scores", REALS),  # [K] scores by the policy of the iteration before, NaN: no score
)

SELECTED = _schema(
    "selected",
    ("prompt_id", pa.string()),
    ("prompt_token_ids", IDS),
    ("completion_index", IDS),  # [n] k: sampled completion k; -1 - g: completion g of the data set; OTHER_PROMPT
    ("completion_token_ids", pa.list_(IDS)),  # [n][tokens]
    ("win_rate", REALS),  # [n] in [0, 1]: estimated P(completion beats the policy | prompt), or a data set's label
    ("baseline", pa.float64()),  # log-partition divided by eta, in units of a win rate; 1/2 for "half"
)

REF_LOGPS = _extend(SELECTED, "ref_logps", ("ref_logps", REALS))  # [n] nats, summed over tokens

VALIDATION = _schema(
    "validation",
    ("prompt_id", pa.string()),
    ("completion_index", IDS),  # [n] as in SELECTED
    ("win_rate", REALS),  # [n] the label of the held-out preference
    ("ref_logps", REALS),  # [n] nats, summed over tokens, under the reference policy of the iteration
    ("logps", REALS),  # [n] under the policy after some optimizer steps, whose number is that of the shard
    ("rewards", REALS),  # [n] implicit rewards
    ("loss", pa.float64()),
)

OTHER_PROMPT = -1_000_000
"""`completion_index` of a completion of another prompt, with which KTO estimates the KL divergence."""

AGREEMENT = _schema(
    "agreement",
    ("prompt_id", pa.string()),
    ("agreements", pa.float64()),  # pairs on which scorer and evaluator agree, ties of the scorer at 1/2
    ("comparable", pa.int32()),  # pairs to which the evaluator gives different scores
)

NULL_MODEL = _schema(
    "null_model",
    ("prompt_id", pa.string()),
    ("win_prob", pa.float64()),  # P(the null model's answer beats the policy's first); NaN: no verdict
)

HELDOUT_WIN_RATES = _extend(
    COMPLETIONS,
    "heldout_win_rates",
    ("opponents", IDS),  # versions of the policy, the start (0) among them
    ("win_rates", REALS),  # against each of them, in [0, 1], over all pairs of answers, ties at 1/2; NaN: no verdict
    ("previous", pa.int32()),  # the version from which this one was trained
    ("current", pa.int32()),  # the version that the gate had promoted last
    ("evaluator", pa.string()),
)

HELDOUT_START_LOGPS = _schema(
    "heldout_start_logps",
    ("prompt_id", pa.string()),
    ("start_logps", REALS),  # [K] nats, of the version's held-out answers under the start policy, summed over tokens
)

GATE = _schema(
    "gate",
    ("version", pa.int32()),
    ("against", pa.int32()),  # the version that was current
    ("promoted", pa.bool_()),
    ("win_rate", pa.float64()),  # against it, in [0, 1]; NaN: no verdict
    ("low", pa.float64()),  # ends of the 95 % interval
    ("high", pa.float64()),
    ("reasons", pa.list_(pa.string())),  # why it was not promoted
)

BENCHMARK_RESULTS = _schema(
    "benchmark_results",
    ("benchmark", pa.string()),
    ("metric", pa.string()),  # in the benchmark's own words
    ("value", pa.float64()),  # in the benchmark's own unit; NaN: not computed, `note` says why
    ("stderr", pa.float64()),  # NaN: none, as for the ends of the 95 % interval
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("num", pa.int32()),  # items behind it
    ("note", pa.string()),
)

QUESTIONS = _schema(
    "questions",
    ("messages", MESSAGES),  # a chat for an LLM judge to reply to
    ("seed", pa.int64()),
    ("temperature", pa.float64()),  # 0: greedy
    ("max_new_tokens", pa.int32()),  # limit of the reply
)

REPLIES = _extend(
    QUESTIONS,
    "replies",
    ("reply", pa.string()),  # "" where there is none
    ("reply_end", pa.string()),  # "stop" | "length": cut at a limit | "overlong": not asked, too long | "missing"
    ("judge", pa.string()),  # id of the model that replied
)

ALPACA_EVAL_INPUT = _extend(
    PROMPTS,  # dataset_completions: the baseline's answer
    "alpaca_eval_input",
    ("instruction_id", pa.int32()),  # place of the instruction in its file, from 0
    ("dataset", pa.string()),
    ("baseline", pa.string()),  # name of the model whose answer is the baseline
    ("difficulty", pa.float64()),  # of the instruction, nats; NaN: not known
    ("gamed", pa.list_(pa.struct([("row", pa.int32()), ("preference", pa.float64()), ("length", pa.float64())]))),
    ("length_effect", pa.float64()),  # theta in the known models; NaN: none are known
    ("opponents", pa.list_(pa.struct([("name", pa.string()), ("weights", REALS)]))),  # theta, phi, psi; in each row
)

SIDE_BY_SIDE_SCORES = _schema(
    "side_by_side_scores",
    ("prompt_id", pa.string()),
    ("score", pa.float64()),  # of the policy's answer; NaN: the annotator gives none
    ("scorer", pa.string()),
)

MT_BENCH_QUESTIONS = _extend(
    PROMPTS,
    "mt_bench_questions",
    ("question_id", pa.int64()),  # FastChat's
    ("category", pa.string()),
    ("turns", pa.list_(pa.string())),  # of the user, one or two
    ("references", pa.list_(pa.string())),  # reference answer to each turn; [] where the category has none
    ("baseline", pa.list_(pa.string())),  # the other model's answer to each turn; [] without pairwise judging
)

MT_BENCH_ANSWERS = _extend(
    MT_BENCH_QUESTIONS,
    "mt_bench_answers",  # the columns of PROMPTS describe the turn that was answered last
    ("answers", pa.list_(pa.string())),  # of the policy to each turn, in order; the second may be missing
    ("answer_ends", pa.list_(pa.string())),  # "stop" | "length"
    ("weights", pa.string()),  # digest of the policy
)

MT_BENCH_JUDGMENTS = _schema(
    "mt_bench_judgments",
    ("question_id", pa.int64()),
    ("category", pa.string()),
    ("turn", pa.int32()),  # 1 or 2
    ("game", pa.int32()),  # 1: the policy's answer is shown first; 2: the baseline's is; 0: there is no baseline
    ("prompt", pa.string()),  # name of the judge prompt
    ("user_prompt", pa.string()),  # the user part that the judge read
    ("judgment", pa.string()),  # the judge's reply; "" where there is none
    ("judgment_end", pa.string()),  # `reply_end` of REPLIES
    ("rating", pa.float64()),  # NaN: unreadable, or a comparison
    ("winner", pa.string()),  # of a comparison "model_1": the policy | "model_2" | "tie" | "error"; "" of a rating
    ("judge", pa.string()),
)

REWARD_BENCH_ITEMS = _extend(
    COMPLETIONS,
    "reward_bench_items",  # the completions are the data set's, in an order drawn by the item's id
    ("item_id", pa.string()),
    ("subset", pa.string()),
    ("is_chosen", pa.list_(pa.bool_())),  # of each completion: whether it is right
)

REWARD_BENCH_SCORES = _schema(
    "reward_bench_scores",
    ("item_id", pa.string()),
    ("subset", pa.string()),
    ("is_chosen", pa.list_(pa.bool_())),
    ("lengths", IDS),  # of each completion, in characters
    *((name, SCORES.field(name).type) for name in ("pair_logits", "scores", "num_truncated", "verdicts", "scorer")),
)

REQUESTS = _schema(
    "requests",  # of lm-evaluation-harness to a language model; a row is one context
    ("task", pa.string()),  # the harness's names
    ("document", pa.int64()),
    ("request", pa.int32()),  # number of the document's request that the first continuation answers
    ("kind", pa.string()),  # "loglikelihood" | "loglikelihood_rolling": one window of a text | "generate_until"
    ("digests", pa.list_(pa.string())),  # [K] of the texts of the requests, by which their answers are found again
    ("context_token_ids", IDS),  # at least one; what is too long was cut on the left
    ("continuation_token_ids", pa.list_(IDS)),  # [K][tokens] given; [] where the policy writes one
    ("num_cut", pa.int32()),  # tokens that were cut
    ("until", pa.list_(pa.string())),  # texts before which a written continuation ends
    ("max_new_tokens", pa.int32()),  # of a written continuation
    ("num_samples", pa.int32()),  # written continuations; 0 where they are given
    ("temperature", pa.float64()),  # of written continuations; 0: greedy
)

RESPONSES = _extend(
    REQUESTS,
    "responses",
    ("logps", REALS),  # [K] nats, of the given continuations, summed over tokens
    ("greedy", pa.list_(pa.bool_())),  # [K] whether each token was the likeliest
    ("texts", pa.list_(pa.string())),  # [num_samples] written continuations, with what ended them
    ("weights", pa.string()),  # digest of the policy
)

IFEVAL_PROMPTS = _extend(
    PROMPTS,
    "ifeval_prompts",
    ("prompt", pa.string()),  # as in the file
    ("instructions", pa.list_(pa.string())),  # [n] ids of checkers
    ("kwargs", pa.list_(pa.string())),  # [n] JSON, their arguments
)

IFEVAL_ANSWERS = _extend(
    IFEVAL_PROMPTS,
    "ifeval_answers",
    ("answer", pa.string()),
    ("answer_end", pa.string()),  # "stop" | "length"
    ("strict", pa.list_(pa.bool_())),  # [n] whether it follows each instruction
    ("loose", pa.list_(pa.bool_())),  # [n] whether a variant of it does
    ("weights", pa.string()),  # digest of the policy
)

BENCHMARK_FILES = _schema(
    "benchmark_files",
    ("path", pa.string()),  # relative
    ("text", pa.string()),
)

SELECTABLE = {
    "prompts": PROMPTS,
    "completions": COMPLETIONS,
    "start_completions": COMPLETIONS,
    "scores": SCORES,
    "previous_scores": PREVIOUS_SCORES,
}
"""Tables from which an algorithm may select rows, by the name of the stage that wrote them."""


def conform(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return `table` with exactly the columns of `schema`, in its order and types.

    `where` names producer and shard in error messages. Raises SchemaError for missing, unexpected or repeated columns,
    for a column whose type does not fit, and for a column with nulls at any depth; the message names them.
    """
    if table.column_names != schema.names:
        _check_names(table.column_names, schema.names, where)
        table = table.select(schema.names)
    if table.schema.types != schema.types:
        try:
            table = table.cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise SchemaError(f"{where}: {error}; expected {schema}") from error
    null_columns = [name for name in schema.names if any(_has_nulls(chunk) for chunk in table[name].chunks)]
    if null_columns:
        raise SchemaError(f"{where}: columns {null_columns} hold nulls; every row needs a value")
    return table.replace_schema_metadata(schema.metadata)


def _check_names(names: list[str], expected: list[str], where: str) -> None:
    missing = [name for name in expected if name not in names]
    unexpected = [name for name in names if name not in expected]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if missing or unexpected or repeated:
        repeats = f", columns {repeated} more than once" if repeated else ""
        raise SchemaError(
            f"{where}: missing columns {missing}, unexpected columns {unexpected}{repeats}; expected {expected}"
        )


def append(table: pa.Table, schema: pa.Schema, where: str, **columns: list) -> pa.Table:
    """Add a stage's new `columns` to `table` and conform the result to `schema`. Raises SchemaError like `conform`."""
    for name, values in columns.items():
        if name not in schema.names:
            raise SchemaError(f"{where}: unexpected column {name!r}; expected {schema.names}")
        if len(values) != table.num_rows:
            raise SchemaError(f"{where}: column {name!r} has {len(values)} values for {table.num_rows} rows")
        kind = schema.field(name).type
        try:
            table = table.append_column(name, pa.array(values, kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise SchemaError(f"{where}: column {name!r}: {error}; expected {kind}") from error
    return conform(table, schema, where)


def arrow_safe(text: str) -> str:
    """Return `text` with U+FFFD in place of each lone surrogate, which UTF-8, and so Arrow, cannot encode."""
    return _SURROGATES.sub("\ufffd", text)


def _has_nulls(array: pa.Array) -> bool:
    """Whether a value is missing at any depth of lists and structs."""
    if array.null_count:
        return True
    if pa.types.is_list(array.type):
        return _has_nulls(array.flatten())
    return pa.types.is_struct(array.type) and any(_has_nulls(part) for part in array.flatten())
