"""quality.json as typed records: how good a run is.

Test stars as published are compared with the same stars rebuilt from latents, with the same stars rebuilt by PCA of the same
width ("baseline"), and with new stars drawn from the prior ("sampled").

Whatever compares two sets of stars (two_sample, hr_diagram, sky, density_coverage) takes the real stars of one half against
the rebuilt stars of the other half: a star beside its own rebuilt self would flatter, or mislead, every one of these measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer

from gaiadask.records import Record

NAN = float("nan")

REBUILT, BASELINE, SAMPLED, REAL = "rebuilt", "baseline", "sampled", "real"
"""Names of the kinds of stars that are compared with real ones; "real": other real stars, a yardstick."""

Features = Literal["raw", "physics", "mlp"]
FEATURES: tuple[Features, ...] = get_args(Features)


def _from_json(value: float | None) -> float:
    return NAN if value is None else value


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(_from_json), PlainSerializer(_to_json, float | None, when_used="json")
]
"""A number that may be undefined (NaN), or infinite because so many values were lost; JSON holds null for both."""


def _is_none(value: object) -> bool:
    """Whether a part that earlier versions did not have is missing: files of theirs are written as they were."""
    return value is None


# Reconstruction ------------------------------------------------------------------------------------------------------
class Quantiles(Record):
    """Quantiles of absolute errors, in one unit; a lost or invented value counts as an infinite error."""

    median: Number = Field(description="50 % of the errors are at most this")
    p90: Number = Field(description="90 % of the errors are at most this")
    p99: Number = Field(description="99 % of the errors are at most this")
    max: Number = Field(description="largest error")

    @classmethod
    def of(cls, errors: NDArray[np.float64]) -> Quantiles:
        """Quantiles of `errors`, shape (n,), not negative, infinite where a value is lost or invented; NaN for n = 0."""
        if not len(errors):
            return cls(median=NAN, p90=NAN, p99=NAN, max=NAN)
        # Order statistics, so that an infinite error changes only the quantiles it reaches.
        median, p90, p99, largest = np.quantile(errors, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf").tolist()
        return cls(median=median, p90=p90, p99=p99, max=largest)


class UnitErrors(Quantiles):
    """Quantiles of absolute errors in the unit in which one speaks of them."""

    unit: str = Field(description="mmag for fluxes (as magnitudes) and magnitudes, mas for angles, else the column's VOUnit")

    @classmethod
    def of_unit(cls, unit: str, errors: NDArray[np.float64]) -> UnitErrors:
        """As `Quantiles.of`, with their unit."""
        return cls(unit=unit, **Quantiles.of(errors).model_dump())


class SigmaErrors(Record):
    """Absolute errors in units of each star's own catalogue error."""

    stars: int = Field(description="stars that have a catalogue error above 0")
    median: Number = Field(description="50 % of the errors are at most this")
    p90: Number = Field(description="90 % of the errors are at most this")
    within_1_sigma: Number = Field(description="share of stars, 0 to 1")
    beyond_3_sigma: Number = Field(description="share of stars, 0 to 1")


class ColumnRating(Record):
    """How well one column is rebuilt."""

    unit: str = Field(description="VOUnit of the column and of `iqr`")
    derived: bool = Field(description="whether it is computed from other rebuilt columns")
    stars: int = Field(description="stars with a real value")
    lost: int = Field(description="real values without a rebuilt one; each counts as an infinite error")
    invented: int = Field(description="rebuilt values without a real one; each counts as an infinite error")
    iqr: Number = Field(description="interquartile range of the real values, in `unit`")
    error_over_iqr: Quantiles = Field(description="of |error| / iqr; ra's error is of ra cos(dec), the short way round")
    error_in_sigma: SigmaErrors | None = Field(description="null where the catalogue has no error column of it")
    error_arcsec: Quantiles | None = Field(description="of |error| in arcseconds, for ra and dec only")
    error_in_unit: UnitErrors | None = Field(
        None, description="of |error| in mmag, mas, K, km/s and the like; null of earlier versions", exclude_if=_is_none
    )
    ks: Number = Field(description="Kolmogorov-Smirnov distance of real and rebuilt values, 0 (alike) to 1")
    identical: Number = Field(
        NAN, description="share of real values that came back exactly; null of earlier versions", exclude_if=math.isnan
    )


