"""SPPO, iterative DPO, SPIN and self-rewarding in the tearoom, judged by the hidden oracle on held-out prompts.

Three seeds of each must improve. For SPPO, DPO and SPIN each seed has its own world, start policy and PairRM.

SPPO has three controls, which share world 0 and its seed: a scorer whose scores are random, the same PairRM with
its sign turned, and a learning rate of 0.

In self-rewarding a policy that can judge a little improves by its own judgement. A known failure is measured too:
where the judge gives points for small talk, answers grow longer from round to round; with length control by
quality tiers (arXiv 2407.19594) they grow less.
"""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from recipes.experiments.results import FOLDER, Result, Run, over_seeds, result_of

SEEDS = (0, 1, 2)
SPPO = "recipes/configs/demo.yaml"
DPO = "recipes/configs/demo_dpo.yaml"
SPIN = "recipes/configs/demo_spin.yaml"
SELF_REWARDING = "recipes/configs/demo_self_rewarding.yaml"
RANDOM = ("scorer.kind=rule", "scorer.function=recipes.experiments.tearoom.world:random_scorer", "scorer.cpus=0.25")
INFLATED, CONTROLLED = "impressed", "impressed-length-control"
LENGTH_TIER = 0.4
"""rho of Meta-Rewarding's last round."""


def sppo(console: Console) -> Result:
    inverted = (f"scorer.path={FOLDER}/world-0/pairrm_inverted",)
    controls = [
        _run("random-scorer", SPPO, 0, "does not improve", RANDOM),
        _run("inverted-pairrm", SPPO, 0, "gets worse", inverted),
        _run("learning-rate-0", SPPO, 0, "does not improve", ("learner.optimizer.lr=0",)),
    ]
    return _play("SPPO in the tearoom", [_run(f"seed-{seed}", SPPO, seed) for seed in SEEDS], controls, console)


def dpo(console: Console) -> Result:
    runs = [_run(f"dpo-seed-{seed}", DPO, seed) for seed in SEEDS]
    return _play("Iterative DPO in the tearoom", runs, [], console)


def spin(console: Console) -> Result:
    careful = {seed: (f"prompts.source={FOLDER}/world-{seed}/careful.jsonl",) for seed in SEEDS}
    runs = [_run(f"spin-seed-{seed}", SPIN, seed, overrides=careful[seed]) for seed in SEEDS]
    return _play("SPIN in the tearoom", runs, [], console)


def _run(name: str, config: str, seed: int, claim: str = "improves", overrides: tuple[str, ...] = ()) -> Run:
    """A run of `config` in world `seed`."""
    world = FOLDER / f"world-{seed}"
    paths = [*_paths(str(world)), f"seed={seed}"]
    paths += [f"scorer.path={world}/pairrm"] if config != SPIN and overrides != RANDOM else []
    return Run(name, config, (*paths, *overrides), claim)


def _paths(world: str) -> tuple[str, ...]:
    """Overrides that start a run from the policy of a world, with its prompts."""
    prompts = f"prompts.source={world}/prompts.jsonl", f"evaluation.prompts.source={world}/heldout.jsonl"
    return f"model.path={world}/policy", *prompts


def _play(title: str, seeds: list[Run], controls: list[Run], console: Console) -> Result:
    from recipes.experiments.tearoom.build import Settings, build

    for seed in SEEDS:
        build(FOLDER / f"world-{seed}", Settings(seed=seed))
    runs = [*seeds, *controls]
    summaries = {run.name: run.play(console) for run in runs}
    mean = over_seeds([summaries[run.name] for run in seeds])
    return result_of(title, runs, summaries, [f"three seeds: {mean}"])


def self_rewarding(console: Console) -> Result:
    from recipes.experiments.tearoom.judge_build import Settings, build

    build(FOLDER / "judge-world-fair", Settings())
    start = build(FOLDER / "judge-world-impressed", Settings(impressed=True))["start_tokens_sampled"]
    fair, impressed = (_paths(f"{FOLDER}/judge-world-{name}") for name in ("fair", "impressed"))
    tier = f"algorithm.length_tier={LENGTH_TIER}"
    seeds = [Run(f"self-rewarding-{n}", SELF_REWARDING, (*fair, f"seed={n}"), "improves") for n in SEEDS]
    others = [Run(INFLATED, SELF_REWARDING, impressed), Run(CONTROLLED, SELF_REWARDING, (*impressed, tier))]
    summaries = {run.name: run.play(console) for run in (*seeds, *others)}
    lengths = {name: summaries[name].iterations[-1].mean_length or 0.0 for name in (INFLATED, CONTROLLED)}
    inflated, controlled = (lengths[name] / start for name in (INFLATED, CONTROLLED))
    lines = [
        f"self-rewarding, three seeds of a run: {over_seeds([summaries[run.name] for run in seeds])}",
        f"impressed judge: answers are {inflated:.2f} times as long as the start's ({start:.1f} tokens), with length "
        f"control {controlled:.2f} times",
    ]
    result = result_of("Self-rewarding in the tearoom", [*seeds, *others], summaries, lines)
    return replace(result, holds=result.holds and inflated > 1.15 and controlled < inflated)
