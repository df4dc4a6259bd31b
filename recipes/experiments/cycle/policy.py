"""The cyclic game, played by the real learner: a Llama whose vocabulary is the three answers and nothing else.

Its softmax is the policy over the answers, so that no probability lies elsewhere and nothing is renormalised. The
prompt is one of the three tokens and has no meaning. Win rates are exact, WINS @ pi_t, with pi_t from the learner's
own log-probabilities. There is no generator, no scorer and no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.tiny_policy import new_llama
from recipes.experiments.cycle.game import START, WINS, Matrix, Vector

if TYPE_CHECKING:
    from engine.algorithms.base import Algorithm
    from engine.config.run import LearnerConfig

PROMPT = [0]
ANSWERS = [[0], [1], [2]]
TENTHS = 10
"""Labelled pairs per two answers. WINS is in tenths, so that ten pairs represent each probability exactly."""


@dataclass(frozen=True)
class Settings:
    """How long the learner plays, and at which learning rate."""

    seed: int = 0
    iterations: int = 200
    steps: int = 30
    """Optimizer steps per iteration, each on all rows."""
    lr: float = 0.01


def sppo_rows(eta: float, policy: Vector) -> list[dict]:
    """One row of all three answers with exact targets: win rates under `policy`, baseline log Z / eta."""
    from engine.algorithms.base import row_of

    rates = WINS @ policy
    baseline = np.log(policy @ np.exp(eta * rates)) / eta
    return [row_of({"prompt_id": "game", "prompt_token_ids": PROMPT}, [0, 1, 2], ANSWERS, rates.tolist(), baseline)]


def dpo_rows(policy: Vector) -> list[dict]:
    """Ten labelled pairs for each two answers, each won as often as WINS says, whatever the policy."""
    from engine.algorithms.base import row_of

    pairs = [(i, j) for i in range(3) for j in range(3) if i != j for _ in range(round(TENTHS * WINS[i, j]))]
    return [
        row_of({"prompt_id": f"pair-{n}", "prompt_token_ids": PROMPT}, [i, j], [ANSWERS[i], ANSWERS[j]], [1.0, 0.0])
        for n, (i, j) in enumerate(pairs)
    ]


def write_start(folder: Path, seed: int) -> Path:
    """Write a Llama of one random layer whose policy is START, by a head that makes the logits log START."""
    import torch

    model = new_llama(
        seed,
        vocab_size=len(START),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        max_position_embeddings=16,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    with torch.no_grad():
        state = model.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        model.lm_head.weight.copy_(torch.outer(torch.tensor(np.log(START)).float(), state / state.square().sum()))
    model.save_pretrained(folder)
    return folder


def play(folder: Path, algorithm: Algorithm, rows_for: Callable[[Vector], list[dict]], settings: Settings) -> Matrix:
    """[iterations + 1, 3] policies of self-play by actors.learner.learner.Learner, one rank, in this process.

    Every iteration opens the folder that the iteration before wrote, as a run does. Call it in a process of its
    own: the learner joins a process group and sets the environment for it.
    """
    import pyarrow as pa
    from transformers.utils import logging

    from actors.learner.learner import Learner
    from engine.config.run import ModelConfig
    from engine.schema import REF_LOGPS, SELECTED, append, conform

    logging.disable_progress_bar()
    learner = Learner(
        _learner_config(len(rows_for(START)), settings),
        ModelConfig(path=str(folder), dtype="float32"),
        algorithm,
        seed=settings.seed,
    )
    learner.join(*learner.rendezvous(), timeout_s=120.0)
    learner.open(str(write_start(folder / "000", settings.seed)))
    policies = [_policy(learner.token_logps([PROMPT] * 3, ANSWERS))]
    for iteration in range(settings.iterations):
        where = f"iteration {iteration + 1}"
        rows = conform(pa.Table.from_pylist(rows_for(policies[-1]), SELECTED), SELECTED, where)
        table = append(rows, REF_LOGPS, where, ref_logps=learner.ref_logps(rows))
        steps = learner.begin([table], iteration)["num_steps"]
        target = str(folder / f"{iteration + 1:03d}")
        policies.append(_policy(learner.save_weights(target, steps, [PROMPT] * 3, ANSWERS)))
        learner.open(target)
    learner.close()
    return np.array(policies)


def _policy(logps: list[list[float]]) -> Vector:
    return np.exp([answer[0] for answer in logps])


def _learner_config(num_rows: int, settings: Settings) -> LearnerConfig:
    """All rows in every step; the learning rate falls to 0, so that an iteration converges."""
    from engine.config.learner import LearnerConfig, OptimizerConfig, ScheduleConfig

    return LearnerConfig(
        zero_stage=0,
        batch_size=num_rows,
        micro_batch_size=num_rows,
        optimizer=OptimizerConfig(name="rmsprop", lr=settings.lr, max_grad_norm=None),
        schedule=ScheduleConfig(
            kind="linear", warmup_ratio=0.0, scheduler_total_epochs=settings.steps, stop_after_epochs=settings.steps
        ),
    )
