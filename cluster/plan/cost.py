"""Time and money of a run before it starts, from what an earlier run measured.

Each stage's busy time is scaled by its work and its replicas. An iteration then takes

    the slowest stage (disaggregated) or all stages one after the other (colocated)
    + the optimizer steps + the rest, which is as long as it was: loading weights, saving, waiting for the first shard

Answers are taken to be as long as they were. Machines and models must be the same: another model needs a calibration of
its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from actors.scorers.judge.prompt_file import read_judge_prompt
from cluster.plan import estimates
from engine.config.judge import JudgeConfig, OpenAIServer
from engine.config.load import load
from engine.config.run import RunConfig
from engine.errors import PlanError
from engine.metrics.progress import duration
from engine.metrics.trackers import FILE_NAME, Record, read_metrics
from engine.schema import SCORES
from engine.store.reader import RunReader

CHARACTERS_PER_TOKEN = 4.0
"""Of a remote judge's questions and replies; English text in the tokenizers of large services."""
EVALUATION = ("heldout_completions", "heldout_win_rates", "heldout_start_logps")
LEARN = "learn"


@dataclass(frozen=True)
class Rates:
    """What an earlier run measured."""

    folder: Path
    config: RunConfig
    startup: float
    """Seconds from its start to its first iteration: engines, prompts, the start policy's held-out answers."""
    iterations: tuple[Record, ...]
    """The metrics of its iterations that were not interrupted."""

    def of(self, t: int) -> Record:
        """What iteration `t`, counted from 0, is predicted from: the first, which starts engines, or the last."""
        return self.iterations[0] if t == 0 else self.iterations[-1]


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds and money of a run."""

    source: str
    startup: float
    iterations: tuple[float, ...]
    stages: Mapping[str, float]
    """{stage: busy seconds in all iterations}."""
    cluster_cost: float | None
    """By cluster.cost_per_hour; None without it."""
    judge_usd: float | None
    """By a remote judge's prices; None without them."""

    @property
    def seconds(self) -> float:
        return self.startup + sum(self.iterations)

    def lines(self) -> list[str]:
        """For the plan."""
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.stages.items() if seconds >= 0.5)
        parts = [f"{duration(self.seconds)} in all, by the rates of {self.source}"]
        parts.append(f"start {duration(self.startup)}, iterations {', '.join(map(duration, self.iterations))}")
        parts.append(f"busy: {stages}; stages overlap")
        if self.cluster_cost is not None:
            parts.append(f"cost: {self.cluster_cost:,.2f} at cluster.cost_per_hour")
        if self.judge_usd is not None:
            parts.append(
                f"judge: {self.judge_usd:,.2f} USD at the server's prices, taking {CHARACTERS_PER_TOKEN:g} characters "
                f"for a token"
            )
        return parts


def read_rates(folder: Path) -> Rates:
    """Read an earlier run. Raises PlanError if no iteration of it was measured without interruption."""
    records = read_metrics(folder / FILE_NAME)
    iterations = [r for r in records if r["kind"] == "iteration" and "time/wall" in r]
    if not iterations or not (folder / "config.yaml").is_file():
        raise PlanError(f"{folder}: no iteration was measured there; name a run that finished at least one")
    started = json.loads((folder / "run.json").read_text(encoding="utf-8"))["started"]
    begin = _seconds(iterations[0]["time"]) - iterations[0]["time/wall"]
    return Rates(folder, load(folder / "config.yaml"), begin - _seconds(started), tuple(iterations))


def predict(config: RunConfig, rates: Rates) -> Prediction:
    """Predict `config` from an earlier run. Raises PlanError where the number of prompts is not known."""
    prompts = estimates.prompts_per_iteration(config)
    if prompts is None:
        raise PlanError("the time cannot be predicted: the number of prompts is not known; set prompts.expected")
    stages: dict[str, float] = {}
    walls = []
    for t in range(config.iterations):
        measured = rates.of(t)
        before = {key.split("/")[1]: value for key, value in measured.items() if key.endswith("/busy")}
        after = {
            stage: busy * _factor(stage, config, rates.config, prompts, measured) for stage, busy in before.items()
        }
        walls.append(_wall(after, config) + measured["time/wall"] - _wall(before, rates.config))
        for stage, busy in after.items():
            stages[stage] = stages.get(stage, 0.0) + busy
    hours = (rates.startup + sum(walls)) / 3600.0
    price = config.cluster.cost_per_hour
    return Prediction(
        source=str(rates.folder),
        startup=rates.startup,
        iterations=tuple(walls),
        stages=stages,
        cluster_cost=None if price is None else price * hours,
        judge_usd=_judge_usd(config, rates, prompts),
    )


