"""The chat template and the tokenizer of the policy: from a conversation to what the policy reads.

Each prompt is rendered once, here; generator, scorers and learner get its token ids and never
tokenize a prompt again, so they cannot disagree. Text of a conversation is data: a control token
spelled out in it is defused, and the control tokens of every rendering are checked.
Knows nothing of files of prompts, of weights or of engines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.config.model import ModelConfig
from engine.errors import ModelError
from engine.prompts.conversations import Message

PROBE = "Kumite 123: zwölf Boxkämpfer, 日本語 и עברית.\n\n\tdef f(x): return x  # 🙂 don't"
"""Fixed text whose token ids are part of a tokenizer's identity."""
HARMLESS = "A harmless question."
"""Content that spells no control token; the yardstick for all other contents."""


class Chat:
    """Renders conversations for one policy.

    Raises ModelError where the tokenizer cannot be loaded, where there is no chat template, and
    where the template fails on a plain question or leaves its text out.
    """

    def __init__(self, config: ModelConfig, section: str = "model"):
        """`section`: where in the configuration the model stands, for messages."""
        self.path, self._section = config.path, section
        self.tokenizer = _load_tokenizer(config)
        self.template = _load_template(config, self.tokenizer, section)
        """Jinja source, or None: the last user message as it is."""
        special, spelled = _control_tokens(self.tokenizer, self.template or "")
        self._separator = next(s for s in (" ", "\u200b", "_", "") if s not in "".join({**special, **spelled}))
        self._special, self._any_control = _first_characters(special), _first_characters({**special, **spelled})
        self._control_ids = _without_unknown({*special.values(), *spelled.values()}, self.tokenizer)
        self._expected: dict[tuple[str, ...], list[int]] = {}
        self.num_defused = 0
        """Conversations so far whose text spelled a control token."""
        self._check_template()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the template and of how the tokenizer behaves: what must not change within a run."""
        return hashlib.sha256(json.dumps([self.template, _identity(self.tokenizer)]).encode("ascii")).hexdigest()

    @property
    def vocabulary(self) -> set[int]:
        """Token ids of ordinary text: all but control tokens."""
        return set(range(len(self.tokenizer))) - self._control_ids - set(self.tokenizer.all_special_ids)

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """Return the policy's input for `messages` as text and token ids, up to where the answer begins.

        With a template the ids are those of its text and of nothing else: most templates spell BOS
        themselves, and adding special tokens would give two. Without one (chat_template "none") the
        text is the last user message, and the ids have what the tokenizer adds to plain text, BOS as
        a rule, but no EOS. Raises ModelError for a conversation that the template refuses, whose text
        it leaves out, or that would smuggle in a control token.
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
        """Token ids of `more` where the model writes it behind a rendering (`text`, `token_ids`).

        Raises ModelError where the two melt into one token, so that the model could not write it there.
        """
        whole = self._ids(text + more)
        if whole[: len(token_ids)] != token_ids or len(whole) == len(token_ids):
            raise ModelError(f"{self.path}: {more!r} melts into one token with the text before it, {text[-20:]!r}")
        return whole[len(token_ids) :]

    def defuse(self, message: Message) -> Message:
        """Break up every control token that the content spells: `<|im_end|>` becomes `< |im_end|>`.

        The separator, behind the first character, is part of no control token, so none can arise anew.
        Earlier answers keep the marks that the template itself knows, such as `<think>`.
        """
        pattern = self._special if message["role"] == "assistant" else self._any_control
        return {**message, "content": pattern.sub(rf"\1{self._separator}", message["content"])}

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        if self.template is None:
            text = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            return text, self._ids(text)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise ModelError(f"the chat template refuses the conversation: {error}") from error
        return text, self._ids(text)

    def _ids(self, text: str) -> list[int]:
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

    def _check_template(self) -> None:
        try:
            _, token_ids = self.render([{"role": "user", "content": HARMLESS}])
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}; {_ways_out(self._section)}") from error
        bos = self.tokenizer.bos_token_id
        if bos is not None and token_ids[:2] == [bos, bos]:
            raise ModelError(f"{self.path}: the chat template begins with two BOS tokens; {_ways_out(self._section)}")


def _ways_out(section: str) -> str:
    return f'give a Jinja file in {section}.chat_template, or "none" to use the last user message as it is'


def _load_tokenizer(config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    if config.path.startswith(("/", ".", "~")) and not Path(config.path).is_dir():
        raise ModelError(f"{config.path}: no such folder (in {Path.cwd()})")
    try:
        return AutoTokenizer.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for one cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{config.path}: no tokenizer can be loaded ({reason}). A model folder needs the tokenizer's own files, "
            f"tokenizer.json and tokenizer_config.json as a rule, next to its weights"
        ) from error


def _load_template(config: ModelConfig, tokenizer: Any, section: str) -> str | None:
    """The Jinja source: the file of the config, else the model's own. None for "none"."""
    if config.chat_template == "none":
        return None
    if config.chat_template is not None:
        return _read_template(config.chat_template, section)
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, e.g. one for tools
        template = template.get("default")
    if not template:
        raise ModelError(f"{config.path}: the tokenizer has no chat template; {_ways_out(section)}")
    return str(template)


def _read_template(path: str, section: str) -> str:
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{section}.chat_template = {path!r}: cannot be read: {error}") from error
    if not template.strip():  # transformers would use the model's own without a word
        raise ModelError(f"{section}.chat_template = {path!r}: the file is empty; {_ways_out(section)}")
    return template


def _control_tokens(tokenizer: Any, template: str) -> tuple[dict[str, int], dict[str, int]]:
    """Strings that only a template may turn into ids: the special tokens, and other marks of the template.

    Marks are added tokens that the template spells (`<think>`, `<tool_call>`). Further added tokens, such
    as runs of spaces or HTML tags in some vocabularies, are ordinary text.
    """
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    marks = {text: i for text, i in added.items() if text.strip() and text in template and text not in special}
    return special, marks


def _without_unknown(control_ids: set[int], tokenizer: Any) -> frozenset[int]:
    """Leave out UNK, into which rare characters turn by themselves, unless it doubles as BOS, EOS or PAD."""
    doubles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return frozenset(control_ids - ({tokenizer.unk_token_id} - doubles))


def _first_characters(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the first character of each of `strings` in a text, where they overlap too."""
    long = [re.escape(text) for text in strings if len(text) > 1]
    return re.compile(f"(?=(?:{'|'.join(long)}))(.)" if long else r"(?!)()", re.DOTALL)


def _identity(tokenizer: Any) -> dict[str, Any]:
    """What two copies of a tokenizer share, wherever they were saved and by whatever version."""
    return {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "added": sorted((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()),
        "special": {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())},
        "probe": tokenizer(PROBE)["input_ids"],
    }
