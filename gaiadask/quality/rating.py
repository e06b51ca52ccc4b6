"""The parts of a rating put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.config.sections import QualityConfig
from gaiadask.errors import DataError
from gaiadask.quality.bootstrap import REPLICATES, headline_errors
from gaiadask.quality.joint import density_coverage, hr_distance, nearer_to_train, sky_distance, velocity_dispersions
from gaiadask.quality.physics import HR_COLUMNS, VELOCITY_COLUMNS
from gaiadask.quality.reconstruction import ks_distance, reconstruction
from gaiadask.quality.records import (
    BASELINE,
    FEATURES,
    REAL,
    REBUILT,
    SAMPLED,
    AucResult,
    ColumnSampling,
    Comparison,
    Features,
    Joint,
    Quality,
    RateCurve,
    RowBytes,
    Sampling,
    Storage,
    Summary,
    TwoSample,
    Uncertainty,
)
from gaiadask.quality.tables import halves, values
from gaiadask.quality.two_sample import FOLDS, MAX_ITER, two_sample_auc
from gaiadask.quality.yardsticks import gaussian_copula_sample, independent_columns_sample
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.release import Release

Part = TypeVar("Part")


@dataclass(frozen=True)
class Rated:
    """Test stars as in the catalogue, the same stars rebuilt (in the same order), and new stars.

    Args:
        real: source_id, the model's columns and, where the catalogue has them, their error columns.
        rebuilt: source_id and the model's columns.
        latents: shape (stars, latents).
        release: the data release that the columns are of.
        baseline: as `rebuilt`, by PCA; None where there is none.
        sampled: new stars, as many as real ones, with the model's columns; None where there are none.
        derived: columns that the model computes from others; None: all that the release has a formula for.

    Raises:
        DataError: the rows are not the same stars.
    """

    real: pa.Table
    rebuilt: pa.Table
    latents: NDArray[np.floating[Any]]
    release: Release
    baseline: pa.Table | None = None
    sampled: pa.Table | None = None
    derived: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        ids = self.real.column(SOURCE_ID).to_numpy()
        for name, table in self.reconstructions.items():
            if not np.array_equal(ids, table.column(SOURCE_ID).to_numpy()):
                raise DataError(f"the {name} stars are not the real ones, row by row: bring both tables into the same order")
        if len(self.latents) != len(ids):
            raise DataError(f"{len(ids)} stars but {len(self.latents)} rows of latents: expected one row a star")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are rated: the model's."""
        return tuple(n for n in self.rebuilt.column_names if n != SOURCE_ID)

    @property
    def reconstructions(self) -> dict[str, pa.Table]:
        """Tables of the real stars rebuilt, by name: "rebuilt" and, where there is one, "baseline"."""
        return {REBUILT: self.rebuilt} | ({BASELINE: self.baseline} if self.baseline is not None else {})


@dataclass(frozen=True)
class Job:
    """One two-sample test, to be run anywhere (`run_job`): picklable, and independent of all others."""

    comparison: str
    features: Features
    real: pa.Table
    made: pa.Table
    release: Release
    rows: int
    seeds: int

    @property
    def name(self) -> str:
        """Comparison and classifier, as "rebuilt/mlp"."""
        return f"{self.comparison}/{self.features}"


def two_sample_jobs(rated: Rated, config: QualityConfig) -> list[Job]:
    """The two-sample tests of a rating: each comparison by each classifier.

    Comparisons, all against the real stars of one half (by hash of source_id), so that no star is on both sides: "rebuilt"
    and "baseline", the other half as the model and PCA rebuild it; "sampled", new stars; the yardsticks "real", the other half
    itself, "independent" and "copula", generated from the other half.

    Args:
        rated: the stars.
        config: how many stars and seeds a test has.

    Returns:
        The tests; none where there are too few stars.
    """
    half, other = halves(rated.real)
    if min(len(half), len(other)) < 2 * FOLDS:
        return []
    # Enough for the seeds to draw different stars; more would only make the jobs larger.
    half, other = (rows[: config.two_sample_rows * config.two_sample_seeds] for rows in (half, other))
    names, release = list(rated.columns), rated.release
    real, against = rated.real.select(names).take(half), rated.real.select(names).take(other)
    comparisons = {name: table.select(names).take(half) for name, table in rated.reconstructions.items()}
    if rated.sampled is not None:
        comparisons[SAMPLED] = rated.sampled.select(names).slice(0, len(half))
    comparisons |= {
        REAL: real,
        "independent": independent_columns_sample(real, len(half), release),
        "copula": gaussian_copula_sample(real, len(half), release),
    }
    return [
        Job(comparison, features, against, made, release, config.two_sample_rows, config.two_sample_seeds)
        for comparison, made in comparisons.items()
        for features in FEATURES
    ]


