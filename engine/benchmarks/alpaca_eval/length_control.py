"""Length-controlled win rates: what a win rate would be if all answers were as long as the baseline's.

The official formula is that of AlpacaEval 2 (arXiv 2404.04475; alpaca_eval 0.6.6, metrics/glm_winrate.py): a logistic
regression of the preference on length, difficulty of the instruction and model, from which length is then removed,

    P(wins) = sigmoid(theta tanh((len_baseline - len) / sd) + phi difficulty + psi),  win rate = mean at theta = 0,

with lengths in characters and sd their differences' standard deviation. It needs the published difficulties and the
annotations of two gamed baselines. `local` is another formula under another name, for where these are not at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.algorithms.preference import sigmoid
from engine.errors import ConfigError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

LENGTH, DIFFICULTY, MODEL = (
    "np.tanh(std_delta_len)",
    "instruction_difficulty",
    "not_gamed_baseline.astype(float)",
)
"""The columns of a file of weights, as alpaca_eval names them: theta, phi and psi."""
GAMED_WEIGHT = 0.1
"""Of a row of a gamed baseline: alpaca_eval's regularize_to_baseline_lambda, 0.2, over the two baselines."""
FOLDS = 5
RIDGE_DIFFICULTY = 0.5
RIDGE_LENGTH = 10.0
"""Precisions of the priors of `known_models` and `local`. Chosen among 5 x 4 values by the mean absolute difference to
the published numbers of 20 public models; the other 20 choose the same."""
OFFICIAL_FORMULA = "AlpacaEval's length_controlled_v1, from published difficulties and gamed baselines"
LOCAL_FORMULA = (
    "P(wins) = sigmoid(theta tanh((len_baseline - len) / sd) + difficulty + psi) at theta = 0; theta has a normal "
    f"prior of precision {RIDGE_LENGTH:g} around its value in the known models, difficulties are fitted on their "
    "annotations alone, and there are no gamed baselines: not AlpacaEval's formula"
)


