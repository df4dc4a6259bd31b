"""The experiments' command: parts by name, figures kept beside each other, and an exit code for the claims."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import DataError
from recipes.experiments import results, run
from recipes.experiments.figures import new_figure
from recipes.experiments.results import Result, Run, measure_once, over_seeds, save_svg
from recipes.experiments.tearoom import experiment
from recipes.experiments.tearoom.curves import draw_curves


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two experiments, of which one keeps its claims, and where their figures go."""
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    outcomes = {name: Result((), (f"what {name} found",), name == "good", {"steps": 3}) for name in ("good", "bad")}
    monkeypatch.setattr(run, "EXPERIMENTS", {name: lambda _, name=name: outcomes[name] for name in outcomes})
    return tmp_path


def last_policy(low: float, high: float, length: float = 9.0, promoted: bool = False) -> SimpleNamespace:
    rate = SimpleNamespace(value=(low + high) / 2, low=low, high=high)
    return SimpleNamespace(iterations=[SimpleNamespace(win_rate_start=rate, mean_length=length, promoted=promoted)])


def test_the_exit_code_says_whether_every_claim_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["good"]) == 0
    assert "what good found" in capsys.readouterr().out
    assert run.main(["good", "bad"]) == run.main([]) == 1


def test_a_parts_figures_are_kept_beside_those_of_the_others(folder: Path) -> None:
    run.main(["good"])
    run.main(["bad"])
    written = json.loads((folder / "experiments.json").read_text())
    assert {name: part["holds"] for name, part in written.items()} == {"good": True, "bad": False}
    assert written["good"]["figures"] == {"steps": 3}


def test_an_unknown_part_is_named_with_those_that_exist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["good", "nothing"])
    assert "no part nothing; there are good, bad" in capsys.readouterr().err


def test_an_error_for_people_ends_the_experiments_with_its_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(console: object) -> Result:
        raise DataError("world.json was made with other settings")

    monkeypatch.setitem(run.EXPERIMENTS, "broken", broken)
    assert run.main(["good", "broken"]) == DataError.exit_code
    assert capsys.readouterr().err == "error: world.json was made with other settings\n"
    assert "good" in json.loads((folder / "experiments.json").read_text())


@pytest.mark.parametrize(
    ("claim", "bounds", "holds"),
    [
        ("improves", (0.56, 0.6), True),
        ("improves", (0.54, 0.9), False),
        ("does not improve", (0.5, 0.6), True),
        ("does not improve", (0.51, 0.6), False),
        ("gets worse", (0.3, 0.49), True),
        ("gets worse", (0.3, 0.5), False),
        ("is reported", (0.0, 1.0), True),
    ],
)
def test_a_claim_is_checked_on_the_interval_of_the_last_win_rate(claim, bounds, holds) -> None:
    assert Run("name", "config.yaml", claim=claim).holds(last_policy(*bounds)) == holds


def test_a_control_of_which_the_gate_promoted_a_version_does_not_hold() -> None:
    assert not Run("name", "config.yaml", claim="does not improve").holds(last_policy(0.4, 0.6, promoted=True))
    assert Run("name", "config.yaml", claim="improves").holds(last_policy(0.6, 0.7, promoted=True))


def test_the_mean_over_seeds_has_an_interval() -> None:
    assert over_seeds([last_policy(0.8, 1.0)] * 3) == "0.900, 95 % t-interval [0.900, 0.900]"


def test_a_finished_measurement_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"steps": 3}')
    assert measure_once(tmp_path / "a.json", lambda folder: {}) == {"steps": 3}
    assert measure_once(tmp_path / "b.json", lambda folder: {"folder": folder}) == {"folder": tmp_path}


def test_only_the_controls_differ_from_the_runs_of_world_0(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.experiments.tearoom import build

    played: dict[str, Run] = {}
    monkeypatch.setattr(build, "build", lambda folder, settings: None)
    monkeypatch.setattr(results.Run, "play", lambda self, console: played.setdefault(self.name, self) and None)
    monkeypatch.setattr(experiment, "over_seeds", lambda summaries: "")
    monkeypatch.setattr(experiment, "result_of", lambda *arguments: None)
    experiment.sppo(None)
    overrides = {name: dict(each.split("=", 1) for each in run.overrides) for name, run in played.items()}
    start = overrides["seed-0"]
    changed = {
        name: {key for key in start | values if start.get(key) != values.get(key)}
        for name, values in overrides.items()
        if not name.startswith("seed-")
    }
    assert changed == {
        "random-scorer": {"scorer.kind", "scorer.function", "scorer.cpus", "scorer.path"},
        "inverted-pairrm": {"scorer.path"},
        "learning-rate-0": {"learner.optimizer.lr"},
    }
    assert len({tuple(overrides[f"seed-{seed}"].values()) for seed in experiment.SEEDS}) == 3


def test_curves_are_drawn_for_the_parts_that_have_figures_and_always_alike(tmp_path: Path) -> None:
    row = {"win_rate_start": {"value": 0.7}, "agreement": None, "mean_length": 9.0}
    figures = {"spin": {f"spin-seed-{seed}": [{"iteration": i, **row} for i in (1, 2)] for seed in (0, 1)}}
    for name in ("a", "b"):
        draw_curves({**figures, "sppo": {}}, tmp_path / name)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["spin.svg"]
    assert (tmp_path / "a/spin.svg").read_bytes() == (tmp_path / "b/spin.svg").read_bytes()


def test_a_drawing_has_no_space_at_the_end_of_a_line(tmp_path: Path) -> None:
    save_svg(new_figure(1.0, 1.0), tmp_path / "figure.svg")
    lines = (tmp_path / "figure.svg").read_text().splitlines()
    assert lines[0].startswith("<?xml") and not [line for line in lines if line != line.rstrip()]
