"""The prompt of an LLM judge: a text file that people edit, filled in so that an answer cannot pose as the prompt.

Each text from outside stands between two lines that contain a mark. The mark is derived per prompt from a hash that
includes the run's seed, so the policy cannot know it, and none of the enclosed texts contains it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from engine.config.judge import JudgeConfig
from engine.data.chats import Message
from engine.errors import ConfigError

PLACEHOLDERS = {"pairwise": ("instruction", "answer_a", "answer_b"), "pointwise": ("instruction", "answer")}
"""Placeholders that the user part must contain, by mode; each is replaced by a text between marked lines."""
TITLES = {"instruction": "instruction", "answer": "answer", "answer_a": "answer A", "answer_b": "answer B"}

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_HEADING = re.compile(r"^\[(?:system|user)\][ \t]*$", re.MULTILINE)
_LAYOUT = re.compile(r"(?:\[system\][ \t]*\n(?P<system>.*?)\n)?\[user\][ \t]*\n(?P<user>.*)", re.DOTALL)


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt file as read: an optional system part, and a user part with placeholders."""

    name: str
    system: str
    user: str

    @property
    def version(self) -> str:
        """The file's name and twelve hex digits of its text, e.g. "pairwise@0123456789ab"."""
        text = f"{self.system}\x1f{self.user}"
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def fill(self, mark: str, texts: Mapping[str, str]) -> tuple[Message, ...]:
        """The chat that asks about `texts` (by placeholder), each between two lines with `mark`.

        All are filled in one pass, so a placeholder that an answer spells stays as it is.
        """
        user = _PLACEHOLDER.sub(lambda match: _enclosed(TITLES[match[1]], texts[match[1]], mark), self.user)
        system = ({"role": "system", "content": self.system},) if self.system else ()
        return (*system, {"role": "user", "content": user})


def read_judge_prompt(config: JudgeConfig, key: str = "scorer.prompt") -> JudgePrompt:
    """Read the prompt file of a judge. Raises ConfigError naming everything that is wrong with it."""
    path = Path(config.prompt)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{key} = {config.prompt}: cannot be read: {error}"]) from error
    parts = _parts(text)
    if parts is None:
        raise ConfigError([f"{key}: {path} begins neither with a line [user] nor with [system], then [user]"])
    if problems := [*_system_problems(parts[0]), *_user_problems(parts[1], config.mode)]:
        raise ConfigError([f"{key}: {path} {problem}" for problem in problems])
    return JudgePrompt(path.stem, *parts)


def _system_problems(system: str) -> Iterator[str]:
    for name in dict.fromkeys(name for name in _PLACEHOLDER.findall(system) if name in TITLES):
        yield f"has {{{name}}} in its system part, where an outside text would read as instructions; move it to [user]"


def _user_problems(user: str, mode: str) -> Iterator[str]:
    expected, names = PLACEHOLDERS[mode], _PLACEHOLDER.findall(user)
    for name in expected:
        if name not in names:
            yield f"has no {{{name}}} in its user part, which mode = {mode} needs"
    for name in dict.fromkeys(name for name in names if name not in expected):
        near = difflib.get_close_matches(name, expected, n=1)
        hint = f"; did you mean {{{near[0]}}}?" if near else ""
        yield f"has {{{name}}}, and mode = {mode} fills in {', '.join(f'{{{other}}}' for other in expected)}{hint}"


def draw_mark(seed: int, prompt_id: str, texts: list[str]) -> str:
    """Sixteen hex digits that occur in none of `texts`; the same for the same run seed, prompt and texts."""
    names = ("\x1f".join(("judge mark", str(seed), prompt_id, str(attempt))) for attempt in count())
    marks = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16] for name in names)
    return next(mark for mark in marks if not any(mark in text.lower() for text in texts))


def _parts(text: str) -> tuple[str, str] | None:
    """(system, user) of a file; a text without headings is the user part. None where the headings are misplaced."""
    if not _HEADING.search(text):
        return "", text
    match = _LAYOUT.fullmatch(text)
    return ((match["system"] or "").strip(), match["user"].strip()) if match else None


def _enclosed(title: str, text: str, mark: str) -> str:
    return f"<<< begin {title} {mark} >>>\n{text}\n<<< end {title} {mark} >>>"
