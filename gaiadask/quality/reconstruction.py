"""Star by star: how far rebuilt values lie from the real ones, and how far apart the marginals are.

Quantiles are order statistics (the smallest value that at least that share of stars does not exceed), so that an
infinite error moves only the quantiles it reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.quality.tables import values
from gaiadask.release.column import DEC, RA
from gaiadask.release.dr2 import COLUMNS, DR2
from gaiadask.sky import separation_deg

Floats = NDArray[np.float64]

ARCSEC_PER_DEGREE = 3_600.0
NAN = float("nan")
RATED_BY = ("median", "p90", "p99")


@dataclass(frozen=True)
class Quantiles:
    """Of absolute errors, in one unit; NaN where there is nothing to rate, infinite where that many values are lost."""

    median: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, errors: Floats) -> Quantiles:
        """errors: shape (n,), not negative, infinite where a value is lost or invented."""
        if not len(errors):
            return cls(NAN, NAN, NAN, NAN)
        return cls(*(float(q) for q in np.quantile(errors, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf")))


@dataclass(frozen=True)
class SigmaErrors:
    """Absolute errors in units of the star's own catalogue error, over the `stars` that have one."""

    stars: int
    median: float
    p90: float
    within_1_sigma: float
    beyond_3_sigma: float


@dataclass(frozen=True)
class ColumnRating:
    """One column: what the module docstring of `gaiadask.quality` says of it. iqr is in `unit`."""

    unit: str
    derived: bool
    stars: int
    lost: int
    invented: int
    iqr: float
    error_over_iqr: Quantiles
    error_in_sigma: SigmaErrors | None
    error_arcsec: Quantiles | None
    ks: float


def rate_columns(real: pa.Table, rebuilt: pa.Table, columns: Sequence[str]) -> dict[str, ColumnRating]:
    """Every one of `columns` rated. The tables hold the same stars in the same order; error columns are read from `real`.

    Raises DataError where the tables differ in length or lack a column.
    """
    if real.num_rows != rebuilt.num_rows:
        raise DataError(f"real and rebuilt stars must be the same rows: found {real.num_rows} and {rebuilt.num_rows}")
    derived = DR2.derivable(columns)
    return {name: _rate_column(real, rebuilt, name, name in derived) for name in columns}


def _rate_column(real: pa.Table, rebuilt: pa.Table, name: str, derived: bool) -> ColumnRating:
    ours, theirs = _finite(values(real, name)), _finite(values(rebuilt, name))
    here, there = ~np.isnan(ours), ~np.isnan(theirs)
    either = here | there
    error = np.where(here & there, _absolute_error(name, real, ours, theirs), np.inf)
    iqr = float(np.diff(np.quantile(ours[here], [0.25, 0.75]))[0]) if here.any() else NAN
    return ColumnRating(
        unit=COLUMNS[name].unit,
        derived=derived,
        stars=int(here.sum()),
        lost=int((here & ~there).sum()),
        invented=int((there & ~here).sum()),
        iqr=iqr,
        # A column without width has no natural unit: not rated this way.
        error_over_iqr=Quantiles.of(error[either] / iqr if iqr > 0 else np.empty(0)),
        error_in_sigma=_in_sigma(real, name, error, either),
        error_arcsec=Quantiles.of(error[either] * ARCSEC_PER_DEGREE) if name in (RA, DEC) else None,
        ks=ks_distance(ours[here], theirs[there]),
    )


def _finite(column: Floats) -> Floats:
    return np.where(np.isfinite(column), column, np.nan)


def _absolute_error(name: str, real: pa.Table, ours: Floats, theirs: Floats) -> Floats:
    """In the column's unit; of ra times cos(dec), the short way round."""
    if name != RA:
        return np.abs(theirs - ours)
    wrapped = (theirs - ours + 180.0) % 360.0 - 180.0
    return np.abs(wrapped * np.cos(np.radians(values(real, DEC))))


def _in_sigma(real: pa.Table, name: str, error: Floats, either: NDArray[np.bool_]) -> SigmaErrors | None:
    column = COLUMNS[name]
    if column.error_column is None or column.error_column not in real.column_names:
        return None
    sigma = column.error_factor * values(real, column.error_column)
    rated = either & (sigma > 0)
    if not rated.any():
        return SigmaErrors(0, NAN, NAN, NAN, NAN)
    ratio = error[rated] / sigma[rated]
    quantiles = Quantiles.of(ratio)
    return SigmaErrors(len(ratio), quantiles.median, quantiles.p90, float((ratio <= 1).mean()), float((ratio > 3).mean()))


def ks_distance(one: Floats, other: Floats) -> float:
    """Kolmogorov-Smirnov distance of two samples without NaN: 0 (alike) to 1; NaN where both are empty, 1 where one is."""
    if not len(one) or not len(other):
        return NAN if len(one) == len(other) else 1.0
    one, other = np.sort(one), np.sort(other)
    at = np.sort(np.concatenate([one, other]))
    shares = (np.searchsorted(sample, at, side="right") / len(sample) for sample in (one, other))
    return float(np.abs(np.subtract(*shares)).max())


def position_error_arcsec(real: pa.Table, rebuilt: pa.Table) -> Quantiles | None:
    """Great-circle distances of rebuilt from real positions; None where ra and dec are not both in the rebuilt table."""
    if not {RA, DEC} <= set(rebuilt.column_names):
        return None
    there = separation_deg(values(rebuilt, RA), values(rebuilt, DEC), values(real, RA), values(real, DEC))
    return Quantiles.of(np.where(np.isfinite(there), there * ARCSEC_PER_DEGREE, np.inf))


@dataclass(frozen=True)
class Summary:
    """Mean and worst of one number over columns; `worst_column` had the worst, `columns` were counted."""

    mean: float
    worst: float
    worst_column: str | None
    columns: int

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Summary:
        """NaN (not rated) is left out; an infinite number makes mean and worst infinite."""
        rated = {name: x for name, x in numbers.items() if not np.isnan(x)}
        if not rated:
            return cls(NAN, NAN, None, 0)
        worst = max(rated, key=lambda name: rated[name])
        return cls(float(np.mean(list(rated.values()))), rated[worst], worst, len(rated))


def headline(ratings: Mapping[str, ColumnRating]) -> dict[str, dict[str, Summary]]:
    """Mean and worst over columns of median, 90 % and 99 % of |error| / IQR and of KS.

    "beside_position": every column but ra and dec, the number to quote; "all_columns": every column.
    """
    beside = {n: r for n, r in ratings.items() if n not in (RA, DEC)}
    return {"beside_position": _summaries(beside), "all_columns": _summaries(ratings)}


def _summaries(ratings: Mapping[str, ColumnRating]) -> dict[str, Summary]:
    summaries = {key: Summary.of({n: getattr(r.error_over_iqr, key) for n, r in ratings.items()}) for key in RATED_BY}
    return summaries | {"ks": Summary.of({n: r.ks for n, r in ratings.items()})}


def reconstruction(real: pa.Table, rebuilt: pa.Table, columns: Sequence[str]) -> dict[str, object]:
    """`rate_columns`, `headline` and `position_error_arcsec` as one dict of plain values (still with NaN and infinities)."""
    ratings = rate_columns(real, rebuilt, columns)
    position = position_error_arcsec(real, rebuilt)
    return {
        "headline": {part: {k: asdict(s) for k, s in summaries.items()} for part, summaries in headline(ratings).items()},
        "position_error_arcsec": asdict(position) if position else None,
        "columns": {name: asdict(rating) for name, rating in ratings.items()},
    }
