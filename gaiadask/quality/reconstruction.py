"""Star by star: how far rebuilt values lie from the real ones, and how far apart their distributions are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy.stats import ks_2samp

from gaiadask.errors import DataError
from gaiadask.quality.records import (
    NAN,
    ColumnRating,
    ErrorSummaries,
    Headline,
    Quantiles,
    Reconstruction,
    SigmaErrors,
    Summary,
    UnitErrors,
)
from gaiadask.quality.tables import Floats, finite_values, values
from gaiadask.release.column import DEC, MAS_PER_DEGREE, RA, Column
from gaiadask.release.release import Release
from gaiadask.sky import delta_ra_cos_dec, separation_deg

ARCSEC_PER_DEGREE = 3_600.0
MMAG_PER_DEX = 2_500.0
"""A flux ten times as large is 2.5 magnitudes brighter."""


def reconstruction(
    real: pa.Table, rebuilt: pa.Table, columns: Sequence[str], release: Release, derived: Collection[str] | None = None
) -> Reconstruction:
    """Rate rebuilt stars beside the real ones.

    Args:
        real: real stars, with their error columns where these are known.
        rebuilt: the same stars in the same order.
        columns: names of the columns to rate.
        release: the data release that the columns are of.
        derived: which of them are computed from others; by default all that the release has a formula for.

    Returns:
        The rating of each column, the summaries over columns and the errors of positions.

    Raises:
        DataError: the tables differ in length or lack a column.
    """
    ratings = rate_columns(real, rebuilt, columns, release, derived)
    position = position_error_arcsec(real, rebuilt)
    return Reconstruction(headline=summarise(ratings), position_error_arcsec=position, columns=ratings)


def rate_columns(
    real: pa.Table, rebuilt: pa.Table, columns: Sequence[str], release: Release, derived: Collection[str] | None = None
) -> dict[str, ColumnRating]:
    """The rating of each of `columns`, by name; arguments and errors as those of `reconstruction`."""
    if real.num_rows != rebuilt.num_rows:
        raise DataError(f"real and rebuilt stars must be the same rows: found {real.num_rows} and {rebuilt.num_rows}")
    derived = release.derivable(columns) if derived is None else derived
    return {name: _rate_column(real, rebuilt, release.columns[name], name in derived) for name in columns}


def _rate_column(real: pa.Table, rebuilt: pa.Table, column: Column, derived: bool) -> ColumnRating:
    name = column.name
    real_values, rebuilt_values = finite_values(real, name), finite_values(rebuilt, name)
    in_real, in_rebuilt = ~np.isnan(real_values), ~np.isnan(rebuilt_values)
    in_either = in_real | in_rebuilt
    error = _absolute_error(name, real, real_values, rebuilt_values)
    iqr = float(np.diff(np.quantile(real_values[in_real], [0.25, 0.75]))[0]) if in_real.any() else NAN
    return ColumnRating(
        unit=column.unit,
        derived=derived,
        stars=int(in_real.sum()),
        lost=int((in_real & ~in_rebuilt).sum()),
        invented=int((in_rebuilt & ~in_real).sum()),
        iqr=iqr,
        # A column without width has no natural unit: not rated this way.
        error_over_iqr=Quantiles.of(error[in_either] / iqr if iqr > 0 else np.empty(0)),
        error_in_sigma=_summed_up(in_sigma(real, column, error)),
        error_in_unit=UnitErrors.of_unit(*_in_unit(column, real_values, rebuilt_values, error)),
        error_arcsec=Quantiles.of(error[in_either] * ARCSEC_PER_DEGREE) if name in (RA, DEC) else None,
        ks=ks_distance(real_values[in_real], rebuilt_values[in_rebuilt]),
        identical=float((rebuilt_values == real_values)[in_real].mean()) if in_real.any() else NAN,
    )


def absolute_error(real: pa.Table, rebuilt: pa.Table, name: str) -> Floats:
    """|rebuilt - real| of a column in its unit, shape (stars,); NaN where neither has a value, infinite where one has."""
    return _absolute_error(name, real, finite_values(real, name), finite_values(rebuilt, name))


def _absolute_error(name: str, real: pa.Table, real_values: Floats, rebuilt_values: Floats) -> Floats:
    """As `absolute_error`; of ra times cos(dec), the short way round."""
    error = (
        delta_ra_cos_dec(rebuilt_values, real_values, values(real, DEC)) if name == RA else rebuilt_values - real_values
    )  # fmt: skip
    return np.where(np.isnan(real_values) != np.isnan(rebuilt_values), np.inf, np.abs(error))


def _in_unit(column: Column, real: Floats, rebuilt: Floats, error: Floats) -> tuple[str, Floats]:
    """The unit in which one speaks of a column's errors, and the absolute errors in it that are known, infinite where a value was
    lost or invented; of a flux as magnitudes, where the real one has one."""
    unit = column.unit
    if unit == "'electron'.s**-1" and column.sign_matters:  # not an error of a flux: that is in the flux's unit
        with np.errstate(divide="ignore", invalid="ignore"):
            magnitudes = np.abs(MMAG_PER_DEX * (np.log10(rebuilt) - np.log10(real)))
        is_gone = np.isinf(error) | (rebuilt <= 0)
        unit, error = "mmag", np.where(np.isnan(real) | (real > 0), np.where(is_gone, np.inf, magnitudes), NAN)
    elif unit == "mag":
        unit, error = "mmag", 1_000 * error
    elif unit == "deg":
        unit, error = "mas", MAS_PER_DEGREE * error
    return unit, error[~np.isnan(error)]


def in_sigma(real: pa.Table, column: Column, error: Floats) -> Floats | None:
    """Absolute errors of a column in units of each star's own catalogue error, NaN where it has none above 0; None where there is no
    column of them."""
    if column.error_column is None or column.error_column not in real.column_names:
        return None
    sigma = column.error_factor * values(real, column.error_column)
    return np.divide(error, sigma, out=np.full(len(error), NAN), where=sigma > 0)


def _summed_up(ratio: Floats | None) -> SigmaErrors | None:
    if ratio is None:
        return None
    ratio = ratio[~np.isnan(ratio)]
    if not len(ratio):
        return SigmaErrors(stars=0, median=NAN, p90=NAN, within_1_sigma=NAN, beyond_3_sigma=NAN)
    quantiles = Quantiles.of(ratio)
    return SigmaErrors(
        stars=len(ratio), median=quantiles.median, p90=quantiles.p90,
        within_1_sigma=float((ratio <= 1).mean()), beyond_3_sigma=float((ratio > 3).mean()),
    )  # fmt: skip


def ks_distance(one: Floats, other: Floats) -> float:
    """Kolmogorov-Smirnov distance of two samples without NaN: 0 (alike) to 1; NaN where both are empty, 1 where one is."""
    if not len(one) or not len(other):
        return NAN if len(one) == len(other) else 1.0
    with np.errstate(all="ignore"):  # of the p-value, which is not used; "asymp" is its fast form
        return float(ks_2samp(one, other, method="asymp").statistic)


def position_error_arcsec(real: pa.Table, rebuilt: pa.Table) -> Quantiles | None:
    """Great-circle distances of rebuilt from real positions; None where ra and dec are not both in the rebuilt table."""
    if not {RA, DEC} <= set(rebuilt.column_names):
        return None
    distance = separation_deg(values(rebuilt, RA), values(rebuilt, DEC), values(real, RA), values(real, DEC))
    return Quantiles.of(np.where(np.isfinite(distance), distance * ARCSEC_PER_DEGREE, np.inf))


def summarise(ratings: Mapping[str, ColumnRating]) -> Headline:
    """Mean and worst over columns of |error| / IQR and of KS distances: over every column but ra and dec, and over all."""
    beside_position = {name: rating for name, rating in ratings.items() if name not in (RA, DEC)}
    return Headline(beside_position=_summaries(beside_position), all_columns=_summaries(ratings))


def _summaries(ratings: Mapping[str, ColumnRating]) -> ErrorSummaries:
    errors = {name: rating.error_over_iqr for name, rating in ratings.items()}
    return ErrorSummaries(
        median=Summary.of({name: error.median for name, error in errors.items()}),
        p90=Summary.of({name: error.p90 for name, error in errors.items()}),
        p99=Summary.of({name: error.p99 for name, error in errors.items()}),
        ks=Summary.of({name: rating.ks for name, rating in ratings.items()}),
    )
