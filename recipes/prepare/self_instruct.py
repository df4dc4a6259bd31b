"""New prompts from old ones, by few-shot self-instruct (arXiv 2212.10560), as self-rewarding uses them.

    python -m recipes.prepare.self_instruct OUTPUT.jsonl --model MODEL --seeds seeds.jsonl --num 5000

A fixed model (arXiv 2401.10020 uses a chat model of 70 billion parameters, not the policy) reads six seed prompts and
two of its own, drawn again for each request, and writes one more. A new prompt is kept if no word asks for what a text
model cannot do, if it has 3 to 150 words, and if its ROUGE-L F-measure with every prompt so far is below 0.7. OUTPUT
gets one {"prompt": ...} per line, and OUTPUT with the suffix .json the settings and the counts per filter. Neither is
ever overwritten.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config.run import GeneratorConfig, ModelConfig, SamplingConfig
from engine.errors import DataError
from engine.seeds import derive_seed
from recipes.prepare.command_line import new_parser, refuse_existing, run, settings_from, write_json, write_jsonl

KEYWORDS = frozenset(
    {"image", "images", "graph", "graphs", "picture", "pictures", "photo", "photos", "file", "files", "map", "maps"}
    | {"draw", "plot", "chart", "diagram", "flowchart", "video", "audio", "music", "attachment"}
)
"""Self-Instruct's words for what a text model cannot see or make."""
WORD = re.compile(r"\w+")
OPENING = "Here are tasks that people gave to an assistant. Write one more of a new kind, and nothing else.\n\n"
PROPOSALS_PER_ROUND = 64


@dataclass(frozen=True)
class Settings:
    """The options of the command line; the defaults are the paper's."""

    model: str
    """Folder or hub id of the model that writes the prompts."""
    seeds: str
    """JSON lines with a seed prompt each, as `prompt` or `instruction`."""
    num: int = 1000
    """New prompts to collect."""
    seed_shots: int = 6
    """Seed prompts that a request shows."""
    own_shots: int = 2
    """New prompts that a request shows, as far as there are any."""
    temperature: float = 0.6
    """Sampling temperature."""
    top_p: float = 0.9
    """Nucleus sampling: probability mass of the tokens that are sampled from."""
    max_prompt_tokens: int = 2048
    """Room for the examples of a request; the model's context must hold this and --max-new-tokens."""
    max_new_tokens: int = 256
    """Length of a reply."""
    max_similarity: float = 0.7
    """A prompt is kept if its ROUGE-L F-measure with every other prompt is below this."""
    min_words: int = 3
    """Fewest words of a prompt."""
    max_words: int = 150
    """Most words of a prompt."""
    dtype: str = "bfloat16"
    """The model's dtype in vLLM."""
    chat_template: str | None = None
    """Jinja file to use instead of the model's chat template."""
    max_rounds: int = 1000
    """Rounds of 64 requests after which collecting is given up."""
    seed: int = 0
    """Another seed: other requests and other replies."""


class Pool:
    """The prompts so far, and how many were refused."""

    def __init__(self, seeds: Sequence[str], settings: Settings):
        self._settings = settings
        self.seeds, self.own = list(seeds), list[str]()
        self.counts: Counter[str] = Counter()
        self._words = [_words(seed) for seed in seeds]

    def offer(self, text: str) -> bool:
        """Add `text` unless a filter refuses it, and count the outcome; return whether it was added."""
        words = _words(text)
        reason = self._refusal(text, words)
        self.counts[reason or "kept"] += 1
        if reason is None:
            self.own.append(text)
            self._words.append(words)
        return reason is None

    def _refusal(self, text: str, words: list[str]) -> str | None:
        settings = self._settings
        if not settings.min_words <= len(words) <= settings.max_words:
            return "length"
        if not text[0].isalnum():
            return "opening"
        if KEYWORDS & set(words):
            return "keyword"
        return "similar" if self._nearest(words) >= settings.max_similarity else None

    def _nearest(self, words: list[str]) -> float:
        return max((rouge_l(words, other) for other in self._words), default=0.0)

    def shots(self, draw: random.Random) -> list[str]:
        """Examples for one request: seeds, then own prompts as far as there are any."""
        own = draw.sample(self.own, min(self._settings.own_shots, len(self.own)))
        return [*draw.sample(self.seeds, self._settings.seed_shots), *own]


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """ROUGE-L F-measure in [0, 1] of two lists of words: 2 * longest common subsequence / words in both."""
    from rapidfuzz.distance import LCSseq

    return 2.0 * LCSseq.similarity(one, other) / (len(one) + len(other)) if one or other else 1.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def request(shots: Sequence[str]) -> str:
    """The request to the model: numbered tasks, and the number of the task to write."""
    tasks = "".join(f"Task {number}: {text}\n" for number, text in enumerate(shots, start=1))
    return f"{OPENING}{tasks}Task {len(shots) + 1}:"


