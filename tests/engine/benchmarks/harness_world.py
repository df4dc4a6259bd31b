"""Small tasks of lm-evaluation-harness, and fakes that have a tokenizer, for tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from actors.factories import Chat
from actors.fakes import FakeChat, FakeEngines
from actors.tiny_policy import CHAT_TEMPLATE, SPECIAL_TOKENS, TINY_ROLES, TINY_TOKENS, byte_level_tokenizer, learn_bpe
from engine.config.benchmarks import HarnessConfig
from engine.config.run import ModelConfig

WORDS = [{"question": f"Which word has {n} letters?", "choices": ["a" * n, "bee", "bread"], "label": 0} for n in (1, 2)]
CHOICE = """
task: word_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: label
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean}}, {{metric: acc_norm, aggregation: mean}}]
metadata: {{version: 1}}
"""
WRITING = """
task: word_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: "{{{{choices[0] * 3}}}}"
repeats: {repeats}
generation_kwargs: {kwargs}
metric_list: [{{metric: exact_match, aggregation: mean}}]
metadata: {{version: 1}}
"""
TEXT = """
task: word_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
metadata: {{version: 1}}
"""


class Tokenizing(FakeChat):
    """The fake chat with a byte-level tokenizer."""

    template = CHAT_TEMPLATE

    def __init__(self) -> None:
        self.tokenizer = tokenizer()


class TokenizingEngines(FakeEngines):
    def chat(self, model: ModelConfig) -> Chat:
        return Tokenizing()


@cache
def tokenizer() -> Any:
    return byte_level_tokenizer(
        learn_bpe((), 261, SPECIAL_TOKENS), TINY_TOKENS, TINY_ROLES, CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )


def write_tasks(folder: Path, repeats: int = 1, kwargs: str = "{until: [], max_gen_toks: 4}") -> dict[str, str]:
    """The paths of a task of each kind, by its name."""
    rows = folder / "words.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in WORDS))
    paths = {}
    for name, text in {"word_choice": CHOICE, "word_writing": WRITING, "word_text": TEXT}.items():
        path = folder / f"{name}.yaml"
        path.write_text(text.format(file=rows, repeats=repeats, kwargs=kwargs))
        paths[name] = str(path)
    return paths


def harness_config(folder: Path, *names: str, **changes: Any) -> HarnessConfig:
    """The tasks of these names, or all."""
    paths = write_tasks(folder)
    return HarnessConfig(tasks=[paths[name] for name in names or paths], **changes)
