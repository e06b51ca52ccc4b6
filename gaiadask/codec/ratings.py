"""What a compressed catalogue's bits are worth: beside other bounds, and beside the noise that the catalogue itself says is there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from scipy.special import ndtr

from gaiadask.codec.bounds import Tolerance, tolerances
from gaiadask.codec.card import CodecCard, ColumnCode
from gaiadask.codec.chunk import encode_chunk
from gaiadask.codec.grid import step_of
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.store.paths import Tile

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Bounds at which the size is told, in units of each star's own error."""
_OFFSETS = 64
_WIDTH_SIGMA = 8.0


def noise_bits(step_sigma: float) -> float:
    """Entropy, bits, of normal noise rounded to steps of so many of its standard deviations, wherever the steps begin: what a
    measured value costs that is known but for its own error.

    >>> round(noise_bits(0.2), 3), round(noise_bits(2.0), 3)
    (4.371, 1.254)
    """
    steps = np.arange(-np.ceil(_WIDTH_SIGMA / step_sigma) - 1, np.ceil(_WIDTH_SIGMA / step_sigma) + 2)
    edges = (steps[:, None] + (np.arange(_OFFSETS) + 0.5) / _OFFSETS) * step_sigma
    shares = np.diff(ndtr(edges), axis=0)
    return float(-np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=0).mean())


def noise_bits_of(code: ColumnCode, error_factor: float) -> float | None:
    """`noise_bits` of a column with errors, on its own grid; None for another one."""
    return noise_bits(code.step / error_factor) if code.tolerance.kind == "sigma" else None


def bytes_over_bounds(
    sample: pa.Table, card: CodecCard, release: Release, own: Mapping[str, float], id_bytes: float
) -> dict[float, float]:
    """Bytes a star at each of BOUNDS, estimated on the stars that the tables were fitted to, with the same tables.

    Args:
        sample: those stars.
        card: fitted at its own bound.
        release: the columns' data release.
        own: bounds of single columns, which stay as they are.
        id_bytes: of a source_id: it depends on how dense the stars are, which a sample does not say.

    Returns:
        None at all where positions are counted from the partition, which a sample's stars are not of.
    """
    if card.anchor == "tile":
        return {}
    table = sample.drop_columns([HEALPIX_29]) if HEALPIX_29 in sample.column_names else sample
    return {
        bound: id_bytes + _sample_bytes(table, _with_bounds(card, tolerances(release, table.column_names, bound, own)), release)
        for bound in BOUNDS
    }


def _with_bounds(card: CodecCard, bounds: Mapping[str, Tolerance]) -> CodecCard:
    codes = []
    for code in card.columns:
        bound = bounds.get(code.name, code.tolerance)
        if code.kind == "grid" and bound.kind not in ("exact", "formula"):
            code = code.model_copy(update={"tolerance": bound, "step": step_of(bound, bounds)})
        codes.append(code)
    return card.model_copy(update={"columns": tuple(codes)})


def _sample_bytes(table: pa.Table, card: CodecCard, release: Release) -> float:
    chunk = encode_chunk(table, card, Tile(0, 0), release)
    return sum(len(blob) for name, coded in chunk.columns.items() if name != SOURCE_ID for blob in coded.blobs) / max(
        table.num_rows, 1
    )