def cleaned(text: str) -> str:
    """The first task in a reply."""
    text = re.split(r"\bTask \d+:", text.strip().removeprefix("Task").strip())[0]
    return re.sub(r"^\s*\d+[:.]\s*", "", text).strip()


Write = Callable[[list[str], list[int]], list[str]]
"""(requests, seeds) -> replies."""


def collect(pool: Pool, settings: Settings, write: Write) -> None:
    """Ask for prompts until there are `settings.num`. Raises DataError after `settings.max_rounds` rounds."""
    for number in range(settings.max_rounds):
        if len(pool.own) >= settings.num:
            return
        seeds = [derive_seed(settings.seed, "self-instruct", number, i) for i in range(PROPOSALS_PER_ROUND)]
        requests = [request(pool.shots(random.Random(seed))) for seed in seeds]
        for reply in write(requests, seeds):
            if len(pool.own) < settings.num:
                pool.offer(cleaned(reply))
    if len(pool.own) < settings.num:
        raise DataError(f"only {len(pool.own)} of {settings.num} prompts after {settings.max_rounds} rounds: "
                        f"{dict(pool.counts)}; use another model or raise --max-similarity")  # fmt: skip


def vllm_writer(settings: Settings) -> Write:
    """A function that replies with vLLM."""
    from actors.chat import Chat
    from actors.vllm_engine import SampleRequest, VLLMEngine

    model = ModelConfig.model_validate(
        {"path": settings.model, "dtype": settings.dtype, "chat_template": settings.chat_template}
    )
    sampling = SamplingConfig(
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
        temperature=1.0,
        top_p=settings.top_p,
    )
    chat = Chat(model)
    engine = VLLMEngine(settings.model, GeneratorConfig(), model, sampling, settings.seed)

    def write(requests: list[str], seeds: list[int]) -> list[str]:
        ids = [chat.render([{"role": "user", "content": text}])[1] for text in requests]
        asked = [SampleRequest(i, 1, seed, settings.temperature) for i, seed in zip(ids, seeds, strict=True)]
        return [answers[0].text for answers in engine.sample(asked)]

    return write


def read_seeds(path: Path, needed: int) -> list[str]:
    """The `prompt` or `instruction` of each line. Raises DataError naming every line without one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--seeds {path}: {error}; expected JSON lines with `prompt` or `instruction`") from error
    texts = [row.get("prompt") or row.get("instruction") if isinstance(row, dict) else None for row in rows]
    bad = [number for number, text in enumerate(texts, start=1) if not isinstance(text, str) or not text.strip()]
    if bad or len(texts) < needed:
        raise DataError(f"--seeds {path}: {len(texts)} rows, of which {bad or 'none'} (counted from 1) hold no text in "
                        f"`prompt` or `instruction`; expected at least {needed} with one")  # fmt: skip
    return [str(text) for text in texts]


def write(output: Path, settings: Settings) -> str:
    """Write settings and counts, then OUTPUT; return a summary. Raises DataError where one of the files exists."""
    counts = output.with_suffix(".json")
    refuse_existing(output, counts)
    pool = Pool(read_seeds(Path(settings.seeds), settings.seed_shots), settings)
    collect(pool, settings, vllm_writer(settings))
    write_json(counts, {"settings": asdict(settings), "counts": dict(pool.counts)})
    write_jsonl(output, ({"prompt": text} for text in pool.own))
    return f"{len(pool.own)} prompts in {output}; {dict(pool.counts)}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the counts and returns the exit code."""
    parser = new_parser("recipes.prepare.self_instruct", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT.jsonl", help="file that the prompts are written to")
    settings, options = settings_from(parser, Settings, arguments)
    return run(write, options.output, settings)


if __name__ == "__main__":
    sys.exit(main())
