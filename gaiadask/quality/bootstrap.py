"""Standard errors of a rating: how far its numbers would be off with other test stars (bootstrap, Efron 1979, Annals of Statistics 7, 1).

A replicate gives each star a weight, how often it is drawn: a Poisson number of mean 1, as a star of many has in a draw with replacement.
A star has the same weight in every column and every test that it is part of, so that what these have in common is counted. Seeds are
fixed: the same stars have the same errors. Nothing is fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.quality.records import NAN, HeadlineErrors, SummaryErrors
from gaiadask.quality.tables import Floats, finite_values
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import hash64, smallest

REPLICATES = 100
"""A standard error is known to a fourteenth then."""
MOST_STARS = 10_000
"""That errors of a headline are bootstrapped over: of more stars they shrink as the square root of the number."""


class HeldOut(NamedTuple):
    """Stars that a classifier was not fitted to, by ascending score.

    Attributes:
        is_fake: whether each is rebuilt or new, shape (n,).
        stars: number of each, the same one in every test that it is part of, shape (n,).
        first: place of the first star of each score, shape (scores,).
    """

    is_fake: NDArray[np.bool_]
    stars: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, is_fake: NDArray[np.bool_], stars: NDArray[np.int64]) -> HeldOut:
        """The stars of these scores, in any order; a higher score is taken for a fake star's."""
        order = np.argsort(scores, kind="stable")
        first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
        return cls(is_fake[order], stars[order], first)

    def auc(self, weights: NDArray[np.float64] | None = None) -> float:
        """Share of the pairs of a real and a fake star in which the fake one has the higher score; a tie is half a pair.

        Args:
            weights: of the stars, by their number; None: all 1.

        Returns:
            NaN where no real star, or no fake one, has a weight.
        """
        own = np.ones(len(self.stars)) if weights is None else weights[self.stars]
        fake = np.add.reduceat(own * self.is_fake, self.first)
        real = np.add.reduceat(own, self.first) - fake
        pairs = real.sum() * fake.sum()
        return float(fake @ (np.cumsum(real) - real / 2) / pairs) if pairs else NAN


def auc_error(held_out: Sequence[HeldOut]) -> float:
    """Standard error of the mean AUC of these tests, whose classifiers are kept as they are."""
    random = np.random.default_rng(0)
    stars = 1 + max(int(test.stars.max()) for test in held_out)
    means = []
    for _ in range(REPLICATES):
        weights = random.poisson(1.0, stars).astype(np.float64)
        means.append(np.nanmean([test.auc(weights) for test in held_out]))
    return float(np.std(means, ddof=1))


class _Replicates(NamedTuple):
    """A column's numbers in each replicate, shape (REPLICATES,)."""

    median: Floats
    p99: Floats
    ks: Floats


def headline_errors(real: pa.Table, rebuilt: pa.Table, columns: Sequence[str]) -> HeadlineErrors:
    """Standard errors of a rating's headline beside position.

    Args:
        real: real stars, with source_id.
        rebuilt: the same stars in the same order.
        columns: that are rated.
    """
    chosen = np.sort(smallest(hash64(real[SOURCE_ID].to_numpy()), MOST_STARS))
    of_chosen = math.sqrt(len(chosen) / max(real.num_rows, 1))
    weights = np.random.default_rng(0).poisson(1.0, (len(chosen), REPLICATES)).astype(np.float32)
    rated = [
        _replicates(finite_values(real, name)[chosen], finite_values(rebuilt, name)[chosen], weights)
        for name in columns
        if name not in (RA, DEC)
    ]
    median, p99, ks = (_errors([getattr(each, name) for each in rated], of_chosen) for name in _Replicates._fields)
    return HeadlineErrors(median=median, p99=p99, ks=ks)


def _errors(columns: Sequence[Floats], scale: float) -> SummaryErrors:
    """Standard errors of mean and worst over columns, but those for which a number is not defined."""
    defined = [numbers for numbers in columns if not np.isnan(numbers).any()]
    if not defined:
        return SummaryErrors(mean=NAN, worst=NAN)
    with np.errstate(invalid="ignore"):  # infinite where values were lost
        mean, worst = (scale * float(np.std(of(defined, axis=0), ddof=1)) for of in (np.mean, np.max))
    return SummaryErrors(mean=mean, worst=worst)


def _replicates(real: Floats, rebuilt: Floats, weights: NDArray[np.float32]) -> _Replicates:
    """A column's median and 99 % quantile of |error| / IQR, and its KS distance, with each replicate's weights, shape (stars, REPLICATES)."""
    in_real, in_rebuilt = np.isfinite(real), np.isfinite(rebuilt)
    either = in_real | in_rebuilt
    error = np.where(in_real & in_rebuilt, np.abs(rebuilt - real), np.inf)[either]
    if not in_real.any():
        return _Replicates(*np.full((3, weights.shape[1]), NAN))
    low, high = _quantiles(real[in_real], weights[in_real], (0.25, 0.75))
    # A column without width has no natural unit: not rated this way.
    iqr = np.where(high > low, high - low, NAN)
    median, p99 = (quantile / iqr for quantile in _quantiles(error, weights[either], (0.5, 0.99)))
    return _Replicates(median, p99, _ks(real[in_real], rebuilt[in_rebuilt], weights[in_real], weights[in_rebuilt]))


def _quantiles(values: Floats, weights: NDArray[np.float32], at: Sequence[float]) -> list[Floats]:
    """Quantiles of values with each replicate's weights, as order statistics."""
    order = np.argsort(values)
    below = np.cumsum(weights[order], axis=0)
    return [values[order[np.minimum((below < q * below[-1]).sum(axis=0), len(values) - 1)]] for q in at]


def _ks(one: Floats, other: Floats, of_one: NDArray[np.float32], of_other: NDArray[np.float32]) -> Floats:
    """Kolmogorov-Smirnov distance of two samples with each replicate's weights."""
    if not len(other):
        return np.ones(of_one.shape[1])
    both = np.concatenate([one, other])
    order = np.argsort(both, kind="stable")
    last = np.flatnonzero(np.diff(both[order], append=np.inf))  # of values that are alike
    shares = np.concatenate([of_one / of_one.sum(axis=0), -of_other / of_other.sum(axis=0)])[order]
    return np.abs(np.cumsum(shares, axis=0, dtype=np.float64)[last]).max(axis=0)
