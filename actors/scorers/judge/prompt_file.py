"""The prompt of an LLM judge: a text file that people edit, filled in so that an answer stays an answer.

Each text from outside stands between two lines that bear a mark. The mark is drawn per prompt from a hash that
includes the run's seed, so the policy cannot know it, and no text within contains it. Knows nothing of models,
tables or verdicts.
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
"""What the user part of a prompt must name, by mode; each is filled with a text between marked lines."""
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

        Filled in one pass, so a placeholder spelt in an answer stays as it is.
        """
        user = _PLACEHOLDER.sub(lambda found: _enclosed(TITLES[found[1]], texts[found[1]], mark), self.user)
        system = ({"role": "system", "content": self.system},) if self.system else ()
        return (*system, {"role": "user", "content": user})


def read_judge_prompt(config: JudgeConfig, key: str = "scorer.prompt") -> JudgePrompt:
    """Read the prompt file of a judge. Raises ConfigError with everything that is wrong with it, by placeholder."""
    path = Path(config.prompt)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{key} = {config.prompt}: cannot be read: {error}"]) from error
    parts = _parts(text)
    if parts is None:
        raise ConfigError([f"{key}: {path} begins neither with a line [user] nor with [system], then [user]"])
    if problems := [*_wrong_in_system(parts[0]), *_wrong_in_user(parts[1], config.mode)]:
        raise ConfigError([f"{key}: {path} {problem}" for problem in problems])
    return JudgePrompt(path.stem, *parts)


def _wrong_in_system(system: str) -> Iterator[str]:
    for name in dict.fromkeys(name for name in _PLACEHOLDER.findall(system) if name in TITLES):
        yield f"has {{{name}}} in its system part, where a text would speak with authority"


def _wrong_in_user(user: str, mode: str) -> Iterator[str]:
    wanted, found = PLACEHOLDERS[mode], _PLACEHOLDER.findall(user)
    for name in wanted:
        if name not in found:
            yield f"has no {{{name}}} in its user part, which mode = {mode} needs"
    for name in dict.fromkeys(name for name in found if name not in wanted):
        near = difflib.get_close_matches(name, wanted, n=1)
        hint = f"; did you mean {{{near[0]}}}?" if near else ""
        yield f"has {{{name}}}, and mode = {mode} fills in {', '.join(f'{{{w}}}' for w in wanted)}{hint}"


def draw_mark(seed: int, prompt_id: str, texts: list[str]) -> str:
    """Sixteen hex digits that occur in none of `texts`; the same for the same run seed, prompt and texts."""
    names = ("\x1f".join(("judge mark", str(seed), prompt_id, str(attempt))) for attempt in count())
    marks = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16] for name in names)
    return next(mark for mark in marks if not any(mark in text.lower() for text in texts))


def _parts(text: str) -> tuple[str, str] | None:
    """(system, user) of a file, where a text without headings is the user's; None if headings stand astray."""
    if not _HEADING.search(text):
        return "", text
    found = _LAYOUT.fullmatch(text)
    return ((found["system"] or "").strip(), found["user"].strip()) if found else None


def _enclosed(title: str, text: str, mark: str) -> str:
    return f"<<< begin {title} {mark} >>>\n{text}\n<<< end {title} {mark} >>>"
