"""The two-sample test: how well a classifier tells one set of stars from another (AUC 0.5: not at all).

An AUC grows with the number of stars and the size of the classifier, so both are fixed (FOLDS, MAX_ITER, the configured
rows and seeds): numbers of other settings do not compare. The two sides must be different stars. A star and its own
rebuilt self on both sides leak: a tree that has seen one of them in training knows the other's neighbourhood with the
label the wrong way round, and the AUC falls below 0.5 however good or bad the model is.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer
from threadpoolctl import threadpool_limits

from gaiadask.errors import DataError
from gaiadask.quality.bootstrap import HeldOut, auc_error
from gaiadask.quality.physics import comparable_features
from gaiadask.quality.records import FEATURES, AucResult, Features
from gaiadask.quality.tables import Floats, number_columns, values
from gaiadask.release.release import Release

FOLDS = 3
"""More folds leave more stars for training and cost as many more fits; 3 leave two thirds."""
MAX_ITER = 150
"""Trees of a boosted classifier: more tell finer differences and cost time in proportion."""
MLP_EPOCHS = 20
"""Passes of the network over its stars: more tell finer differences and cost time in proportion."""
MLP_WIDTHS = (64, 64)
"""Hidden layers of the network, small enough to learn from a few hundred stars."""


def two_sample_auc(
    real: pa.Table,
    fake: pa.Table,
    release: Release,
    features: Features = "raw",
    rows: int = 20_000,
    folds: int = FOLDS,
    seeds: int = 3,
) -> AucResult:
    """AUC with which a classifier tells `fake` from `real` stars, on stars that it was not fitted to.

    Args:
        real: real stars.
        fake: rebuilt or new stars, different ones from `real` (see the module's docstring).
        release: the data release that the columns are of.
        features: "raw": boosted trees on the number columns that both tables have; "physics": the same trees on these and
            `physics_features`; "mlp": a small neural network on the quantile-normalised columns, nulls at the median and
            flagged. source_id and other identifiers are left out.
        rows: stars of each side that take part, fewer where there are fewer.
        folds: of the cross-validation.
        seeds: repetitions with other stars and other folds.

    Returns:
        The AUC, its standard error, and what it was made from.

    Raises:
        DataError: a side has fewer stars than two a fold, or no value at all.
    """
    n = min(rows, real.num_rows, fake.num_rows)
    if n < 2 * folds:
        raise DataError(f"a two-sample test of {folds} folds needs at least {2 * folds} stars on each side, found {n}")
    started = time.perf_counter()
    inputs: tuple[str, ...] = ()
    held_out: list[list[HeldOut]] = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        rows_of = [random.permutation(table.num_rows)[:n] for table in (real, fake)]
        own, other = (table.take(pa.array(drawn)) for table, drawn in zip((real, fake), rows_of, strict=True))
        inputs, x, y = _labelled(own, other, release, features)
        # The same star has the same number in each seed, so that the bootstrap draws stars and not rows.
        stars = np.concatenate([rows_of[0], real.num_rows + rows_of[1]])
        held_out.append(list(_cross_validated(x, y, stars, features, folds, seed)))
    scores = [float(np.mean([fold.auc() for fold in of_seed])) for of_seed in held_out]
    seconds = time.perf_counter() - started
    return AucResult(
        features=features,
        mean=float(np.mean(scores)),
        # The bootstrap keeps the classifiers as they are; other classifiers, of other stars and folds, scatter as the seeds do.
        spread=math.hypot(
            auc_error([fold for of_seed in held_out for fold in of_seed]),
            float(np.std(scores, ddof=1)) if seeds > 1 else 0.0,
        ),
        values=tuple(scores),
        rows=n,
        folds=folds,
        inputs=inputs,
        seconds_per_fit=seconds / (seeds * folds),
    )


def _labelled(
    real: pa.Table, fake: pa.Table, release: Release, features: Features
) -> tuple[tuple[str, ...], Floats, NDArray[np.int8]]:
    """Names, matrix (both tables' rows, columns; real first) and labels (1: fake) of a classification."""
    names = number_columns(real, fake, release)
    columns = [_same_precision(real, fake, name) for name in names]
    if features == "physics":
        of_real, of_fake = comparable_features(real, fake, release)
        names += tuple(of_real)
        columns += [np.concatenate([of_real[n], of_fake[n]]) for n in of_real]
    labels = np.repeat(np.array([0, 1], np.int8), [real.num_rows, fake.num_rows])
    matrix = np.stack(columns, axis=1)
    matrix[~np.isfinite(matrix)] = np.nan
    known = np.asarray(np.isfinite(matrix).any(axis=0))  # a column null throughout tells nothing, and has no quantiles
    if not known.any():
        raise DataError(f"nothing to compare: every value of {names} is null in both tables")
    return tuple(n for n, k in zip(names, known, strict=True) if k), matrix[:, known], labels


def _same_precision(real: pa.Table, fake: pa.Table, name: str) -> Floats:
    """One column of both tables, in the coarser of their types: otherwise its last bits would tell them apart."""
    both = np.concatenate([values(real, name), values(fake, name)])
    single = pa.float32() in (real.schema.field(name).type, fake.schema.field(name).type)
    return both.astype(np.float32).astype(np.float64) if single else both


def _cross_validated(
    x: Floats, y: NDArray[np.int8], stars: NDArray[np.int64], features: Features, folds: int, seed: int
) -> Iterator[HeldOut]:
    """Each fold's left-out stars, as a classifier that was fitted to the other folds scores them."""
    # One thread: the tests run side by side on workers, and threads that wait for a busy core are slower than one thread.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the network's epochs are fixed on purpose
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
            classifier = _classifier(features, seed, len(train)).fit(x[train], y[train])
            yield HeldOut.of(classifier.predict_proba(x[test])[:, 1], y[test] == 1, stars[test])


def _classifier(features: Features, seed: int, rows: int) -> Any:
    if features in ("raw", "physics"):
        return HistGradientBoostingClassifier(max_iter=MAX_ITER, early_stopping=False, random_state=seed)
    if features == "mlp":
        network = MLPClassifier(
            MLP_WIDTHS,
            # As many epochs for every network, whether or not its loss still falls.
            max_iter=MLP_EPOCHS,
            n_iter_no_change=MLP_EPOCHS + 1,
            # About 50 steps an epoch where there are few stars, so that it learns at all; larger batches are faster.
            batch_size=min(500, max(20, rows // 50)),
            learning_rate_init=3e-3,  # three times the default: few epochs
            random_state=seed,
        )
        # A thousand quantiles follow any distribution to 0.1 % of its stars.
        quantiles = QuantileTransformer(n_quantiles=min(1_000, rows), output_distribution="normal", subsample=None)
        return make_pipeline(quantiles, FunctionTransformer(_flag_nulls), network)
    raise ValueError(f"unknown features {features!r}: expected one of {FEATURES}")


def _flag_nulls(scores: Floats) -> Floats:
    """Normal scores with nulls at the median, 0, and beside them a column that is 1 where the value is null."""
    return np.hstack([np.nan_to_num(scores, nan=0.0), np.isnan(scores)])
