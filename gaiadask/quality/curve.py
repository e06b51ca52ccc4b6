"""Error against bits a star: the model's latents rounded more coarsely or finely than they are stored, beside two codes without a network.

Position, source_id and null mask are given to all of them, and not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.config.presets import MOST_BITS
from gaiadask.inputs.transform import NetworkInputs
from gaiadask.model.star_model import StarModel
from gaiadask.quality.baseline import Moments, binned, fit_pca, pca_codes, rebuilt_table
from gaiadask.quality.reconstruction import reconstruction
from gaiadask.quality.records import NAN, RateCurve, RatePoint
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import hash64, smallest
from gaiadask.training.rounding import allocated_bits

CURVE_STARS = 10_000
"""Test stars that a curve is rated on, at most: a median is known to a hundredth then, and a point takes a tenth of a second."""
BITS_A_VALUE = (24 / 9, 4, 48 / 9, 64 / 9, 80 / 9, 96 / 9, 12)
"""Bits a star of the points, for each value of the network: with the nine of the seed's columns 24 to 108."""

Code = Callable[[int], NDArray[np.float32]]
"""Network values as they are rebuilt from so many bits a star, shape (n, n_values)."""


def rate_curve(model: StarModel, real: pa.Table, train: Moments) -> RateCurve | None:
    """The curve of a model whose latents are rounded; None for others.

    Args:
        model: the model.
        real: test stars, as they are rated.
        train: moments of the network's inputs over train stars.
    """
    if not model.card.codes:
        return None
    stars = real.take(np.sort(smallest(hash64(real[SOURCE_ID].to_numpy()), CURVE_STARS)))
    inputs = model.transform.forward(stars)
    codes: dict[str, Code] = {"model": _Latents(model, inputs)}
    # Of any other scaling values are not normal, so that their quantiles are not known here.
    if model.card.model.scaling == "quantile" and model.transform.position == "condition":
        codes |= {
            "quantiles": lambda bits: _quantile_codes(inputs.values, bits),
            "pca": partial(pca_codes, fit_pca(train, model.transform.n_values), inputs.values),
        }
    budgets = [round(each * model.transform.n_values) for each in BITS_A_VALUE]
    return RateCurve(
        stars=len(stars),
        stored_bits=model.bits,
        entropy_bits=_entropy(model, inputs),
        codes={name: tuple(_point(model, stars, bits, code(bits)) for bits in budgets) for name, code in codes.items()},
    )


class _Latents:
    """The model's latents, each bit of a budget given as those of the files are (`allocated_bits`)."""

    def __init__(self, model: StarModel, inputs: NetworkInputs) -> None:
        self.model, self.inputs = model, inputs

    def __call__(self, bits: int) -> NDArray[np.float32]:
        codes = self.model.card.codes
        given = allocated_bits([c.precision for c in codes], min(bits, MOST_BITS * len(codes)), [c.errors for c in codes])
        return self.model.decode(self.model.encode(self.inputs, given), self.inputs.condition)


def _quantile_codes(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Each value cut into bins of equal rank, all columns into as many, and decoded to the middle of the bin by rank."""
    each, more = divmod(bits, values.shape[1])
    return binned(values, [each + (i < more) for i in range(values.shape[1])]).astype(np.float32)


def _entropy(model: StarModel, inputs: NetworkInputs) -> float:
    """Bits a star that are left of the stored ones where each latent is entropy-coded by itself."""
    total = 0.0
    for code, z in zip(model.card.codes, model.encode(inputs).T, strict=True):
        counts = np.unique(code.integers(z), return_counts=True)[1]
        # Miller and Madow's correction: of few stars an entropy is found too small.
        total += (
            float(-(counts / len(z) * np.log2(counts / len(z))).sum()) + (len(counts) - 1) / (2 * len(z) * np.log(2))
            if len(z)
            else 0
        )
    return total


def _point(model: StarModel, real: pa.Table, bits: int, values: NDArray[np.float32]) -> RatePoint:
    transform = model.transform
    rebuilt = rebuilt_table(transform, values, real, own_positions=transform.position != "condition")
    rating = reconstruction(real, rebuilt, transform.columns, transform.release, transform.derived)
    shares = [
        column.error_in_sigma.within_1_sigma
        for name, column in rating.columns.items()
        if name not in (RA, DEC) and column.error_in_sigma
    ]
    summaries = rating.headline.beside_position
    return RatePoint(
        bits=bits, error=summaries.median.mean, worst=summaries.median.worst, worst_column=summaries.median.worst_column,
        p99=summaries.p99.mean, ks=summaries.ks.mean, within_1_sigma=float(np.mean(shares)) if shares else NAN,
    )  # fmt: skip
