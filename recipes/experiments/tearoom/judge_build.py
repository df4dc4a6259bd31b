"""Write the tearoom in which the policy judges itself to a folder.

    python -m recipes.experiments.tearoom.judge_build OUTPUT [--impressed]

Written to OUTPUT:

    policy/         a Llama that imitates the flawed waiter (IFT) and a judge of waiters (EFT)
    prompts.jsonl   prompts for self-play
    heldout.jsonl   prompts for evaluation
    world.json      settings and figures; written last, so it marks a complete world

With --impressed the judge that it imitates gives points for small talk. The same settings make the same world; a
complete one is kept. recipes/experiments/tearoom/judge.py describes the world.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.seeds import derive_seed
from recipes.experiments.tearoom import judge as tearoom_judge
from recipes.experiments.tearoom import world as tearoom
from recipes.experiments.tearoom.build import build_world
from recipes.experiments.tearoom.models import Figures, measure, new_policy, policy_tokenizer
from recipes.prepare.command_line import new_parser, run, settings_from
from recipes.prepare.training import conversation, sft_trainer

if TYPE_CHECKING:
    from actors.scorers.judge.prompt_file import JudgePrompt

PROMPT = "recipes/judges/tearoom.txt"
"""The judge prompt that the policy learns to answer; a run's config names the same file."""
VERSION = 1
"""To be raised when the same settings would make another world than before."""


@dataclass(frozen=True)
class Settings:
    """The options of the command line; the sets of prompts are disjoint."""

    seed: int = 0
    """Another seed: another world."""
    impressed: bool = False
    """The judge that the policy imitates gives points for small talk."""
    demonstrations: int = 3000
    """Prompts with a flawed answer, from which the policy learns to answer."""
    judgements: int = 3000
    """Prompts with a judged answer, from which the policy learns to judge."""
    judge_heldout: int = 400
    """Prompts set aside and not used."""
    epochs: float = 4.0
    """Passes over both."""
    num_layers: int = 2
    """Depth of the policy."""
    prompts: int = 2000
    """Prompts for self-play."""
    heldout: int = 200
    """Prompts for evaluation."""
    version: int = field(default=VERSION, init=False)

    @property
    def judge(self) -> tearoom_judge.Judge:
        return tearoom_judge.IMPRESSED if self.impressed else tearoom_judge.FAIR

    def split(self) -> tearoom.Split:
        return tearoom.split(
            self.seed,
            demonstrations=self.demonstrations,
            preferences=self.judgements,
            judge_heldout=self.judge_heldout,
            prompts=self.prompts,
            heldout=self.heldout,
        )


def build(folder: Path, settings: Settings) -> Figures:
    """Make the world in `folder`, or keep the complete one there, and return the figures of world.json.

    Raises DataError where `folder` holds a world of other settings.
    """
    return build_world(folder, "tearoom-judge", settings, _train)


def _train(folder: Path, split: tearoom.Split, settings: Settings) -> Figures:
    """SFT on answers and judgements together; the figures are those of held-out orders."""
    import torch

    torch.set_num_threads(1)  # one thread fixes the order of additions
    asked = judge_prompt()
    texts = [*tearoom.texts(), *tearoom_judge.texts(), _asked(asked, 0, "Good morning!", "What?")]
    tokenizer = policy_tokenizer(texts)
    rows = [*_instructions(split, settings), *_judgements(split, settings, asked)]
    random.Random(derive_seed(settings.seed, "examples")).shuffle(rows)
    trainer = sft_trainer(
        new_policy(tokenizer, settings.seed, settings.num_layers, max_positions=512),
        tokenizer,
        rows,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        max_length=256,
        seed=settings.seed,
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return {
        "policy_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "sft_examples": len(rows),
        **measure(trainer.model, tokenizer, split.heldout, settings.seed, max_new_tokens=36),
    }


def judge_prompt() -> JudgePrompt:
    """The prompt that the policy learns to answer, as a run would read it."""
    from actors.scorers.judge.prompt_file import read_judge_prompt
    from engine.config.judge import JudgeConfig, PolicyServer

    return read_judge_prompt(JudgeConfig(mode="pointwise", prompt=PROMPT, server=PolicyServer()))


def _instructions(split: tearoom.Split, settings: Settings) -> list[dict[str, Any]]:
    """IFT examples: orders and the flawed waiter's answers."""
    draw = random.Random(derive_seed(settings.seed, "demonstrations"))
    answers = (tearoom_judge.flawed_answer(order, tearoom.DEMONSTRATOR, draw) for order in split.demonstrations)
    return [conversation(order.text, answer) for order, answer in zip(split.demonstrations, answers, strict=True)]


def _judgements(split: tearoom.Split, settings: Settings, prompt: JudgePrompt) -> list[dict[str, Any]]:
    """EFT examples: questions about the crowd's answers, and the judge's replies."""
    judged = tearoom_judge.judged_answers(split.preferences, 1, settings.judge, settings.seed)
    return [
        conversation(_asked(prompt, number, order.text, answer), words)
        for number, (order, answer, words) in enumerate(judged)
    ]


def _asked(prompt: JudgePrompt, number: int, order: str, answer: str) -> str:
    """The question to a judge of this world: the filled prompt, which has no system message."""
    from actors.scorers.judge.prompt_file import draw_mark

    mark = draw_mark(number, "judgement", [order, answer])
    (message,) = prompt.fill(mark, {"instruction": order, "answer": answer})
    return message["content"]


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the figures and returns the exit code."""
    parser = new_parser("recipes.experiments.tearoom.judge_build", __doc__)
    parser.add_argument("folder", type=Path, metavar="OUTPUT", help="folder that the world is written to")
    settings, options = settings_from(parser, Settings, arguments)
    return run(build, options.folder, settings)


if __name__ == "__main__":
    sys.exit(main())
