"""SPPO, iterative DPO and SPIN in the tearoom: three seeds each that must improve, three controls that must not.

Each seed has its own world, start policy and PairRM. The controls share world 0 and its seed: a scorer that
knows nothing, the same PairRM with its sign turned, and a learning rate of 0. All are judged by the hidden
oracle on held-out prompts.
"""

from __future__ import annotations

from rich.console import Console

from recipes.experiments.trials import FOLDER, Outcome, Trial, across, in_words, outcome, run

SEEDS = (0, 1, 2)
SPPO = "recipes/configs/demo.yaml"
DPO = "recipes/configs/demo_dpo.yaml"
SPIN = "recipes/configs/demo_spin.yaml"
RANDOM = ("scorer.kind=rule", "scorer.function=recipes.experiments.tearoom.world:random_scorer", "scorer.cpus=0.25")


def _trial(name: str, config: str, seed: int, claim: str, changes: tuple[str, ...] = ()) -> Trial:
    """A run of `config` in world `seed`."""
    world = FOLDER / f"world-{seed}"
    paths = [f"model.path={world}/policy", f"prompts.source={world}/prompts.jsonl", f"seed={seed}"]
    paths += [f"evaluation.prompts.source={world}/heldout.jsonl"]
    paths += [f"scorer.path={world}/pairrm"] if config != SPIN and "scorer.kind=rule" not in changes else []
    return Trial(name, config, (*paths, *changes), claim)


def sppo_trials() -> list[Trial]:
    seeds = [_trial(f"seed-{seed}", SPPO, seed, "improves") for seed in SEEDS]
    inverted = (f"scorer.path={FOLDER}/world-0/pairrm_inverted",)
    return [
        *seeds,
        _trial("random-scorer", SPPO, 0, "does not improve", RANDOM),
        _trial("inverted-pairrm", SPPO, 0, "gets worse", inverted),
        _trial("learning-rate-0", SPPO, 0, "does not improve", ("learner.optimizer.lr=0",)),
    ]


def dpo_trials() -> list[Trial]:
    return [_trial(f"dpo-seed-{seed}", DPO, seed, "improves") for seed in SEEDS]


def spin_trials() -> list[Trial]:
    return [
        _trial(f"spin-seed-{seed}", SPIN, seed, "improves", (f"prompts.source={FOLDER}/world-{seed}/careful.jsonl",))
        for seed in SEEDS
    ]


def spin(console: Console) -> Outcome:
    return _play("SPIN in the tearoom", spin_trials(), [f"spin-seed-{seed}" for seed in SEEDS], console)


def sppo(console: Console) -> Outcome:
    return _play("SPPO in the tearoom", sppo_trials(), [f"seed-{seed}" for seed in SEEDS], console)


def dpo(console: Console) -> Outcome:
    return _play("Iterative DPO in the tearoom", dpo_trials(), [f"dpo-seed-{seed}" for seed in SEEDS], console)


def _play(title: str, trials: list[Trial], seeds: list[str], console: Console) -> Outcome:
    from recipes.experiments.tearoom.build import Settings, build

    for seed in SEEDS:
        build(FOLDER / f"world-{seed}", Settings(seed=seed))
    results = {trial.name: run(trial, console) for trial in trials}
    return outcome(title, trials, results, [in_words("three seeds", across(results, seeds))])