def _wall(busy: Mapping[str, float], config: RunConfig) -> float:
    """Seconds of an iteration in which its stages and the learner work."""
    training = [seconds for stage, seconds in busy.items() if stage not in (LEARN, "prepare", "save", *EVALUATION)]
    heldout = [busy.get(stage, 0.0) for stage in EVALUATION]
    combine = sum if config.cluster.placement == "colocated" or config.cluster.backend == "local" else max
    return combine(training or [0.0]) + combine(heldout) + busy.get(LEARN, 0.0)


def _factor(stage: str, config: RunConfig, old: RunConfig, prompts: int, measured: Record) -> float:
    """How many times as long a stage is busy as it was."""
    before = _work(stage, old, int(measured.get("select/prompts", prompts)))
    after = _work(stage, config, prompts)
    return (after / before if before else 1.0) * _replicas(stage, old) / _replicas(stage, config)


def _work(stage: str, config: RunConfig, prompts: int) -> float:
    """The work of a stage in one iteration, in units of its own; 1 where it does not depend on the config."""
    k = config.sampling.num_samples
    evaluation = config.evaluation
    heldout = estimates.count_prompts(evaluation.prompts) if evaluation and evaluation.prompts else None
    m = evaluation.num_samples if evaluation else 1
    amounts: dict[str, float] = {
        "completions": prompts * k,
        "start_completions": prompts * k,
        "scores": estimates.num_verdicts(config, prompts, k)[0],
        "previous_scores": estimates.num_verdicts(config, prompts, k)[0],
        "agreement": prompts * k * (k - 1),
        "selected": prompts,
        "ref_logps": prompts,
        LEARN: estimates.max_steps(config.learner, prompts) * config.learner.batch_size,
        "heldout_completions": (heldout or 1) * m,
        "heldout_start_logps": (heldout or 1) * m,
        "heldout_win_rates": (heldout or 1) * m**2,
    }
    return amounts.get(stage, 1.0)


def _replicas(stage: str, config: RunConfig) -> float:
    role = {
        "completions": "generator",
        "start_completions": "generator",
        "heldout_completions": "generator",
        "heldout_start_logps": "generator",
        "scores": config.scoring_role,
        "previous_scores": config.scoring_role,
        "agreement": config.evaluating_role,
        "heldout_win_rates": config.evaluating_role,
    }.get(stage)
    sections = {str(name): section for name, section in config.pools.items()}
    return sections[role].num_replicas if role in sections else 1.0


def _judge_usd(config: RunConfig, rates: Rates, prompts: int) -> float | None:
    """Money for a remote judge's verdicts in training, by the texts that the earlier run had."""
    judge = config.scorer
    if not isinstance(judge, JudgeConfig) or not isinstance(judge.server, OpenAIServer):
        return None
    price_in, price_out = judge.server.usd_per_million_input_tokens, judge.server.usd_per_million_output_tokens
    if price_in is None or price_out is None:
        return None
    asked, replied = _judge_characters(rates, judge)
    verdicts = estimates.num_verdicts(config, prompts, config.sampling.num_samples)[0] * config.iterations
    return verdicts * (asked * price_in + replied * price_out) / CHARACTERS_PER_TOKEN / 1e6


def _judge_characters(rates: Rates, judge: JudgeConfig) -> tuple[float, float]:
    """Mean characters of one question and of one reply in the earlier run."""
    run = RunReader(rates.folder)
    rows = [row for table in run.tables(0, "scores", SCORES) for row in table.to_pylist()]
    if not rows:
        raise PlanError(f"{rates.folder}: no answers were scored there, so the judge's cost cannot be predicted")
    prompts = [sum(len(message["content"]) for message in row["messages"]) for row in rows]
    answers = [len(answer) for row in rows for answer in row["completions"]]
    replies = [len(verdict["text"]) for row in rows for verdict in row["verdicts"]]
    shown = 1 if judge.mode == "pointwise" else 2
    template = len(read_judge_prompt(judge).system + read_judge_prompt(judge).user)
    return template + _mean(prompts) + shown * _mean(answers), _mean(replies or [judge.max_new_tokens])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
