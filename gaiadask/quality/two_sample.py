"""The two-sample test: how well a classifier tells one set of stars from another (0.5: not at all).

An AUC grows with the number of stars and the size of the classifier, so both are fixed (FOLDS, MAX_ITER, the configured
rows and seeds): numbers of other settings do not compare. The two sides must be different stars. A star and its own
rebuilt self on both sides leak: a tree that has seen one of them in training knows the other's neighbourhood with the
label the wrong way round, and the AUC falls below 0.5 however good or bad the model is.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer
from threadpoolctl import threadpool_limits

from gaiadask.errors import DataError
from gaiadask.quality.physics import comparable_features
from gaiadask.quality.tables import number_columns, sampled, values

Features = Literal["raw", "physics", "mlp"]
FEATURES: tuple[Features, ...] = get_args(Features)

FOLDS = 3
MAX_ITER = 150
MLP_EPOCHS = 20
MLP_WIDTHS = (64, 64)


@dataclass(frozen=True)
class AucResult:
    """AUC of one classifier on one pair of samples.

    mean and spread (standard deviation, None for one seed) are over seeds, each seed's value the mean over its folds.
    rows: stars on each side. inputs: the classifier's columns. seconds_per_fit: wall-clock, one thread.
    """

    features: Features
    mean: float
    spread: float | None
    values: tuple[float, ...]
    rows: int
    folds: int
    inputs: tuple[str, ...]
    seconds_per_fit: float


def two_sample_auc(
    real: pa.Table, fake: pa.Table, features: Features = "raw", rows: int = 20_000, folds: int = FOLDS, seeds: int = 3
) -> AucResult:
    """AUC with which a classifier tells `fake` from `real`, out of fold, on `rows` stars of each (fewer where there are fewer).

    features: "raw" boosted trees on the number columns that both tables have, "physics" the same trees on these and
    `physics_features`, "mlp" a small neural network on the quantile-normalised columns, nulls at the median and flagged.
    The tables must be of different stars (module docstring). source_id and other identifiers are left out.
    Raises DataError where a side has fewer stars than two a fold.
    """
    n = min(rows, real.num_rows, fake.num_rows)
    if n < 2 * folds:
        raise DataError(f"a two-sample test of {folds} folds needs at least {2 * folds} stars on each side, found {n}")
    started = time.perf_counter()
    scores = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        names, x, y = _labelled(sampled(real, n, random), sampled(fake, n, random), features)
        scores.append(_cross_validated(x, y, features, folds, seed))
    seconds = (time.perf_counter() - started) / (seeds * folds)
    spread = float(np.std(scores, ddof=1)) if seeds > 1 else None
    return AucResult(features, float(np.mean(scores)), spread, tuple(scores), n, folds, names, seconds)


def _labelled(real: pa.Table, fake: pa.Table, features: Features) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.int8]]:
    """Names, matrix (both tables' rows, columns; real first) and labels (1: fake) of a classification."""
    names = number_columns(real, fake)
    columns = [_same_precision(real, fake, name) for name in names]
    if features == "physics":
        ours, theirs = comparable_features(real, fake)
        names += tuple(ours)
        columns += [np.concatenate([ours[n], theirs[n]]) for n in ours]
    labels = np.repeat(np.array([0, 1], np.int8), [real.num_rows, fake.num_rows])
    matrix = np.stack(columns, axis=1)
    matrix[~np.isfinite(matrix)] = np.nan
    known = np.asarray(np.isfinite(matrix).any(axis=0))  # a column null throughout tells nothing, and has no quantiles
    if not known.any():
        raise DataError(f"nothing to compare: every value of {names} is null in both tables")
    return tuple(n for n, k in zip(names, known, strict=True) if k), matrix[:, known], labels


def _same_precision(real: pa.Table, fake: pa.Table, name: str) -> NDArray[np.float64]:
    """Both tables' column, in the coarser of their types: else its last bits would tell."""
    both = np.concatenate([values(real, name), values(fake, name)])
    single = pa.float32() in (real.schema.field(name).type, fake.schema.field(name).type)
    return both.astype(np.float32).astype(np.float64) if single else both


def _cross_validated(x: NDArray[np.float64], y: NDArray[np.int8], features: Features, folds: int, seed: int) -> float:
    """Mean over folds of the AUC on the left-out fold."""
    scores = []
    # One thread: the tests are spread over workers, and threads that wait for a busy core are slower than none.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the network's epochs are fixed on purpose
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
            classifier = _classifier(features, seed, len(train)).fit(x[train], y[train])
            scores.append(float(roc_auc_score(y[test], classifier.predict_proba(x[test])[:, 1])))
    return float(np.mean(scores))


def _classifier(features: Features, seed: int, rows: int) -> Any:
    if features in ("raw", "physics"):
        return HistGradientBoostingClassifier(max_iter=MAX_ITER, early_stopping=False, random_state=seed)
    if features == "mlp":
        # As many epochs for every network, whether or not its loss still falls; few stars in small batches, to learn at all.
        network = MLPClassifier(
            MLP_WIDTHS,
            max_iter=MLP_EPOCHS,
            n_iter_no_change=MLP_EPOCHS + 1,
            batch_size=min(500, max(20, rows // 50)),
            learning_rate_init=3e-3,
            random_state=seed,
        )
        quantiles = QuantileTransformer(n_quantiles=min(1_000, rows), output_distribution="normal", subsample=None)
        return make_pipeline(quantiles, FunctionTransformer(_flag_nulls), network)
    raise ValueError(f"unknown features {features!r}: expected one of {FEATURES}")


def _flag_nulls(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal scores with nulls at the median, 0, and beside them a column that is 1 where the value is null."""
    return np.hstack([np.nan_to_num(scores, nan=0.0), np.isnan(scores)])
