"""The two language models that lm-evaluation-harness sees: one collects its requests, one has their answers already.

The harness runs unmodified. First its tasks make their requests, which `Collector` tokenizes as the harness's own
HFLM does, and which are committed. When generators have answered them, the harness evaluates with `Answered`, which
looks each answer up. Imports lm_eval: import this module only where that is needed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from engine.errors import DataError

Row = dict[str, Any]
"""A row of engine.schema.REQUESTS, or of RESPONSES."""
Messages = list[dict[str, str]]
MAX_NEW_TOKENS = 256
"""Most tokens of a written continuation if the task does not say; HFLM's max_gen_toks."""
WRITING = {"until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
"""Keys of a task's generation_kwargs that generators follow."""
DIGEST_DIGITS = 16


def requested_chat(messages: Messages, add_generation_prompt: bool = True) -> str:
    """Stands for a rendered conversation where only the identity of a request matters."""
    return json.dumps([messages, add_generation_prompt], sort_keys=True)


def digest(arguments: Iterable[Any]) -> str:
    """Identity of the texts of one request."""
    return hashlib.sha256(json.dumps(list(arguments), sort_keys=True).encode()).hexdigest()[:DIGEST_DIGITS]


class Collector(TemplateLM):
    """Turns requests into rows, with the policy's tokenizer. Answers nothing.

    Follows HFLM of lm-eval 0.4.13 in its defaults: special tokens, prefix token, truncation from the left, windows.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, max_length: int):
        """chat_template: Jinja source for tasks that are asked as chats; None: the tokenizer's own. max_length: most
        tokens that the model reads, HFLM's argument of that name."""
        super().__init__()
        self.tokenizer, self._template, self._max_length = tokenizer, chat_template, max_length
        self._rendered: dict[str, str] = {}

    def rows(self, instances: Sequence[Instance]) -> list[Row]:
        """One row per context, in the harness's order. Raises DataError, all mistakes at once."""
        rows: list[Row] = []
        problems = []
        for instance in instances:
            try:
                rows += self._joined(rows, list(self._rows(instance)))
            except DataError as error:
                problems.append(str(error))
        if problems:
            more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise DataError("\n  ".join(["lm_eval: requests that cannot be asked:", *problems[:10]]) + more)
        return rows

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without its system message where the template refuses one."""
        from jinja2.exceptions import TemplateError

        def render(messages: Messages) -> str:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            text = render(chat_history)
        except TemplateError:
            text = render([message for message in chat_history if message["role"] != "system"])
        except ValueError as error:
            raise DataError(f"lm_eval: apply_chat_template needs a chat template: {error}") from error
        self._rendered[text] = requested_chat(chat_history, add_generation_prompt)
        return text

    @property
    def tokenizer_name(self) -> str:
        return ""

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
        """Called by `loglikelihood` of the harness with (texts, context ids, continuation ids); returns the ids."""
        return [(context, continuation) for _texts, context, continuation in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError

    def _rows(self, instance: Instance) -> Iterator[Row]:
        if instance.request_type == "generate_until":
            yield self._written(instance)
        elif instance.request_type == "loglikelihood_rolling":
            yield from self._windows(instance)
        else:
            ((context, continuation),) = self.loglikelihood([instance], disable_tqdm=True)
            yield self._given(instance, context, continuation)

    def _given(self, instance: Instance, context: list[int], continuation: list[int]) -> Row:
        if not 0 < len(continuation) <= self._max_length:
            raise DataError(
                f"{_name(instance)}: a continuation of {len(continuation)} tokens; expected 1 to {self._max_length} "
                f"(evaluation.benchmarks.lm_eval.max_length)"
            )
        num_cut = max(0, len(context) + len(continuation) - self._max_length - 1)
        return self._row(instance) | {
            "context_token_ids": context[num_cut:],
            "continuation_token_ids": [continuation],
            "num_cut": num_cut,
        }

    def _windows(self, instance: Instance) -> Iterator[Row]:
        (text,) = instance.args
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self._max_length,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, windows):
            yield self._given(instance, list(context), list(continuation))

    def _written(self, instance: Instance) -> Row:
        context, arguments = instance.args
        kwargs = normalize_gen_kwargs(copy.deepcopy(arguments), MAX_NEW_TOKENS)
        if unknown := sorted(arguments.keys() - WRITING):
            raise DataError(f"{_name(instance)}: generation_kwargs {unknown} are not supported; remove them")
        room = self._max_length - kwargs["max_gen_toks"]
        if room <= 0:
            raise DataError(
                f"{_name(instance)}: {kwargs['max_gen_toks']} tokens are to be written, and "
                f"evaluation.benchmarks.lm_eval.max_length is {self._max_length}; raise it"
            )
        bos = self.tokenizer.bos_token
        ids = self.tok_encode(context, add_special_tokens=False if bos and context.startswith(bos) else None)
        temperature = float(kwargs.get("temperature") or 0.0)
        return self._row(instance) | {
            "context_token_ids": ids[-room:],
            "num_cut": max(0, len(ids) - room),
            "until": [text for text in kwargs["until"] if text],
            "max_new_tokens": kwargs["max_gen_toks"],
            "num_samples": (instance.repeats or 1) if temperature else 1,
            "temperature": temperature,
        }

    def _row(self, instance: Instance) -> Row:
        texts = [self._rendered.get(part, part) if isinstance(part, str) else part for part in instance.args]
        return {
            "task": instance.task_name,
            "document": instance.doc_id,
            "request": instance.idx,
            "kind": instance.request_type,
            "digests": [digest(texts)],
            "continuation_token_ids": [],
            "until": [],
            "max_new_tokens": 0,
            "num_samples": 0,
            "temperature": 0.0,
        }

    def _joined(self, before: list[Row], rows: list[Row]) -> list[Row]:
        """`rows`, or none if they could be added to the row before them, which has the same context."""
        last = before[-1] if before else None
        if last is None or rows[0]["kind"] != "loglikelihood":
            return rows
        (row,) = rows
        same = all(row[name] == last[name] for name in ("task", "document", "kind", "context_token_ids", "num_cut"))
        if not same or row["request"] != last["request"] + len(last["digests"]):
            return rows
        for name in ("digests", "continuation_token_ids"):
            last[name] += row[name]
        return []


class Answered(LM):
    """Answers the harness's requests from rows of engine.schema.RESPONSES; DataError for a request that none answers.

    Contexts of chats are not rendered: a request is found by the conversation.
    """

    def __init__(self, responses: Iterable[Row]):
        super().__init__()
        self._rows: dict[tuple[str, int, int, str], list[tuple[Row, int]]] = defaultdict(list)
        for row in responses:
            for k, identity in enumerate(row["digests"]):
                self._rows[row["task"], row["document"], row["request"] + k, identity].append((row, k))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        found = [self._find(instance)[0] for instance in requests]
        return [(row["logps"][k], row["greedy"][k]) for row, k in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [sum(row["logps"][k] for row, k in self._find(instance)) for instance in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A request that is repeated n times comes n times in a row."""
        times: dict[int, int] = defaultdict(int)
        texts = []
        for instance in requests:
            row, _ = self._find(instance)[0]
            text = row["texts"][times[id(instance)] % row["num_samples"]]
            times[id(instance)] += 1
            for end in row["until"]:
                text = text.split(end)[0]
            texts.append(text)
        return texts

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        return requested_chat(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return ""

    def _find(self, instance: Instance) -> list[tuple[Row, int]]:
        found = self._rows.get((instance.task_name, instance.doc_id, instance.idx, digest(instance.args)))
        if not found:
            raise DataError(
                f"{_name(instance)}: no answer to this request is committed, so the task or its data changed since "
                f"the requests were made; restore them, or evaluate under another name="
            )
        return found


def _name(instance: Instance) -> str:
    return f"{instance.task_name}, document {instance.doc_id}"
