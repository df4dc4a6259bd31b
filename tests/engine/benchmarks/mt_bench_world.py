"""A small MT-Bench: four questions in FastChat's form, and a judge that counts the letter "a" in answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.factories import Factory, make_judge
from actors.fakes import FakeEngines
from actors.scorers.judge.judge import Question, Reply
from actors.scorers.judge.scorer import JudgeScorer
from engine.config.judge import JudgeConfig
from engine.config.scorer import ScorerConfig
from engine.loop.roles import Scorer

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {something}.", "Make it shorter."]},
    {"question_id": 82, "category": "writing", "turns": ["Write more.", "Stop."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "Double it."], "reference": ["4", "8"]},
    {"question_id": 7, "category": "generic", "turns": ["One turn only."]},
]
REFERENCES = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["4.", "8."]}]}]
BASELINE = [
    {"question_id": question["question_id"], "choices": [{"index": 0, "turns": ["aa"] * len(question["turns"])}]}
    for question in QUESTIONS
]
JUDGE = {
    "kind": "judge",
    "server": {"kind": "vllm", "path": "nowhere"},
    "prompt": str(Path(__file__).parents[3] / "recipes" / "judges" / "pairwise.txt"),
}

_ANSWER = re.compile(r"\[The Start of Assistant(?: (\w))?'s Answer\]\n(.*?)\n\[The End of Assistant", re.DOTALL)
_TURN = re.compile(r"### Assistant (\w):\n(.*?)\n\n(?:### User:\n|<\|The End)", re.DOTALL)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    """`evaluation.benchmarks.mt_bench` over the files of the small world, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "questions": write_jsonl(folder / "question.jsonl", QUESTIONS),
        "references": write_jsonl(folder / "gpt-4.jsonl", REFERENCES),
    }
    if changes.get("mode") == "pairwise":
        files["baseline"] = write_jsonl(folder / "twice_a.jsonl", BASELINE)
    return files | {"max_new_tokens": 4, "max_prompt_tokens": 60} | changes


class LetterJudge:
    """A ServedModel: rates the last answer by its letters "a", and cannot rate an empty one."""

    id = "fake:letters"

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def start(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def spent(self) -> dict[str, int]:
        return {}

    def reply(self, questions: list[Question]) -> list[Reply]:
        self.questions += questions
        return [Reply((self._said(question.messages[-1]["content"]),)) for question in questions]

    def _said(self, text: str) -> str:
        shown = dict(_ANSWER.findall(text) or _TURN.findall(text))  # of several turns the last
        counts = {side: answer.count("a") for side, answer in shown.items()}
        if {"A", "B"} <= counts.keys():
            return "[[A]]" if counts["A"] > counts["B"] else "[[B]]" if counts["A"] < counts["B"] else "[[C]]"
        (answer,) = shown.values()
        return f"It holds {answer!r}. Rating: [[{1 + answer.count('a')}]]" if answer else "I cannot say."


@dataclass(frozen=True)
class LetterJudgeFactory:
    config: JudgeConfig
    seed: int

    def build(self, index: int) -> Scorer:
        scorer = JudgeScorer(make_judge(self.config, self.seed))
        scorer._model = LetterJudge()
        return scorer


class JudgedEngines(FakeEngines):
    """Fake policies, and the letter judge in place of every judge with a model of its own."""

    def scorer(self, config: ScorerConfig, seed: int) -> Factory[Scorer]:
        return LetterJudgeFactory(config, seed) if isinstance(config, JudgeConfig) else super().scorer(config, seed)
