"""The yardstick of every reconstruction: dask-ml's PCA of the tensor that the network sees, of the same width."""

from __future__ import annotations

from typing import Any, TypeVar

import dask.array as da
import numpy as np
import pyarrow as pa
from dask_ml.decomposition import PCA
from numpy.typing import ArrayLike, NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.release.column import DEC, RA, SOURCE_ID

CHUNK_ROWS = 100_000
"""Rows of one block: some tens of MB, so that a few blocks fit in a worker's memory."""

Values = TypeVar("Values", bound=Any)


def fit_pca(train_values: ArrayLike | da.Array, n_components: int) -> PCA:
    """PCA of train stars' transformed inputs, nulls at 0 as the network sees them.

    Args:
        train_values: shape (stars, n_values); numpy, or a dask array of known chunks, which is computed where dask computes.
            Position as a condition is not among the values.
        n_components: the latents' width; capped at n_values, where PCA rebuilds exactly.

    Returns:
        The fitted PCA.

    Raises:
        DataError: the chunks are unknown, or there are fewer stars than values.
    """
    array = train_values if isinstance(train_values, da.Array) else da.from_array(np.asarray(train_values), (CHUNK_ROWS, -1))
    if np.isnan(array.shape).any():
        raise DataError(f"PCA needs a dask array of known chunks, found shape {array.shape}: call compute_chunk_sizes() first")
    stars, n_values = array.shape
    if stars < n_values:
        raise DataError(f"PCA of {n_values} values needs at least as many train stars, found {stars}: select more stars")
    # float64: a float32 sum over millions of stars loses the digits that small components consist of.
    whole_rows = array.astype(np.float64).rechunk({0: "auto", 1: -1})
    return PCA(n_components=min(n_components, n_values), svd_solver="full").fit(whole_rows)


def pca_rebuild(pca: PCA, values: Values) -> Values:
    """`values` projected on the components and back: shape (stars, n_values), numpy or dask, of the same kind and type."""
    # By hand: dask-ml's own transform sends a numpy array to the scheduler and back.
    centred = values - pca.mean_
    return (centred @ pca.components_.T @ pca.components_ + pca.mean_).astype(values.dtype)


def pca_rebuilt(pca: PCA, transform: Transform, real: pa.Table, *, own_positions: bool = False) -> pa.Table:
    """Stars as the PCA rebuilds them. Derived columns are computed again, as for the network.

    Args:
        pca: of `fit_pca`.
        transform: the model's.
        real: stars with source_id, ra, dec and the model's columns.
        own_positions: whether positions are those that the PCA rebuilds, for a model that takes position as an input;
            otherwise they are the real ones.

    Returns:
        source_id and the model's columns, null where the real value is null.
    """
    values: NDArray[np.float32] = pca_rebuild(pca, transform.forward(real).values)
    position = () if own_positions else (real.column(RA).to_numpy(), real.column(DEC).to_numpy())
    rebuilt = transform.inverse(values, *position)
    arrays = {SOURCE_ID: real.column(SOURCE_ID)}
    for name in transform.columns:
        dtype = transform.release.columns[name].dtype
        null = real.column(name).is_null().to_numpy() | ~np.isfinite(rebuilt[name])
        arrays[name] = pa.array(rebuilt[name].astype(dtype.to_pandas_dtype()), dtype, mask=null)
    return pa.table(arrays)
