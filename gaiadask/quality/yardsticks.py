"""Simple ways to generate stars, beside which a model's stars are judged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from gaiadask.errors import DataError
from gaiadask.quality.tables import Floats, number_columns, values
from gaiadask.release.release import Release


def independent_columns_sample(table: pa.Table, rows: int, release: Release, seed: int = 0) -> pa.Table:
    """Stars whose every column is drawn from that column alone, nulls included: right distributions, nothing else.

    Args:
        table: stars to draw values from.
        rows: number of stars to draw.
        release: the data release that the columns are of.
        seed: of the random numbers.

    Returns:
        `rows` rows of the table's number columns, in their types.

    Raises:
        DataError: the table has no rows.
    """
    names, random = _columns_of(table, release), np.random.default_rng(seed)
    drawn = {n: table.column(n).combine_chunks().take(pa.array(_spread(table.num_rows, rows, random))) for n in names}
    return pa.table(drawn)


def gaussian_copula_sample(table: pa.Table, rows: int, release: Release, seed: int = 0) -> pa.Table:
    """Stars with the right distribution of each column, joined by a Gaussian copula: the best that correlations can do.

    Correlations are of the normal scores, each over the stars that have both values; every value is one that a star of
    the table has; which values are null is copied from a star of the table. Arguments, result and errors are those of
    `independent_columns_sample`.
    """
    names, random = _columns_of(table, release), np.random.default_rng(seed)
    columns = np.stack([values(table, n) for n in names], axis=1)
    uniform = norm.cdf(random.standard_normal((rows, len(names))) @ _factor(_correlations(columns)).T)
    null = np.isnan(columns)[_spread(table.num_rows, rows, random)]
    drawn = {}
    for i, name in enumerate(names):
        known = np.sort(columns[~np.isnan(columns[:, i]), i])
        picked = known[(uniform[:, i] * len(known)).astype(np.int64).clip(0, len(known) - 1)] if len(known) else np.zeros(rows)
        is_null = null[:, i] if len(known) else np.ones(rows, bool)
        drawn[name] = pa.array(picked, mask=is_null).cast(table.schema.field(name).type, safe=False)
    return pa.table(drawn)


def _columns_of(table: pa.Table, release: Release) -> tuple[str, ...]:
    if table.num_rows == 0:
        raise DataError("cannot generate stars like those of a table without rows: give it at least one star")
    return number_columns(table, table, release)


def _spread(available: int, rows: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`rows` random row numbers, each used as often as any other (to one): as few repeats as there can be."""
    repeats = -(-rows // available)
    return np.concatenate([random.permutation(available) for _ in range(repeats)])[:rows]


def _correlations(columns: Floats) -> Floats:
    """Correlations of normal scores, shape (columns, columns), each over the rows that have both values."""
    known = ~np.isnan(columns)
    scores = np.zeros_like(columns)
    for i in range(columns.shape[1]):
        rows = known[:, i]
        scores[rows, i] = norm.ppf((rankdata(columns[rows, i]) - 0.5) / max(rows.sum(), 1))
    # Sums over pairs of known values only, since an unknown score is 0 and its mask too.
    weights = known.astype(np.float64)
    products, squares = scores.T @ scores, (scores**2).T @ weights
    scale = np.sqrt(squares * squares.T)
    correlations = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(correlations, 1.0)
    return correlations


def _factor(correlations: Floats) -> Floats:
    """A matrix F with F F' = the correlations; eigenvalues below 0, left by pairwise estimates, are cut and the rows rescaled."""
    eigenvalues, vectors = np.linalg.eigh(correlations)
    factor = vectors * np.sqrt(np.clip(eigenvalues, 0, None))
    return factor / np.linalg.norm(factor, axis=1, keepdims=True)