class Summary(Record):
    """One number of each column, summarised over columns."""

    mean: Number = Field(description="mean over columns")
    worst: Number = Field(description="largest over columns")
    worst_column: str | None = Field(description="the column that has it")
    columns: int = Field(description="columns counted: those where the number is defined")

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Summary:
        """Summary of numbers by column; NaN is left out, an infinite number makes mean and worst infinite."""
        defined = {name: x for name, x in numbers.items() if not np.isnan(x)}
        if not defined:
            return cls(mean=NAN, worst=NAN, worst_column=None, columns=0)
        worst = max(defined, key=lambda name: defined[name])
        mean = float(np.mean(list(defined.values())))
        return cls(mean=mean, worst=defined[worst], worst_column=worst, columns=len(defined))


class ErrorSummaries(Record):
    """Errors of all columns as a few numbers."""

    median: Summary = Field(description="of each column's median |error| / IQR")
    p90: Summary = Field(description="of each column's 90 % quantile of |error| / IQR")
    p99: Summary = Field(description="of each column's 99 % quantile of |error| / IQR")
    ks: Summary = Field(description="of each column's Kolmogorov-Smirnov distance")


class Headline(Record):
    """The few numbers to quote."""

    beside_position: ErrorSummaries = Field(description="over every column but ra and dec: quote this one")
    all_columns: ErrorSummaries = Field(description="over every column")


class Reconstruction(Record):
    """How far rebuilt stars lie from the real ones, star by star."""

    headline: Headline = Field(description="summaries over columns")
    position_error_arcsec: Quantiles | None = Field(
        description="great-circle distances of rebuilt from real positions; null where ra and dec are not among the columns"
    )
    columns: dict[str, ColumnRating] = Field(description="each of the model's columns, by name")


class SummaryErrors(Record):
    """Standard errors of a summary over columns."""

    mean: Number = Field(description="of the mean over columns")
    worst: Number = Field(description="of the largest over columns")


class HeadlineErrors(Record):
    """Standard errors of a headline beside position."""

    median: SummaryErrors = Field(description="of each column's median |error| / IQR, summarised")
    p99: SummaryErrors = Field(description="of each column's 99 % quantile of |error| / IQR, summarised")
    ks: SummaryErrors = Field(
        description="of each column's Kolmogorov-Smirnov distance, summarised; up to twice too large where the distance is nearly 0"
    )


class Uncertainty(Record):
    """How far headlines would be off with other test stars: bootstrap over stars, nothing is fitted again."""

    replicates: int = Field(description="of the bootstrap")
    reconstruction: dict[str, HeadlineErrors] = Field(description='of "rebuilt" and, where there is one, "baseline"')


# Two-sample tests ----------------------------------------------------------------------------------------------------
CONFIDENCE_95 = 1.96
"""Standard errors to either side of a number that hold 95 % of a normal distribution."""


def interval_95(number: float, error: float) -> tuple[float, float]:
    """The 95 % interval of a number with a standard error."""
    return number - CONFIDENCE_95 * error, number + CONFIDENCE_95 * error


class AucResult(Record):
    """AUC of one classifier that tells one set of stars from another: 0.5 cannot, 1 always."""

    features: Features = Field(description="classifier: boosted trees on raw columns or with physics, or a small neural network")
    mean: float = Field(description="AUC, mean over seeds and folds")
    spread: float | None = Field(
        description="standard error: bootstrap over the stars on both sides, and scatter over seeds, together; 0.1.0 had the latter alone, null for one seed"
    )
    values: tuple[float, ...] = Field(description="AUC of each seed, mean over its folds")
    rows: int = Field(description="stars on each side")
    folds: int = Field(description="folds of the cross-validation")
    inputs: tuple[str, ...] = Field(description="the classifier's columns")
    seconds_per_fit: float = Field(description="wall-clock time on one thread")

    @property
    def interval(self) -> tuple[float, float]:
        """Where the AUC is with a confidence of 95 %; without a spread, what the seeds gave."""
        if self.spread is None:
            return min(self.values), max(self.values)
        low, high = interval_95(self.mean, self.spread)
        return max(0.0, low), min(1.0, high)


