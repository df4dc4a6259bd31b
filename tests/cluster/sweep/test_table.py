"""The tables of a sweep: runs, means over seeds, the grid of two keys; failed runs are listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from cluster.sweep.grid import Sweep, SweepRun
from cluster.sweep.runner import Outcome
from cluster.sweep.table import write_table
from tests.runs import DyingDisk, Killed, fake_config, finished, play

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


def test_the_tables_of_a_sweep(tmp_path: Path) -> None:
    points = [(eta, k, seed) for eta in (1.0, 5.0) for k in (2, 3) for seed in (0, 1)]
    runs, outcomes = [], []
    for eta, k, seed in points:
        sampling = {"num_samples": k, "max_new_tokens": 5}
        name = f"eta-{eta:g}_k-{k}_seed-{seed}"
        algorithm = {"name": "sppo", "eta": eta}
        config = fake_config(tmp_path, name=name, algorithm=algorithm, sampling=sampling, seed=seed, iterations=1)
        values = {"algorithm.eta": eta, "sampling.num_samples": k, "seed": seed}
        runs.append(SweepRun(config, values))
        failed = name == "eta-5_k-3_seed-1"
        if not failed:
            finished(config)
        outcomes.append(Outcome(runs[-1], 1 if failed else 0, tmp_path / "log"))
    sweep = Sweep("sweep", tmp_path, tuple(runs), ("algorithm.eta", "sampling.num_samples", "seed"))
    write_table(sweep, outcomes, Console(quiet=True))
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith("run,algorithm.eta,sampling.num_samples,seed,win_rate,")
    assert len(lines) == 9
    assert lines[-1].endswith(",,,,0,0,failed (1)")
    text = (tmp_path / "sweep.md").read_text()
    assert text.count(" seeds |") == 3  # of the fourth point one seed is left, which has no interval
    assert "7 runs compared" in (tmp_path / "sweep.html").read_text()
    grid = text[text.index("wins against start: algorithm.eta") :].splitlines()
    assert [line.split("|")[1].strip() for line in grid[2:]] == ["algorithm.eta", "---", "1", "5"]
    page = (tmp_path / "sweep.html").read_text()
    assert "eta-1_k-2_seed-0" in page
    assert "eta-5_k-3_seed-1" not in page


def test_keys_linked_with_the_seed_belong_to_it(tmp_path: Path) -> None:
    keys = ("algorithm.eta", "seed", "model.path")
    runs, outcomes = [], []
    for eta in (1.0, 5.0):
        for seed in (0, 1):
            algorithm = {"name": "sppo", "eta": eta}
            config = fake_config(tmp_path, name=f"{eta:g}-{seed}", algorithm=algorithm, seed=seed, iterations=1)
            runs.append(SweepRun(config, dict(zip(keys, (eta, seed, f"worlds/{seed}"), strict=True))))
            outcomes.append(Outcome(runs[-1], 0, tmp_path / "log"))
            finished(config)
    write_table(Sweep("sweep", tmp_path, tuple(runs), keys, ("seed", "model.path")), outcomes, Console(quiet=True))
    means = (tmp_path / "sweep.md").read_text().partition("**means over seeds")[2]
    assert "| algorithm.eta | wins against start |" in means
    assert means.count(", 2 seeds |") == 2


@pytest.mark.parametrize("operations", [1, 4, 120])
def test_runs_that_ended_early_are_listed_as_far_as_they_came(tmp_path: Path, operations: int) -> None:
    configs = [fake_config(tmp_path, name=f"seed-{seed}", seed=seed, iterations=1) for seed in (0, 1)]
    finished(configs[0])
    with pytest.raises(Killed):
        play(configs[1], DyingDisk(operations))
    runs = tuple(SweepRun(config, {"seed": config.seed}) for config in configs)
    outcomes = [Outcome(run, code, tmp_path / "log") for run, code in zip(runs, (0, -9), strict=True)]
    write_table(Sweep("sweep", tmp_path, runs, ("seed",)), outcomes, Console(quiet=True))
    assert (tmp_path / "sweep.csv").read_text().splitlines()[-1].endswith("failed (-9)")
    assert (tmp_path / "sweep.html").is_file()
