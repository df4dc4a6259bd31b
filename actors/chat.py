"""The policy's chat template and tokenizer: from a conversation to the token ids of its prompt and its answers.

Each prompt, and each answer of a data set, is rendered once, here; generator, scorers and learner get
token ids and never tokenize a text again, so they cannot disagree. Text of a conversation is data: a control token
that it spells is defused, and the control tokens of every rendering are checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.config.run import ModelConfig
from engine.data.chats import Message
from engine.errors import ModelError
from engine.store.weights import stop_token_ids

PROBE = "Kumite 123: zwölf Boxkämpfer, 日本語 и עברית.\n\n\tdef f(x): return x  # 🙂 don't"
"""Fixed text whose token ids are part of a tokenizer's identity."""
HARMLESS = "A harmless question."
"""Content that spells no control token; renderings of other contents must have the same control tokens."""


class Chat:
    """Renders conversations for one policy.

    Raises ModelError where the tokenizer cannot be loaded, where there is no chat template, and
    where the template fails on a plain question or leaves its text out.
    """

    def __init__(self, config: ModelConfig, section: str = "model"):
        """section: the config section of the model, for messages."""
        self.path, self._section = config.path, section
        self.tokenizer = _load_tokenizer(config, section)
        self.template = _load_template(config, self.tokenizer, section)
        """Jinja source, or None: the last user message as it is."""
        special, spelled = _control_tokens(self.tokenizer, self.template or "")
        self._separator = next(s for s in (" ", "\u200b", "_", "") if s not in "".join({**special, **spelled}))
        self._special, self._any_control = _first_characters(special), _first_characters({**special, **spelled})
        self._control_ids = _without_unknown({*special.values(), *spelled.values()}, self.tokenizer)
        self._special_ids = _without_unknown({*special.values()}, self.tokenizer) | self.stop_ids
        self._expected: dict[tuple[str, ...], list[int]] = {}
        self._ends: dict[tuple[str, ...], list[int] | None] = {}
        self.num_defused = 0
        """Conversations and answers so far whose text spelled a control token."""
        self._check_template()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the template and of the tokenizer's behaviour, which must not change within a run."""
        return hashlib.sha256(json.dumps([self.template, _identity(self.tokenizer)]).encode("ascii")).hexdigest()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids at which generation stops: those of the model's generation config and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token_id
        return frozenset(stop_token_ids(self.path) | ({eos} if eos is not None else set()))

    @property
    def vocabulary(self) -> set[int]:
        """Token ids of ordinary text: all but control tokens."""
        return set(range(len(self.tokenizer))) - self._control_ids - set(self.tokenizer.all_special_ids)

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """Return the policy's input for `messages` as text and token ids, up to where the answer begins.

        With a template the ids are those of its text alone: most templates spell BOS themselves, and adding
        special tokens would give two. Without one (chat_template "none") the text is the last user message,
        and the ids include what the tokenizer adds to plain text, usually BOS, but no EOS. Raises ModelError
        for a conversation that the template refuses, whose text it leaves out, or whose text becomes a
        control token.
        """
        safe = [self.defuse(message) for message in messages]
        text, token_ids = self._render(safe)
        for message in safe if self.template else []:
            # Templates may trim a text; several drop the reasoning from earlier answers.
            if message["role"] in ("system", "user") and message["content"].strip() not in text:
                raise ModelError(f"the chat template leaves out the text of the {message['role']} message")
        if self._controls(token_ids) != self._controls_expected(safe):
            raise ModelError("the text itself turns into control tokens of this tokenizer")
        self.num_defused += safe != messages
        return text, token_ids

    def continuation(self, text: str, token_ids: list[int], more: str) -> list[int]:
        """Token ids of `more` where the model writes it after a rendering (`text`, `token_ids`).

        Raises ModelError where the two merge into one token, so that the model could not write it there.
        """
        ids = self._ids(text + more)
        if ids[: len(token_ids)] != token_ids or len(ids) == len(token_ids):
            raise ModelError(f"{self.path}: {more!r} merges into one token with the text before it, {text[-20:]!r}")
        return ids[len(token_ids) :]

    def answer_ids(self, messages: list[Message], answer: str) -> list[int]:
        """Return the token ids with which the policy would have given `answer` to `messages`, at least one.

        They are what the template writes for the assistant's turn after the prompt, up to and including the
        first token of `stop_ids`; what templates write after that (the line end of ChatML) the policy never
        generates. They are the plain answer and EOS where there is no template, or where its rendering does
        not begin with the prompt's text (templates that rewrite earlier turns, or whose prompt opens a
        `<think>`), leaves the answer's text out or never stops. A control token that the answer spells is
        defused as in an earlier answer. Raises ModelError for a conversation that the template refuses, an
        answer whose text becomes a control token, and a tokenizer without EOS.
        """
        safe = [self.defuse(message) for message in messages]
        safe_answer = self.defuse({"role": "assistant", "content": answer})["content"]
        token_ids, expected = self._turn(safe, safe_answer), self._specials_expected(safe)
        if token_ids is None or expected is None:
            token_ids = self._plain_turn(safe, safe_answer)
            expected = token_ids[-1:]
        if self._specials(token_ids) != expected:
            raise ModelError("the text of an answer turns into control tokens of this tokenizer")
        self.num_defused += safe_answer != answer
        end = next(i for i, token_id in enumerate(token_ids) if token_id in self.stop_ids)
        return token_ids[: end + 1]

    def conversation_ids(self, messages: list[Message]) -> list[int]:
        """Return the token ids of a whole conversation that ends with an answer, as reward models read it.

        Control tokens that a text spells are defused. Raises ModelError for a conversation that the template refuses.
        """
        safe = [self.defuse(message) for message in messages]
        self.num_defused += safe != messages
        return self._ids(self._apply(safe, add_generation_prompt=False))

    def _turn(self, messages: list[Message], answer: str) -> list[int] | None:
        """Token ids of the assistant's turn by the template; None where the turn does not continue the prompt."""
        if self.template is None:
            return None
        text, token_ids = self._render(messages)
        full_text = self._apply([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        if not full_text.startswith(text) or answer.strip() not in full_text[len(text) :]:
            return None
        turn = self._ids_after(text, token_ids, full_text)
        return turn if self.stop_ids.intersection(turn) else None

    def _plain_turn(self, messages: list[Message], answer: str) -> list[int]:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError("the tokenizer has no EOS token, with which an answer could end")
        text, token_ids = self._render(messages)
        return [*self._ids_after(text, token_ids, text + answer), eos]

    def _ids_after(self, text: str, token_ids: list[int], full_text: str) -> list[int]:
        """Tokens of `full_text` after its beginning `text`; tokenized alone where tokens merge across the border."""
        ids = self._ids(full_text)
        if ids[: len(token_ids)] == token_ids:
            return ids[len(token_ids) :]
        return list(self.tokenizer(full_text[len(text) :], add_special_tokens=False)["input_ids"])

    def defuse(self, message: Message) -> Message:
        """Break up every control token that the content spells: `<|im_end|>` becomes `< |im_end|>`.

        The separator after the first character is part of no control token, so no new one can arise.
        Earlier answers keep the marks that the template itself spells, such as `<think>`.
        """
        pattern = self._special if message["role"] == "assistant" else self._any_control
        return {**message, "content": pattern.sub(rf"\1{self._separator}", message["content"])}

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        if self.template is None:
            text = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        else:
            text = self._apply(messages, add_generation_prompt=True)
        return text, self._ids(text)

    def _apply(self, messages: list[Message], add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program and may raise anything
            raise ModelError(f"the chat template refuses the conversation: {error}") from error

    def _ids(self, text: str) -> list[int]:
        """Tokens of a rendering; without a template also those that the tokenizer adds to plain text, except EOS."""
        if self.template is not None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        token_ids = list(self.tokenizer(text)["input_ids"])
        while token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()
        return token_ids

    def _controls_expected(self, messages: list[Message]) -> list[int]:
        """Control tokens of the same conversation with harmless questions in place of the real ones."""
        roles = tuple(message["role"] for message in messages)
        if roles in self._expected:
            return self._expected[roles]
        harmless = [m if m["role"] == "assistant" else {**m, "content": HARMLESS} for m in messages]
        expected = self._controls(self._render(harmless)[1])
        if "assistant" not in roles:
            self._expected[roles] = expected
        return expected

    def _controls(self, token_ids: list[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id in self._control_ids]

    def _specials_expected(self, messages: list[Message]) -> list[int] | None:
        """Special tokens of the assistant's turn with a harmless answer; None where the template has no such turn."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._ends:
            turn = self._turn(messages, HARMLESS)
            self._ends[roles] = None if turn is None else self._specials(turn)
        return self._ends[roles]

    def _specials(self, token_ids: list[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id in self._special_ids]

    def _check_template(self) -> None:
        try:
            _, token_ids = self.render([{"role": "user", "content": HARMLESS}])
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}; {_advice(self._section)}") from error
        bos = self.tokenizer.bos_token_id
        if bos is not None and token_ids[:2] == [bos, bos]:
            raise ModelError(f"{self.path}: the chat template begins with two BOS tokens; {_advice(self._section)}")


def _advice(section: str) -> str:
    return f'give a Jinja file in {section}.chat_template, or "none" to use the last user message as it is'


def _load_tokenizer(config: ModelConfig, section: str) -> Any:
    from transformers import AutoTokenizer

    if config.path.startswith(("/", ".", "~")) and not Path(config.path).is_dir():
        raise ModelError(f"{section}.path = {config.path}: no such folder (in {Path.cwd()})")
    try:
        return AutoTokenizer.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for one cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{section}.path = {config.path}: the tokenizer cannot be loaded ({reason}). A model folder needs the "
            f"tokenizer's files, usually tokenizer.json and tokenizer_config.json, next to its weights"
        ) from error


def _load_template(config: ModelConfig, tokenizer: Any, section: str) -> str | None:
    """The Jinja source: the config's file, else the model's own. None for "none"."""
    if config.chat_template == "none":
        return None
    if config.chat_template is not None:
        return _read_template(config.chat_template, section)
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, e.g. one for tools
        template = template.get("default")
    if not template:
        raise ModelError(f"{config.path}: the tokenizer has no chat template; {_advice(section)}")
    return str(template)


def _read_template(path: str, section: str) -> str:
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{section}.chat_template = {path!r}: cannot be read: {error}") from error
    if not template.strip():  # transformers would silently use the model's own
        raise ModelError(f"{section}.chat_template = {path!r}: the file is empty; {_advice(section)}")
    return template


def _control_tokens(tokenizer: Any, template: str) -> tuple[dict[str, int], dict[str, int]]:
    """Strings that only a template may turn into ids: the special tokens, and other marks of the template.

    Marks are added tokens that the template spells (`<think>`, `<tool_call>`). Other added tokens, such as runs of
    spaces or HTML tags in some vocabularies, are ordinary text.
    """
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    marks = {text: i for text, i in added.items() if text.strip() and text in template and text not in special}
    return special, marks


def _without_unknown(control_ids: set[int], tokenizer: Any) -> frozenset[int]:
    """Leave out UNK, which rare characters become by themselves, unless it is also BOS, EOS or PAD."""
    doubles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return frozenset(control_ids - ({tokenizer.unk_token_id} - doubles))


def _first_characters(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the first character of each of `strings` in a text, overlapping ones included."""
    long = [re.escape(text) for text in strings if len(text) > 1]
    return re.compile(f"(?=(?:{'|'.join(long)}))(.)" if long else r"(?!)()", re.DOTALL)


def _identity(tokenizer: Any) -> dict[str, Any]:
    """What is equal in two copies of a tokenizer, regardless of the folder and version that saved them."""
    return {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "added": sorted((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()),
        "special": {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())},
        "probe": tokenizer(PROBE)["input_ids"],
    }