@dataclass(frozen=True)
class Gamed:
    """Annotations of baselines that were asked for short or for long answers (df_gamed.csv), one entry per row."""

    preferences: Vector
    """In [0, 1]: P(the gamed answer beats the baseline's); NaN: none."""
    length_differences: Vector
    """Standardised, as `std_delta_len`."""
    difficulties: Vector


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate."""

    predictions: Vector
    """[instructions] P(wins) without the effect of length."""
    weights: dict[str, float]
    """theta, phi, psi by the names of LENGTH, DIFFICULTY, MODEL."""

    @property
    def win_rate(self) -> float:
        """In percent."""
        return float(self.predictions.mean() * 100)

    @property
    def standard_error(self) -> float:
        """Of the mean over instructions, in percent."""
        return float(self.predictions.std(ddof=1) / math.sqrt(len(self.predictions)) * 100)


@dataclass(frozen=True)
class KnownModels:
    """What annotations of other models against the same baseline say."""

    difficulties: Vector
    """[instructions] in nats: how much more often the baseline loses there."""
    length_effect: float
    """theta of all of them."""


def standardised_differences(baseline_lengths: ArrayLike, lengths: ArrayLike) -> Vector:
    """[instructions] (length of the baseline's answer less the model's) over its standard deviation; 0 if it is 0."""
    differences = np.asarray(baseline_lengths, dtype=np.float64) - np.asarray(lengths, dtype=np.float64)
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    return differences / spread if spread else np.zeros_like(differences)


def official(preferences: ArrayLike, differences: ArrayLike, difficulties: ArrayLike, gamed: Gamed) -> LengthControlled:
    """AlpacaEval's length-controlled win rate (`length_controlled_v1`).

    preferences: [instructions] in [0, 1], NaN without verdict: such rows are not fitted, but predicted. differences:
    of `standardised_differences`. Raises ValueError for fewer rows with verdicts than FOLDS, ConfigError without
    scikit-learn.
    """
    own = np.asarray(preferences, dtype=np.float64)
    difficulty = np.asarray(difficulties, dtype=np.float64)
    _require(own)
    rows = np.column_stack(
        [
            np.tanh(np.concatenate([gamed.length_differences, np.asarray(differences, dtype=np.float64)])),
            np.concatenate([gamed.difficulties, difficulty]),
            np.repeat([0.0, 1.0], [len(gamed.preferences), len(own)]),
        ]
    )
    targets = np.concatenate([gamed.preferences, own])
    weights = np.repeat([GAMED_WEIGHT, 1.0], [len(gamed.preferences), len(own)])
    known = ~np.isnan(targets)
    length, slope, bias = _lasso(rows[known], targets[known], weights[known])
    predictions = sigmoid(bias + slope * difficulty)
    return LengthControlled(predictions, {LENGTH: length, DIFFICULTY: slope, MODEL: bias})


def from_weights(
    model: Mapping[str, float], baseline: Mapping[str, float], difficulties: ArrayLike
) -> LengthControlled:
    """Length-controlled win rate of a model over another from the weights of both, alpaca_eval's `predict_winrate`.

    Exact for the baseline that both were annotated against, whose weights are 0.
    """
    weights = {name: model[name] - baseline[name] for name in (LENGTH, DIFFICULTY, MODEL)}
    values = weights[MODEL] + weights[DIFFICULTY] * np.asarray(difficulties, dtype=np.float64)
    return LengthControlled(sigmoid(values), weights)


def known_models(preferences: ArrayLike, differences: ArrayLike) -> KnownModels:
    """Difficulties from known models: a joint logistic regression with one bias per model and one effect of length.

    preferences, differences: [models, instructions]; NaN: no annotation. The difficulties have a normal prior of
    precision RIDGE_DIFFICULTY around 0. Raises ConfigError without scikit-learn, which brings the optimizer.
    """
    wins, known = _filled(preferences)
    features = np.tanh(np.nan_to_num(np.asarray(differences, dtype=np.float64)))
    num_models, num_instructions = wins.shape

    def loss(x: Vector) -> tuple[float, Vector]:
        effect, biases, difficulty = x[0], x[1 : 1 + num_models], x[1 + num_models :]
        logits = effect * features + biases[:, None] + difficulty
        residuals = known * (sigmoid(logits) - wins)
        value = (known * (np.logaddexp(0.0, logits) - wins * logits)).sum()
        gradient = [[(residuals * features).sum()], residuals.sum(axis=1), residuals.sum(axis=0)]
        gradient[2] = gradient[2] + RIDGE_DIFFICULTY * difficulty
        return float(value + RIDGE_DIFFICULTY * (difficulty @ difficulty) / 2), np.concatenate(gradient)

    best = _minimum(loss, np.zeros(1 + num_models + num_instructions))
    return KnownModels(best[1 + num_models :], float(best[0]))


def local(preferences: ArrayLike, differences: ArrayLike, known: KnownModels) -> LengthControlled:
    """The win rate of LOCAL_FORMULA. Arguments and errors as for `official`; `known`: without the model itself."""
    own = np.asarray(preferences, dtype=np.float64)
    _require(own)
    wins, annotated = _filled(own)
    feature = np.tanh(np.asarray(differences, dtype=np.float64))

    def loss(x: Vector) -> tuple[float, Vector]:
        logits = x[0] * feature + known.difficulties + x[1]
        residuals = annotated * (sigmoid(logits) - wins)
        excess = x[0] - known.length_effect
        value = (annotated * (np.logaddexp(0.0, logits) - wins * logits)).sum() + RIDGE_LENGTH * excess**2 / 2
        return float(value), np.array([residuals @ feature + RIDGE_LENGTH * excess, residuals.sum()])

    length, bias = _minimum(loss, np.array([known.length_effect, 0.0]))
    weights = {LENGTH: float(length), DIFFICULTY: 1.0, MODEL: float(bias)}
    return LengthControlled(sigmoid(bias + known.difficulties), weights)


def is_extreme(win_rate: float, controlled: float) -> bool:
    """Whether alpaca_eval warns that the two differ so much that the regression may have failed; both in percent."""
    low = min(win_rate - win_rate / 4, win_rate - 10)
    high = max(win_rate + (100 - win_rate) / 4, win_rate + 10)
    return not low <= controlled <= high


def _require(preferences: Vector) -> None:
    count = int((~np.isnan(preferences)).sum())
    if count < FOLDS:
        raise ValueError(f"{count} instructions with a verdict; a length-controlled win rate needs at least {FOLDS}")


def _filled(preferences: ArrayLike) -> tuple[Matrix, Matrix]:
    """The values with 0 for NaN, and 1 where there is a value."""
    values = np.asarray(preferences, dtype=np.float64)
    return np.nan_to_num(values), (~np.isnan(values)).astype(np.float64)


def _minimum(loss: Any, start: Vector) -> Vector:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise _missing(error) from error
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 10_000, "ftol": 1e-14}).x


def _lasso(rows: Matrix, targets: Vector, weights: Vector) -> tuple[float, float, float]:
    """The weights of alpaca_eval's `fit_LogisticRegressionCV` on soft targets.

    Each row counts twice, as a win and as a loss.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.metrics import make_scorer
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise _missing(error) from error
    probabilities = np.concatenate([targets, 1 - targets])
    labels = np.repeat([1, 0], len(targets))
    doubled = np.concatenate([weights, weights])
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            l1_ratios=(1,),
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
            cv=GroupKFold(n_splits=FOLDS),
            scoring=scorer.set_score_request(true_probability=True, true_weight=True),
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([rows, rows]),
            labels,
            sample_weight=probabilities * doubled,
            groups=np.tile(np.arange(len(targets)), 2),
            true_probability=probabilities,
            true_weight=doubled,
        )
    length, slope, bias = model.coef_[0]
    return float(length), float(slope), float(bias)


def _log_loss(y_true: Vector, y_pred: Vector, true_probability: Vector, true_weight: Vector) -> float:
    """Mean weighted log-loss on soft targets. A row holds the probability of its own label."""
    wins = np.where(y_true == 1, true_probability, 1 - true_probability)
    predictions = np.clip(y_pred, 1e-15, 1 - 1e-15)
    losses = wins * np.log(predictions) + (1 - wins) * np.log(1 - predictions)
    return -float(np.mean(losses * true_weight))


def _missing(error: ImportError) -> ConfigError:
    return ConfigError([f"length-controlled win rates need scikit-learn ({error}); pip install 'kumite[benchmarks]'"])
