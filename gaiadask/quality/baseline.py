"""The yardstick of every reconstruction: PCA of the tensor that the network sees, of the same width, and of the same bits a star.

It is fitted on mean and covariance, which workers sum up: no process holds the stars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from gaiadask.config.presets import MOST_BITS
from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.training.rounding import allocated_bits

Floats = NDArray[np.float64]


class Moments(NamedTuple):
    """Of some stars' inputs of the network, nulls at 0 as it sees them: number, mean (n_values,), scatter about it (n_values, n_values)."""

    stars: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Moments:
        """Moments of values of shape (stars, n_values)."""
        # float64: a float32 sum over millions of stars loses the digits that small components consist of.
        exact = values.astype(np.float64)
        mean = exact.mean(axis=0) if len(exact) else np.zeros(exact.shape[1])
        exact -= mean
        return cls(len(exact), mean, exact.T @ exact)

    @classmethod
    def merged(cls, parts: Sequence[Moments]) -> Moments:
        """Of the stars of all parts (Chan, Golub and LeVeque 1979)."""
        stars = sum(part.stars for part in parts)
        mean = sum((part.mean * part.stars for part in parts), np.zeros_like(parts[0].mean)) / max(stars, 1)
        between = [np.sqrt(part.stars) * (part.mean - mean) for part in parts]
        return cls(stars, mean, sum((part.scatter for part in parts), np.stack(between).T @ np.stack(between)))


class Pca(NamedTuple):
    """Mean (n_values,), orthonormal components (n_components, n_values), those of the largest variance first, and their standard
    deviations (n_components,)."""

    mean: Floats
    components: Floats
    spread: Floats


def fit_pca(moments: Moments, n_components: int) -> Pca:
    """PCA of train stars' inputs.

    Args:
        moments: of the train stars. Position as a condition is not among the values.
        n_components: the latents' width; capped at n_values, where PCA rebuilds exactly.

    Raises:
        DataError: there are fewer stars than values.
    """
    n_values = len(moments.mean)
    if moments.stars < n_values:
        raise DataError(f"PCA of {n_values} values needs at least as many train stars, found {moments.stars}: select more stars")
    scatter, vectors = np.linalg.eigh(moments.scatter)  # ascending
    spread = np.sqrt(np.maximum(scatter[::-1] / moments.stars, 0))
    return Pca(moments.mean, vectors.T[::-1][:n_components], spread[:n_components])


def pca_rebuild(pca: Pca, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values` projected on the components and back, shape (stars, n_values)."""
    return ((values - pca.mean) @ pca.components.T @ pca.components + pca.mean).astype(np.float32)


def pca_codes(pca: Pca, values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """`values` rebuilt from so many bits a star: each component is cut into bins of equal rank, taken as normal; bits go where most
    variance is left."""
    spread = np.maximum(pca.spread, 1e-9)
    given = allocated_bits((1 / spread).tolist(), min(bits, MOST_BITS * len(spread)))
    scores = (values - pca.mean) @ pca.components.T / spread
    return (binned(scores, given) * spread @ pca.components + pca.mean).astype(np.float32)


def binned(scores: NDArray[np.floating], bits: Sequence[int]) -> Floats:
    """Standard normal scores, shape (n, k), as the middles of 2^bits bins of equal rank each."""
    bins = 2.0 ** np.array(bits)
    return np.asarray(ndtri((np.minimum(np.floor(ndtr(scores.astype(np.float64)) * bins), bins - 1) + 0.5) / bins))


def pca_rebuilt(pca: Pca, transform: Transform, real: pa.Table, *, own_positions: bool = False, bits: int = 0) -> pa.Table:
    """Stars as the PCA rebuilds them. Derived columns are computed again, as for the network.

    Args:
        pca: of `fit_pca`.
        transform: the model's.
        real: stars with source_id, ra, dec and the model's columns.
        bits: of a star, where components are rounded; 0: they are not.
        own_positions: whether positions are those that the PCA rebuilds, for a model that takes position as an input;
            otherwise they are the real ones.

    Returns:
        source_id and the model's columns, null where the real value is null.
    """
    values = transform.forward(real).values
    rebuilt = pca_codes(pca, values, bits) if bits else pca_rebuild(pca, values)
    return rebuilt_table(transform, rebuilt, real, own_positions=own_positions)


def rebuilt_table(transform: Transform, values: NDArray[np.float32], real: pa.Table, *, own_positions: bool) -> pa.Table:
    """The stars of network values, shape (n, n_values), beside the real ones: as `pca_rebuilt`."""
    position = () if own_positions else (real.column(RA).to_numpy(), real.column(DEC).to_numpy())
    rebuilt = transform.inverse(values, *position)
    arrays = {SOURCE_ID: real.column(SOURCE_ID)}
    for name in transform.columns:
        dtype = transform.release.columns[name].dtype
        null = real.column(name).is_null().to_numpy() | ~np.isfinite(rebuilt[name])
        arrays[name] = pa.array(rebuilt[name].astype(dtype.to_pandas_dtype()), dtype, mask=null)
    return pa.table(arrays)