def run_job(job: Job) -> AucResult:
    """Run one two-sample test: one thread, no randomness but its seeds."""
    return two_sample_auc(job.real, job.made, job.release, job.features, job.rows, seeds=job.seeds)


def rate(
    rated: Rated,
    config: QualityConfig,
    *,
    key: str = "",
    two_sample: Mapping[str, AucResult] | None = None,
    storage: Storage | None = None,
    train: pa.Table | None = None,
    curve: RateCurve | None = None,
) -> Quality:
    """Rate a run.

    Args:
        rated: its test stars, and new ones.
        config: how many stars and seeds a two-sample test has.
        key: hash of what the rating is made from.
        two_sample: results of `two_sample_jobs` by the jobs' names, where they ran elsewhere; None runs them in this process.
        storage: of `bytes_a_star`.
        train: train stars with the model's columns, to see whether new stars copy them.
        curve: of `rate_curve`.

    Returns:
        The record that becomes quality.json; a part that cannot be rated is None, with the reason in `skipped`.
    """
    if two_sample is None:
        two_sample = {job.name: run_job(job) for job in two_sample_jobs(rated, config)}
    skipped: dict[str, str] = {}
    return Quality(
        key=key,
        stars=rated.real.num_rows,
        latents=int(rated.latents.shape[1]),
        reconstruction={
            name: reconstruction(rated.real, table, rated.columns, rated.release, rated.derived)
            for name, table in rated.reconstructions.items()
        },
        two_sample=_two_sample(two_sample, config, skipped),
        joint=_joint(rated, skipped),
        sampling=_sampling(rated, train, skipped),
        storage=storage,
        skipped=skipped,
        curve=curve,
        uncertainty=Uncertainty(
            replicates=REPLICATES,
            reconstruction={
                name: headline_errors(rated.real, table, rated.columns) for name, table in rated.reconstructions.items()
            },
        ),
    )


def _two_sample(results: Mapping[str, AucResult], config: QualityConfig, skipped: dict[str, str]) -> TwoSample | None:
    if not results:
        skipped["two_sample"] = f"fewer than {2 * FOLDS} test stars in each half"
        return None
    by_comparison: dict[str, dict[str, AucResult]] = {}
    for name, result in results.items():
        comparison, features = name.split("/")
        by_comparison.setdefault(comparison, {})[features] = result
    return TwoSample(
        rows_a_side=max(result.rows for result in results.values()),
        rows_asked=config.two_sample_rows,
        folds=FOLDS,
        seeds=config.two_sample_seeds,
        max_iter=MAX_ITER,
        comparisons={name: Comparison.of(classifiers) for name, classifiers in by_comparison.items()},
    )


