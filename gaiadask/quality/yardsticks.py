"""Simple ways of making stars up, beside which a model's stars are judged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from gaiadask.errors import DataError
from gaiadask.quality.tables import number_columns, values


def independent_columns_sample(table: pa.Table, rows: int, seed: int = 0) -> pa.Table:
    """Stars whose every column is drawn from that column alone, nulls included: right marginals, nothing else.

    Returns `rows` rows of the table's number columns and their types. Raises DataError for a table without rows.
    """
    names, random = _columns_of(table), np.random.default_rng(seed)
    drawn = {n: table.column(n).combine_chunks().take(pa.array(_spread(table.num_rows, rows, random))) for n in names}
    return pa.table(drawn)


def gaussian_copula_sample(table: pa.Table, rows: int, seed: int = 0) -> pa.Table:
    """Stars of the right marginals whose columns are joined by a Gaussian copula: the best that correlations can do.

    Correlations are of the normal scores, each over the stars that have both values; every value is one that a star of
    the table has; which are null is copied from a star of the table. Returns `rows` rows of the table's number columns.
    Raises DataError for a table without rows.
    """
    names, random = _columns_of(table), np.random.default_rng(seed)
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


def _columns_of(table: pa.Table) -> tuple[str, ...]:
    if table.num_rows == 0:
        raise DataError("cannot make stars up after a table without rows")
    return number_columns(table, table)


def _spread(available: int, rows: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`rows` random row numbers, each used as often as any other (to one): as few repeats as there can be."""
    repeats = -(-rows // available)
    return np.concatenate([random.permutation(available) for _ in range(repeats)])[:rows]


def _correlations(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations of normal scores, shape (columns, columns), each over the rows that have both values."""
    known = ~np.isnan(columns)
    scores = np.zeros_like(columns)
    for i in range(columns.shape[1]):
        here = known[:, i]
        scores[here, i] = norm.ppf((rankdata(columns[here, i]) - 0.5) / max(here.sum(), 1))
    # Sums over pairs of known values only, since an unknown score is 0 and its mask too.
    weights = known.astype(np.float64)
    products, squares = scores.T @ scores, (scores**2).T @ weights
    scale = np.sqrt(squares * squares.T)
    correlations = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(correlations, 1.0)
    return correlations


def _factor(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix F with F F' = the correlations; what pairwise estimates left below 0 is cut off and the rows rescaled."""
    eigenvalues, vectors = np.linalg.eigh(correlations)
    factor = vectors * np.sqrt(np.clip(eigenvalues, 0, None))
    return factor / np.linalg.norm(factor, axis=1, keepdims=True)
