"""Every version against every other: ratings by hand, and a circle that ratings cannot show."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.ladder import ELO, elo_ratings, ladder


def same(rate: float, num: int = 200) -> dict[str, float]:
    """The same win rate on every prompt, as wins and losses."""
    wins = round(rate * num)
    return {f"p{i}": float(i < wins) for i in range(num)}


def test_two_versions_get_the_log_odds_of_their_win_rate() -> None:
    result = ladder({(1, 0): same(0.75, 2000)})
    assert result is not None
    assert result.wins[1, 0] == 0.75
    assert result.wins[0, 1] == 0.25
    assert result.elo[0] == 0.0
    assert result.elo[1] == pytest.approx(ELO * np.log((1500 + 0.5) / (500 + 0.5)), abs=1e-6)
    assert result.elo_low[1] < result.elo[1] < result.elo_high[1]


def test_ratings_reproduce_the_win_rates_that_ratings_made() -> None:
    scores = np.array([0.0, 0.4, 1.1, -0.3])
    wins = 1.0 / (1.0 + np.exp(scores[None, :] - scores[:, None]))
    assert elo_ratings(wins, 10**9) / ELO == pytest.approx(scores, abs=1e-6)


def test_versions_that_beat_each_other_in_a_circle_are_named_and_no_rating_tells_them_apart() -> None:
    result = ladder({(1, 0): same(0.8), (2, 1): same(0.8), (2, 0): same(0.2)})
    assert result is not None
    assert result.cycles == ((0, 2, 1),)
    assert np.abs(result.elo).max() < 1e-6
    assert result.cyclic_share == pytest.approx(1.0)


def test_a_line_of_versions_has_no_circle() -> None:
    result = ladder({(1, 0): same(0.7), (2, 1): same(0.7), (2, 0): same(0.845)})
    assert result is not None
    assert result.cycles == ()
    assert list(np.argsort(result.elo)) == [0, 1, 2]
    assert result.cyclic_share < 0.01


def test_a_circle_within_the_noise_is_not_called_one() -> None:
    result = ladder({(1, 0): same(0.55, 40), (2, 1): same(0.55, 40), (2, 0): same(0.45, 40)})
    assert result is not None
    assert result.cycles == ()


def test_prompts_without_a_verdict_on_one_pair_do_not_count() -> None:
    rates = {(1, 0): {"a": 1.0, "b": 1.0}, (2, 0): {"a": 1.0, "b": float("nan")}, (2, 1): {"a": 0.5, "b": 0.5}}
    result = ladder(rates)
    assert result is not None
    assert result.num_prompts == 1
    assert ladder({(1, 0): {"a": float("nan")}}) is None


def test_a_version_that_wins_everything_has_a_finite_rating() -> None:
    result = ladder({(1, 0): same(1.0)})
    assert result is not None
    assert np.isfinite(result.elo_high).all()
