"""Length-controlled win rates: equal to alpaca_eval's own code, and what the local variant is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.benchmarks.alpaca_eval.length_control import (
    DIFFICULTY,
    LENGTH,
    MODEL,
    Gamed,
    KnownModels,
    from_weights,
    is_extreme,
    known_models,
    local,
    official,
    standardised_differences,
)
from engine.benchmarks.alpaca_eval.length_control_files import read_difficulties, read_gamed, read_known, read_weights
from engine.errors import DataError
from recipes.experiments import leaderboard
from tests.engine.benchmarks.alpaca_world import INSTRUCTIONS, write_gamed, write_json, write_known

COUNT = 60
# alpaca_eval calls libraries in ways that they deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class World:
    """A model whose wins depend on length and difficulty, and two gamed baselines."""

    def __init__(self, seed: int):
        draw = np.random.default_rng(seed)
        self.baseline_lengths, self.lengths = draw.integers(50, 3000, (2, COUNT))
        self.difficulties = draw.normal(size=COUNT)
        logits = self.difficulties - 1 + np.tanh((self.lengths - self.baseline_lengths) / 1000)
        self.preferences = np.clip(1 / (1 + np.exp(-logits)) + draw.normal(size=COUNT) * 0.2, 0, 1)
        self.preferences[:3] = [np.nan, 0.5, 0.0]
        self.differences = standardised_differences(self.baseline_lengths, self.lengths)

    def gamed(self, file: Path) -> Gamed:
        rows = read_gamed(write_gamed(file, COUNT), COUNT)
        self.difficulties = np.array([row.difficulty for row in rows[:COUNT]])
        columns = zip(*((row.preference, row.length_difference, row.difficulty) for row in rows), strict=True)
        return Gamed(*map(np.array, columns))


@pytest.mark.parametrize("seed", range(3))
def test_the_official_formula_equals_alpaca_evals_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    import pandas as pd
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    world, file = World(seed), tmp_path / "df_gamed.csv"
    gamed = world.gamed(file)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **which: str(file))
    outputs = {"output_1": world.baseline_lengths, "output_2": world.lengths}
    annotations: dict[str, Any] = {name: ["x" * length for length in lengths] for name, lengths in outputs.items()}
    annotations |= {"generator_1": "base", "generator_2": "model", "annotator": "judge"}
    frame = pd.DataFrame(annotations | {"preference": world.preferences + 1})
    with sklearn.config_context():  # theirs sets an option of scikit-learn for the whole process
        theirs = glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None)
    ours = official(world.preferences + 1 - 1, world.differences, world.difficulties, gamed)
    assert ours.win_rate == pytest.approx(theirs["length_controlled_winrate"], abs=1e-9)
    assert ours.standard_error == pytest.approx(theirs["lc_standard_error"], abs=1e-9)
    np.testing.assert_allclose(ours.predictions, frame["glm_preference"], atol=1e-9)


def test_published_weights_give_the_win_rate_of_alpaca_evals_predict_winrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alpaca_eval.metrics import glm_winrate

    weights = tmp_path / "baseline_base.csv"
    weights.write_text(f",{LENGTH},{DIFFICULTY},{MODEL}\nbase,0,0,0\none,-1.5,0.8,-0.3\ntwo,-1.2,1.1,0.4\n")
    difficulty = tmp_path / "instruction_difficulty.csv"
    difficulty.write_text("index,instruction_difficulty\n0,1.5\n1,-2\n2,0.25\n")
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **which: str(difficulty))
    ours, values = read_weights(str(weights)), read_difficulties(str(difficulty), 3)
    for model, baseline in [("one", "base"), ("two", "one")]:
        theirs = glm_winrate.predict_winrate(model, baseline, weights)
        assert from_weights(ours[model], ours[baseline], values).win_rate == pytest.approx(100 * theirs, abs=1e-12)


def test_the_local_variant_takes_out_what_length_alone_wins() -> None:
    draw = np.random.default_rng(3)
    difficulties, lengths = draw.normal(size=400), draw.normal(size=400) - 0.5
    wins = 1 / (1 + np.exp(-(difficulties - 0.2 - 1.5 * np.tanh(lengths))))
    known = KnownModels(difficulties, -1.5)
    assert local(wins, lengths, known).win_rate == pytest.approx(
        100 * (1 / (1 + np.exp(0.2 - difficulties))).mean(), abs=0.01
    )
    assert local(wins, lengths, known).win_rate < 100 * wins.mean() - 3


def test_difficulties_are_found_again_in_annotations_of_known_models() -> None:
    draw = np.random.default_rng(4)
    difficulties, lengths = draw.normal(size=200), draw.normal(size=(30, 200))
    biases = draw.normal(size=(30, 1))
    wins = 1 / (1 + np.exp(-(difficulties + biases - 1.5 * np.tanh(lengths))))
    wins[draw.uniform(size=wins.shape) < 0.1] = np.nan
    known = known_models(wins, lengths)
    assert known.length_effect == pytest.approx(-1.5, abs=0.2)
    assert np.corrcoef(known.difficulties, difficulties)[0, 1] > 0.98


@pytest.mark.parametrize("preference", [0.0, 1.0])
def test_a_model_that_always_loses_or_wins_has_a_number(preference: float) -> None:
    preferences, differences = np.full(20, preference), np.linspace(-1, 1, 20)
    gamed = Gamed(np.full(40, 0.5), np.tile(differences, 2), np.zeros(40))
    assert abs(official(preferences, differences, np.zeros(20), gamed).win_rate - 100 * preference) < 10
    assert abs(local(preferences, differences, KnownModels(np.zeros(20), -1.0)).win_rate - 100 * preference) < 1


def test_too_few_verdicts_are_refused() -> None:
    few = [0.5, 0.5, 0.5, 0.5, np.nan]
    with pytest.raises(ValueError, match="4 instructions with a verdict"):
        local(few, np.zeros(5), KnownModels(np.zeros(5), 0.0))


def test_answers_that_are_all_as_long_as_the_baselines_have_no_length_difference() -> None:
    assert standardised_differences([5, 7], [5, 7]).tolist() == [0.0, 0.0]
    assert standardised_differences([1, 2, 3], [0, 0, 0]).tolist() == [1.0, 2.0, 3.0]


def test_a_change_is_extreme_where_alpaca_eval_warns() -> None:
    from alpaca_eval.metrics.glm_winrate import get_is_extreme_changes

    rates = np.linspace(1, 99, 15)
    assert [is_extreme(a, b) for a in rates for b in rates] == [
        bool(get_is_extreme_changes(a, b)) for a in rates for b in rates
    ]


def test_gamed_rows_of_other_instructions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="difficulties of 12 instructions, up to index 11, for 13 instructions"):
        read_gamed(write_gamed(tmp_path / "df_gamed.csv"), 13)


def test_every_bad_row_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "df_gamed.csv"
    file.write_text(
        "model,preference,index,std_delta_len,instruction_difficulty\n"
        "m,1.5,0,0,0\nm,,1,,0\nm,0.5,1.5,0,0\nm,0.5,2,0,0\nm,0.5,2,0,0\n"
    )
    with pytest.raises(DataError) as error:
        read_gamed(str(file), 3)
    message = str(error.value)
    assert "4 of 5 rows cannot be used" in message
    for part in ("preference holds '1.5'", "no number in std_delta_len", "index holds '1.5'", "occurs a second time"):
        assert part in message


def test_known_models_come_from_a_folder_of_annotations(tmp_path: Path) -> None:
    texts = [item["instruction"] for item in INSTRUCTIONS]
    assert len(read_known(write_known(tmp_path / "results"), texts).difficulties) == 12
    with pytest.raises(DataError, match="12 of other instructions"):
        read_known(str(tmp_path / "results"), ["another"])
    row = {"instruction": "i", "output_1": "", "output_2": "", "generator_2": "m", "preference": 0}
    rows = [row | {"generator_1": name, "generator_2": name} for name in ("a", "b")]
    with pytest.raises(DataError, match="2 baselines"):
        read_known(write_json(tmp_path / "annotations.json", rows), ["i"])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from engine.errors import ConfigError

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match="benchmarks"):
        known_models([[0.5]], [[0.0]])


@pytest.fixture(scope="module")
def board(public_data: Path) -> leaderboard.Leaderboard:
    return leaderboard.read_leaderboard(public_data / "alpaca_eval")


def test_win_rates_of_public_models_are_those_of_the_leaderboard(board: leaderboard.Leaderboard) -> None:
    numbers = leaderboard.exact_numbers(board)
    assert len(numbers) == 41
    for name in ("win_rate", "standard_error", "n_total"):
        ours = [row[name] for row in numbers]
        np.testing.assert_allclose(ours, board.published[name], rtol=0, atol=1e-9)


def test_the_local_win_rate_is_nearer_to_the_published_one_than_the_raw_one(board: leaderboard.Leaderboard) -> None:
    for model in ("claude", "gpt-3.5-turbo-1106_concise"):
        place = board.models.index(model)
        published = board.published["length_controlled_winrate"][place]
        found, _ = leaderboard.local_win_rate(board, place)
        assert abs(found - published) < 1.5
        assert abs(board.published["win_rate"][place] - published) > 8