class Comparison(Record):
    """Real stars against one other kind of stars, by every classifier; auc, spread and classifier are of the largest AUC."""

    classifiers: dict[str, AucResult] = Field(description='"raw", "physics", "mlp"')
    auc: float = Field(description="largest AUC of the classifiers: the number to quote")
    spread: float | None = Field(description="its standard error, see there")
    classifier: Features = Field(description="the classifier that has it")

    @classmethod
    def of(cls, classifiers: Mapping[str, AucResult]) -> Comparison:
        """The comparison by these classifiers, at least one."""
        best = max(classifiers.values(), key=lambda result: result.mean)
        return cls(classifiers=dict(classifiers), auc=best.mean, spread=best.spread, classifier=best.features)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the AUC is with a confidence of 95 %."""
        return self.classifiers[self.classifier].interval

    @property
    def can_be_told(self) -> bool:
        """Whether the classifier tells the stars apart at all: 0.5 is below the interval of its AUC."""
        return self.interval[0] > 0.5


class TwoSample(Record):
    """Two-sample tests. AUCs depend on the settings: only those of the same settings compare."""

    rows_a_side: int = Field(description="stars on each side")
    rows_asked: int = Field(description="stars on each side, as configured; there may be fewer")
    folds: int = Field(description="folds of each cross-validation")
    seeds: int = Field(description="repetitions with other stars and other folds")
    max_iter: int = Field(description="trees of a boosted classifier")
    comparisons: dict[str, Comparison] = Field(
        description='real stars against "rebuilt", "baseline", "sampled" ones, and against the yardsticks "real" (other real '
        'stars: 0.5), "copula" and "independent"'
    )


# Joint structure -----------------------------------------------------------------------------------------------------
class HistogramDistance(Record):
    """Total-variation distance of two 2-D histograms."""

    distance: Number = Field(description="0 (alike) to 1")
    real_against_real: Number = Field(description="the same distance between two sets of real stars")
    in_units_of_real: Number = Field(description="ratio of the two: 1 where stars are as like real ones as these are alike")
    stars: int = Field(description="stars on each side")
    bins: int = Field(description="bins of the histogram, that of undefined values among them")


class Dispersion(Record):
    """Dispersions of tangential velocity, half the range from 16 to 84 %, of the stars in one bin of colour."""

    bp_rp_from: Number = Field(description="lower edge of the bin, mag")
    bp_rp_to: Number = Field(description="upper edge of the bin, mag")
    stars: int = Field(description="real stars in the bin")
    real_ra_km_s: Number = Field(description="real stars, along right ascension")
    made_ra_km_s: Number = Field(description="rebuilt or new stars, along right ascension")
    real_dec_km_s: Number = Field(description="real stars, along declination")
    made_dec_km_s: Number = Field(description="rebuilt or new stars, along declination")


class DensityCoverage(Record):
    """Density and coverage (Naeem et al. 2020, ICML, PMLR 119): 1 and 1 - 2^-neighbours where two samples are alike."""

    density: Number = Field(
        description="mean number of real stars' neighbourhoods that a star falls in, over `neighbours`; above 1 where stars crowd"
    )
    coverage: Number = Field(description="share of real stars with such a star in their neighbourhood")
    neighbours: int = Field(description="a neighbourhood reaches to the real star of this rank by distance")
    stars: int = Field(description="stars on each side")


class Joint(Record):
    """Joint distribution of the columns, for "rebuilt", "baseline" and "sampled" stars; each part null where it was skipped."""

    hr_diagram: dict[str, HistogramDistance] | None = Field(description="in the Hertzsprung-Russell diagram")
    sky: dict[str, HistogramDistance] | None = Field(description="in HEALPix pixels of the sky")
    velocity_dispersions: dict[str, tuple[Dispersion, ...]] | None = Field(description="by colour")
    density_coverage: dict[str, DensityCoverage] | None = Field(description='also of "real", other real stars, as a yardstick')


# New stars and size --------------------------------------------------------------------------------------------------
class ColumnSampling(Record):
    """One column of new stars beside real ones."""

    ks: Number = Field(description="Kolmogorov-Smirnov distance of the values that are not null")
    null_share_real: Number = Field(description="share of real stars without a value")
    null_share_sampled: Number = Field(description="share of new stars without a value")


class Sampling(Record):
    """New stars beside all rated real ones."""

    stars: int = Field(description="new stars")
    ks: Summary = Field(description="of Kolmogorov-Smirnov distances, over every column but ra and dec")
    columns: dict[str, ColumnSampling] = Field(description="each of the model's columns, by name")
    nearer_to_train: float | None = Field(
        description="share of new stars whose nearest train star is nearer than the nearest of as many test stars: 0.5 is "
        "right, more would be copying; null where there were too few stars"
    )


class RowBytes(Record):
    """Bytes of one uncompressed row of the latent catalogue."""

    source_id: int = Field(description="bytes")
    healpix_29: int = Field(description="bytes")
    position: int = Field(description="bytes of ra and dec")
    null_mask: int = Field(description="bytes of all words")
    latents: int = Field(description="bytes of all latents")

    @property
    def total(self) -> int:
        """Bytes of the whole row."""
        return self.source_id + self.healpix_29 + self.position + self.null_mask + self.latents


class Storage(Record):
    """What a star costs, in bytes a star."""

    stars: int = Field(description="stars that share the model's files")
    row: RowBytes = Field(description="a row of the latent catalogue, uncompressed")
    model: Number = Field(description="its share of the model's files")
    in_memory: Number = Field(description="the uncompressed row and the share of the model")
    on_disk: float | None = Field(description="latent files and the share of the model; null where not known")
    catalogue_on_disk: float | None = Field(description="files of the raw catalogue; null where not known")
    ratio: float | None = Field(description="catalogue over latents, on disk; null where either is not known")

    @property
    def bytes_a_star(self) -> float:
        """The number to quote, everywhere: of the files as they lie on disk, the model among them; of plain rows where no file is."""
        return self.in_memory if self.on_disk is None else self.on_disk


# Bits ----------------------------------------------------------------------------------------------------------------
class RatePoint(Record):
    """Test stars rebuilt from so many bits each; errors are in interquartile ranges, over every column but ra and dec."""

    bits: int = Field(description="of a star; source_id, position and null mask are not counted")
    error: Number = Field(description="mean over columns of the median error")
    worst: Number = Field(description="largest median error over columns")
    worst_column: str | None = Field(description="the column that has it")
    p99: Number = Field(description="mean over columns of the 99 % quantile of the error")
    ks: Number = Field(description="mean over columns of the Kolmogorov-Smirnov distance")
    within_1_sigma: Number = Field(description="share of errors within the star's catalogue error, mean over columns that have one")


class RateCurve(Record):
    """Error against bits a star."""

    stars: int = Field(description="test stars")
    stored_bits: int = Field(description="of the run's latents, as its files have them")
    entropy_bits: Number = Field(
        description="what would be left of them if each latent were entropy-coded by itself, which the files do not do"
    )
    codes: dict[str, tuple[RatePoint, ...]] = Field(
        description='"model": its latents rounded anew; "quantiles": each column cut into bins of equal rank; "pca": principal components so'
    )


# Single stars --------------------------------------------------------------------------------------------------------
class Outlier(Record):
    """A star like no other, and why."""

    source_id: int = Field(description="of the star")
    ra: float = Field(description="deg")
    dec: float = Field(description="deg")
    error_sigma: Number = Field(
        description="largest over columns of |rebuilt - real| over the star's own catalogue error; null where a value was lost, or it has none"
    )
    log_likelihood: Number = Field(
        description="of its latents under the prior, given position and nulls, nats; null without a prior of latents"
    )
    column: str | None = Field(
        description="where the star is worst rebuilt; of an unlikely star the column in which it lies farthest from the others"
    )
    unit: str = Field(description="of the column")
    value: Number = Field(description="the star's, in that column")
    rebuilt: Number = Field(description="the rebuilt star's")
    error: Number = Field(description="the star's catalogue error in that column, in its unit; null where it has none")


class Outliers(Record):
    """Stars like no other, of those that were rated."""

    worst_rebuilt: tuple[Outlier, ...] = Field(description="in units of their own errors, the worst first")
    least_likely: tuple[Outlier, ...] = Field(
        description="under the prior, the least likely first; none without a prior of latents"
    )


class Quality(Record):
    """quality.json: how good a run is."""

    key: str = Field(description="hash of what the rating was made from")
    stars: int = Field(description="test stars rated")
    latents: int = Field(description="numbers a star was encoded to")
    reconstruction: dict[str, Reconstruction] = Field(
        description='"rebuilt" (the model) and, where there is one, "baseline" (PCA of as many components, rounded to as many bits where latents are)'
    )
    two_sample: TwoSample | None = Field(description="null where there are too few stars")
    joint: Joint = Field(description="joint distribution of the columns")
    sampling: Sampling | None = Field(description="null without a prior")
    storage: Storage | None = Field(description="null where sizes are not known")
    skipped: dict[str, str] = Field(description="why a part could not be rated, by the part's name")
    curve: RateCurve | None = Field(
        None, description="error against bits a star; null where latents are not rounded", exclude_if=_is_none
    )
    uncertainty: Uncertainty | None = Field(
        None, description="standard errors of the headlines; null of earlier versions", exclude_if=_is_none
    )
    outliers: Outliers | None = Field(None, description="rated stars like no other; null of earlier versions", exclude_if=_is_none)

    def comparison(self, name: str) -> Comparison | None:
        """Two-sample tests of real stars against one kind of stars.

        Args:
            name: "rebuilt", "baseline", "sampled", or a yardstick: "real", "copula", "independent".

        Returns:
            The comparison; None where there is none.

        >>> from gaiadask.run import open_run
        >>> quality = open_run("store/runs/dr2").quality
        >>> sorted(quality.reconstruction), quality.comparison("rebuilt") is not None
        (['baseline', 'rebuilt'], True)
        """
        return self.two_sample.comparisons.get(name) if self.two_sample else None
