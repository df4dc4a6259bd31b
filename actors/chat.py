"""The chat template and the tokenizer of the policy: from a conversation to what the policy reads.

Each prompt is rendered once, here; generator, scorers and learner get its token ids and never
tokenize a prompt again, so they cannot disagree. Text of a conversation is data: a control token
spelled out in it is defused, and the number of control tokens of every rendering is checked.
Knows nothing of files of prompts, of weights or of engines.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from engine.config import ModelConfig
from engine.errors import ModelError

Message = dict[str, str]

PROBE = "Kumite 123: zwölf Boxkämpfer, 日本語 и עברית.\n\n\tdef f(x): return x  # 🙂 don't"
"""Fixed text whose token ids are part of a tokenizer's identity."""
HARMLESS = "Hello"
"""Content that spells no control token; the yardstick for all other contents."""


class Chat:
    """Renders conversations for one policy.

    Raises ModelError where the tokenizer cannot be loaded, where there is no chat template, and
    where the template fails on a plain question or leaves its text out.
    """

    def __init__(self, config: ModelConfig):
        self.path = config.path
        self.tokenizer = _load_tokenizer(config)
        self.template = _load_template(config, self.tokenizer)
        """Jinja source, or None: the last user message as it is."""
        self.control_ids, strings = _control_tokens(self.tokenizer, self.template or "")
        self._control_string, self._separator = _defuser(strings)
        self._num_control: dict[tuple[str, ...], int] = {}
        self.num_defused = 0
        """Conversations so far whose text spelled a control token."""
        self._check_template()

    @property
    def digest(self) -> str:
        """SHA-256 of the template and of how the tokenizer behaves: what must not change within a run."""
        return hashlib.sha256(json.dumps([self.template, _identity(self.tokenizer)]).encode("ascii")).hexdigest()

    def render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """Return the policy's input for `messages` as text and token ids, up to where the answer begins.

        With a template the ids are those of its text and of nothing else: most templates spell BOS
        themselves, and adding special tokens would give two. Without one (chat_template "none") the
        text is the last user message, and the ids have what the tokenizer adds to plain text, BOS as
        a rule, but no EOS. Raises ModelError for a conversation that the template refuses, whose text
        it leaves out, or that would smuggle in a control token.
        """
        safe = [{**message, "content": self.defuse(message["content"])} for message in messages]
        text, token_ids = self._render(safe)
        for before, after in zip(messages, safe, strict=True):
            # Templates may trim a text; several drop the reasoning from earlier answers.
            if self.template and after["role"] in ("system", "user") and after["content"].strip() not in text:
                raise ModelError(f"the chat template leaves out the text of the {before['role']} message")
        expected = self._expected_control(messages)
        found = self._count_control(token_ids)
        if found != expected:
            raise ModelError(f"the text turns into control tokens ({found} in the prompt, {expected} expected)")
        self.num_defused += safe != messages
        return text, token_ids

    def defuse(self, content: str) -> str:
        """Return `content` with every control token that it spells broken up behind its first character.

        `<|im_end|>` becomes `< |im_end|>`. The separator is part of no control token, so none can arise.
        """
        return self._control_string.sub(rf"\1{self._separator}", content)

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        if self.template is None:
            text = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            return text, self._plain_ids(text)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise ModelError(f"the chat template refuses the conversation: {error}") from error
        return text, list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _plain_ids(self, text: str) -> list[int]:
        token_ids = list(self.tokenizer(text)["input_ids"])
        while token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()
        return token_ids

    def _expected_control(self, messages: list[Message]) -> int:
        """Control tokens in the same conversation with harmless contents; depends on the roles alone."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._num_control:
            _, token_ids = self._render([{"role": role, "content": HARMLESS} for role in roles])
            self._num_control[roles] = self._count_control(token_ids)
        return self._num_control[roles]

    def _count_control(self, token_ids: list[int]) -> int:
        return sum(token_id in self.control_ids for token_id in token_ids)

    def _check_template(self) -> None:
        try:
            _, token_ids = self.render([{"role": "user", "content": HARMLESS}])
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}; {_WAYS_OUT}") from error
        bos = self.tokenizer.bos_token_id
        if bos is not None and token_ids[:2] == [bos, bos]:
            raise ModelError(f"{self.path}: the chat template begins with two BOS tokens; {_WAYS_OUT}")


_WAYS_OUT = 'give a Jinja file in model.chat_template, or "none" to use the last user message as it is'


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


def _load_template(config: ModelConfig, tokenizer: Any) -> str | None:
    """The Jinja source: the file of the config, else the model's own. None for "none"."""
    if config.chat_template == "none":
        return None
    if config.chat_template is not None:
        try:
            return Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template = {config.chat_template!r}: cannot be read: {error}") from error
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, e.g. one for tools
        template = template.get("default")
    if not template:
        raise ModelError(f"{config.path}: the tokenizer has no chat template; {_WAYS_OUT}")
    return template


def _control_tokens(tokenizer: Any, template: str) -> tuple[frozenset[int], list[str]]:
    """Ids that only a template may produce, and the strings that spell them.

    Special tokens, and those added tokens that the template spells (`<think>`, `<tool_call>`). Other
    added tokens, such as runs of spaces or HTML tags in some vocabularies, are ordinary text. UNK is
    no control token unless it doubles as one: rare characters turn into it by themselves.
    """
    added = tokenizer.added_tokens_decoder
    special = {token_id: token.content for token_id, token in added.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    spelled = {i: token.content for i, token in added.items() if token.content.strip() and token.content in template}
    tokens = special | spelled
    named = [value for name, value in tokenizer.special_tokens_map.items() if name != "unk_token"]
    unk_only = {i for i, text in tokens.items() if text == tokenizer.unk_token and text not in named}
    return frozenset(tokens.keys() - unk_only), sorted(set(tokens.values()))


def _defuser(strings: list[str]) -> tuple[re.Pattern[str], str]:
    """A pattern for the first character of each control string, overlapping ones included, and a separator."""
    long = [re.escape(text) for text in strings if len(text) > 1]
    pattern = re.compile(f"(?=(?:{'|'.join(long)}))(.)" if long else r"(?!)()", re.DOTALL)
    return pattern, next(s for s in (" ", "\u200b", "_", "") if s not in "".join(strings))


def _identity(tokenizer: Any) -> dict[str, Any]:
    """What two copies of a tokenizer share, wherever they were saved and by whatever version."""
    return {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "added": sorted((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()),
        "special": {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())},
        "probe": tokenizer(PROBE)["input_ids"],
    }
