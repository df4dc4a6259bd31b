#!/usr/bin/env python
"""The measurements behind the README's claims: three seeds that must improve, three controls that must not.

    make proof                                  (or: python -m recipes.proof)

Each seed has its own world, start policy and PairRM. The controls share world 0 and its seed: a scorer
that knows nothing, the same PairRM with its sign turned, and a learning rate of 0. All are judged by the
hidden oracle on held-out prompts. Exit code 0 says that every claim held; runs/proof/proof.json has the
figures. An interrupted proof continues.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.config import file as config_file
from engine.errors import KumiteError
from engine.maths.evaluation import spread
from engine.report.summary import Summary, win_rate

FOLDER = Path("runs/proof")
CONFIG = "recipes/configs/demo.yaml"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Trial:
    """One run of the proof, and what is claimed of its last policy's win rate against the start."""

    name: str
    world: int
    changes: tuple[str, ...]
    claim: str

    def holds(self, low: float, high: float) -> bool:
        """Whether the 95 % interval [low, high] bears the claim out."""
        return {"improves": low > 0.55, "does not improve": low <= 0.5, "gets worse": high < 0.5}[self.claim]


def trials() -> list[Trial]:
    random = ("scorer.kind=rule", "scorer.function=recipes.worlds.tearoom:random_scorer", "scorer.cpus=0.25")
    seeds = [Trial(f"seed-{seed}", seed, (f"seed={seed}",), "improves") for seed in SEEDS]
    return [
        *seeds,
        Trial("random-scorer", 0, random, "does not improve"),
        Trial("inverted-pairrm", 0, (f"scorer.path={FOLDER}/world-0/pairrm_inverted",), "gets worse"),
        Trial("learning-rate-0", 0, ("learner.optimizer.lr=0",), "does not improve"),
    ]


def overrides(trial: Trial) -> list[str]:
    """The demo's config, in the trial's world, under the trial's name."""
    world = FOLDER / f"world-{trial.world}"
    paths = [f"model.path={world}/policy", f"prompts.source={world}/prompts.jsonl"]
    paths += [f"scorer.path={world}/pairrm"] if "scorer.kind=rule" not in trial.changes else []
    paths += [f"evaluation.prompts.source={world}/heldout.jsonl", f"output={FOLDER}", f"name={trial.name}"]
    return [*paths, *trial.changes]


def run(trial: Trial, console: Console) -> Summary:
    """Run or resume a trial and return what its report says."""
    from cluster.job import Job
    from recipes.worlds.tearoom_build import Settings, build

    build(FOLDER / f"world-{trial.world}", Settings(seed=trial.world))
    with Job(config_file.load(CONFIG, overrides(trial)), console) as job:
        job.play()
        job.report("finished")
        return job.summary("finished")


def table(results: dict[str, Summary]) -> Table:
    """One row per trial: the win rate against the start after each iteration, lengths, claim and verdict."""
    shown = Table(title="win rate against the start, by the oracle, with 95 % intervals over 300 held-out prompts")
    for heading in ("run", "iteration 1", "iteration 2", "iteration 3", "tokens", "claim", "holds"):
        shown.add_column(heading)
    for trial in trials():
        rows = results[trial.name].iterations
        rates = [row.win_rate_start for row in rows]
        cells = [win_rate(rate) for rate in rates if rate]
        holds = trial.holds(rates[-1].low, rates[-1].high)
        shown.add_row(trial.name, *cells, f"{rows[-1].mean_length:.1f}", trial.claim, "yes" if holds else "NO")
    return shown


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: dict[str, Summary] = {}
    try:
        for trial in trials():
            console.rule(trial.name)
            results[trial.name] = run(trial, console)
    except KumiteError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    console.print(table(results))
    last = {trial.name: results[trial.name].iterations[-1].win_rate_start for trial in trials()}
    across = spread([last[f"seed-{seed}"].value for seed in SEEDS])
    console.print(f"three seeds: {across.mean:.3f}, 95 % t-interval [{across.low:.3f}, {across.high:.3f}]")
    figures = {name: asdict(summary)["iterations"] for name, summary in results.items()}
    content = {"trials": figures, "across_seeds": asdict(across)}
    (FOLDER / "proof.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(trial.holds(last[trial.name].low, last[trial.name].high) for trial in trials()) else 1


if __name__ == "__main__":
    sys.exit(main())
