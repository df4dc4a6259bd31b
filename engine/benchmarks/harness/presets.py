"""Published tables of lm-evaluation-harness: their tasks, settings and headline numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.config.benchmarks import HarnessConfig


@dataclass(frozen=True)
class Entry:
    """One line of a table: a task or group of the harness."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the harness's task files that replace the task's own."""
    files: dict[str, str] = field(default_factory=dict)
    """{split: path} in place of its data set on the hub."""
    headline: str = ""
    """Its number in the table, "metric" or "metric,filter" of the harness."""
    required: bool = False
    """Whether it must have data; else the table says that it was not measured."""


OPEN_LLM_LEADERBOARD = (
    Entry("arc_challenge", {"num_fewshot": 25, "fewshot_split": "train"}, headline="acc_norm"),
    Entry("truthfulqa_mc2", {"num_fewshot": 0}, headline="acc"),
    Entry("winogrande", {"num_fewshot": 5, "fewshot_split": "train"}, headline="acc"),
    Entry("gsm8k", {"num_fewshot": 5}, headline="exact_match,strict-match"),
    Entry("hellaswag", {"num_fewshot": 10, "fewshot_split": "train"}, headline="acc_norm"),
    Entry("mmlu", {"num_fewshot": 5}, headline="acc"),
)
"""The six tasks of the Open LLM Leaderboard (version 1) and of the cards of UCLA-AGI's SPPO models, in their order;
settings as in the group `openllm` of lm-eval 0.4.13 (lm_eval/tasks/benchmarks/openllm.yaml)."""

OPEN_LLM_LEADERBOARD_2 = (
    Entry("leaderboard_ifeval", headline="inst_level_strict_acc"),
    Entry("leaderboard_bbh", headline="acc_norm"),
    Entry("leaderboard_math_hard", headline="exact_match"),
    Entry("leaderboard_gpqa", headline="acc_norm"),
    Entry("leaderboard_musr", headline="acc_norm"),
    Entry("leaderboard_mmlu_pro", headline="acc"),
)
"""Version 2, as in the group `leaderboard` of lm-eval 0.4.13. Its own average is of rescaled numbers."""

PRESETS = {"open_llm_leaderboard": OPEN_LLM_LEADERBOARD, "open_llm_leaderboard_2": OPEN_LLM_LEADERBOARD_2}
AVERAGED = {"open_llm_leaderboard"}
"""Presets whose table ends with the mean of the headline numbers."""


def entries(config: HarnessConfig) -> list[Entry]:
    """The lines of a config's table: those of its preset, then its own tasks."""
    preset = PRESETS[config.preset] if config.preset else ()
    named = [entry if isinstance(entry, dict) else {"task": entry} for entry in config.tasks]
    own = [Entry(task["task"], {k: v for k, v in task.items() if k != "task"}, required=True) for task in named]
    return [
        Entry(e.name, e.settings, config.files(e.name), e.headline, e.required or e.name in config.data)
        for e in (*preset, *own)
    ]
