"""Self-rewarding in the tearoom: a policy that can judge a little gets better by its own judgement.

And the failure that the literature knows: where its judge is impressed by small talk, answers grow longer from
round to round; with length control by quality tiers (arXiv 2407.19594) they grow less.
"""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from recipes.experiments.trials import FOLDER, Outcome, Trial, across, in_words, outcome, run

CONFIG = "recipes/configs/demo_self_rewarding.yaml"
SEEDS = (0, 1, 2)
INFLATED, CONTROLLED = "impressed", "impressed-length-control"
LENGTH_TIER = 0.4
"""rho of Meta-Rewarding's last round."""


def _trial(name: str, world: str, claim: str, changes: tuple[str, ...] = ()) -> Trial:
    folder = FOLDER / f"judge-world-{world}"
    paths = (f"model.path={folder}/policy", f"prompts.source={folder}/prompts.jsonl")
    return Trial(name, CONFIG, (*paths, f"evaluation.prompts.source={folder}/heldout.jsonl", *changes), claim)


def trials() -> list[Trial]:
    seeds = [_trial(f"self-rewarding-{seed}", "fair", "improves", (f"seed={seed}",)) for seed in SEEDS]
    tier = (f"algorithm.length_tier={LENGTH_TIER}",)
    return [*seeds, _trial(INFLATED, "impressed", "is reported"), _trial(CONTROLLED, "impressed", "is reported", tier)]


def self_rewarding(console: Console) -> Outcome:
    from recipes.experiments.tearoom.judge_build import Settings, build

    start = {}
    for name, impressed in (("fair", False), ("impressed", True)):
        figures = build(FOLDER / f"judge-world-{name}", Settings(impressed=impressed))
        start[name] = figures["start_tokens_sampled"]
    results = {trial.name: run(trial, console) for trial in trials()}
    lengths = {name: results[name].iterations[-1].mean_length or 0.0 for name in (INFLATED, CONTROLLED)}
    grew, kept = (lengths[name] / start["impressed"] for name in (INFLATED, CONTROLLED))
    lines = [
        in_words("self-rewarding, three seeds of a run", across(results, [f"self-rewarding-{s}" for s in SEEDS])),
        f"impressed judge: answers are {grew:.2f} times as long as the start's ({start['impressed']:.1f} tokens), with "
        f"length control {kept:.2f} times",
    ]
    found = outcome("Self-rewarding in the tearoom", trials(), results, lines)
    return replace(found, holds=found.holds and grew > 1.15 and kept < grew)