def _joint(rated: Rated, skipped: dict[str, str]) -> Joint:
    """Each part for each kind of stars; None, with the reason in `skipped`, where columns or stars are missing."""
    half, other = halves(rated.real)
    columns, release = list(rated.columns), rated.release
    real = rated.real.select(columns)
    of_half, against = real.take(half), real.take(other)
    whole = {name: table.select(columns) for name, table in rated.reconstructions.items()}
    halved = {name: table.take(half) for name, table in whole.items()}
    if rated.sampled is not None:
        whole[SAMPLED] = rated.sampled.select(columns)
        halved[SAMPLED] = whole[SAMPLED].slice(0, len(half))

    def part(
        name: str, needed: Sequence[str], rate_one: Callable[[pa.Table], Part], tables: Mapping[str, pa.Table]
    ) -> dict[str, Part] | None:
        if missing := [column for column in needed if column not in columns]:
            skipped[name] = f"the model lacks column(s) {', '.join(missing)}"
            return None
        try:
            return {kind: rate_one(table) for kind, table in tables.items()}
        except DataError as error:  # too few stars: the rest of the rating stands
            skipped[name] = str(error)
            return None

    return Joint(
        hr_diagram=part("hr_diagram", HR_COLUMNS, lambda t: hr_distance(of_half, against, t, release), halved),
        sky=part("sky", (RA, DEC), lambda t: sky_distance(of_half, against, t), halved),
        velocity_dispersions=part(
            "velocity_dispersions", ("bp_rp", *VELOCITY_COLUMNS), lambda t: velocity_dispersions(real, t), whole
        ),
        density_coverage=part("density_coverage", (), lambda t: density_coverage(against, t, release), halved | {REAL: of_half}),
    )


def _sampling(rated: Rated, train: pa.Table | None, skipped: dict[str, str]) -> Sampling | None:
    """New stars against the test stars, column by column, and whether they lie nearer to train stars than they should."""
    if rated.sampled is None:
        skipped["sampling"] = "the run has no prior, so no new stars were drawn (prior.kind is 'none')"
        return None
    columns = {name: _column_sampling(values(rated.real, name), values(rated.sampled, name)) for name in rated.columns}
    nearer = None
    if train is not None:
        names = list(rated.columns)
        sampled, train, real = (table.select(names) for table in (rated.sampled, train, rated.real))
        try:
            nearer = nearer_to_train(sampled, train, real, rated.release)
        except DataError as error:  # too few stars: the rest of the rating stands
            skipped["nearer_to_train"] = str(error)
    ks = Summary.of({name: column.ks for name, column in columns.items() if name not in (RA, DEC)})
    return Sampling(stars=rated.sampled.num_rows, ks=ks, columns=columns, nearer_to_train=nearer)


def _column_sampling(real: NDArray[np.float64], sampled: NDArray[np.float64]) -> ColumnSampling:
    return ColumnSampling(
        ks=ks_distance(real[np.isfinite(real)], sampled[np.isfinite(sampled)]),
        null_share_real=float(np.isnan(real).mean()),
        null_share_sampled=float(np.isnan(sampled).mean()),
    )


def bytes_a_star(
    n_stars: int,
    latent_bytes: int,
    null_words: int,
    model_bytes: int,
    latent_bytes_on_disk: int | None = None,
    catalogue_bytes_on_disk: int | None = None,
) -> Storage:
    """What a star costs, in bytes: source_id, HEALPix index, position, null mask, latents and its share of the model.

    Args:
        n_stars: stars of the catalogue.
        latent_bytes: of a star's latents, uncompressed.
        null_words: words of a null mask.
        model_bytes: size of the model's files.
        latent_bytes_on_disk: size of the latent catalogue's files; None where not known.
        catalogue_bytes_on_disk: size of the raw catalogue's files; None where not known.

    Returns:
        Bytes a star; `in_memory` and `on_disk` count the model's files.

    Raises:
        DataError: there are no stars.
    """
    if n_stars < 1:
        raise DataError(f"bytes a star of {n_stars} stars: a catalogue has at least one")
    row = RowBytes(source_id=8, healpix_29=8, position=16, null_mask=8 * null_words, latents=latent_bytes)
    model = model_bytes / n_stars
    on_disk = latent_bytes_on_disk / n_stars + model if latent_bytes_on_disk is not None else None
    catalogue = catalogue_bytes_on_disk / n_stars if catalogue_bytes_on_disk is not None else None
    return Storage(
        stars=n_stars,
        row=row,
        model=model,
        in_memory=row.total + model,
        on_disk=on_disk,
        catalogue_on_disk=catalogue,
        ratio=catalogue / on_disk if catalogue is not None and on_disk else None,
    )
