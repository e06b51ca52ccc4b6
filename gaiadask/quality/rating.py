"""The parts of a rating put together: see the module docstring of `gaiadask.quality` for what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.config.sections import QualityConfig
from gaiadask.errors import DataError
from gaiadask.quality.joint import density_coverage, hr_distance, nearer_to_train, sky_distance, velocity_dispersions
from gaiadask.quality.reconstruction import Summary, ks_distance, reconstruction
from gaiadask.quality.tables import halves, jsonable, values
from gaiadask.quality.two_sample import FEATURES, FOLDS, MAX_ITER, AucResult, Features, two_sample_auc
from gaiadask.quality.yardsticks import gaussian_copula_sample, independent_columns_sample
from gaiadask.release.column import SOURCE_ID

Json = dict[str, Any]


@dataclass(frozen=True)
class Rated:
    """Test stars as the catalogue has them and as they came back, the same stars in the same order.

    real: source_id, the model's columns and, where the catalogue has them, their error columns. rebuilt: source_id and the
    model's columns. latents: shape (stars, latents). baseline: as `rebuilt`, by PCA; None where there is none. sampled: new
    stars, as many as real ones, of the model's columns and no star's own; None where there are none.
    Raises DataError where the rows are not the same stars.
    """

    real: pa.Table
    rebuilt: pa.Table
    latents: NDArray[np.floating[Any]]
    baseline: pa.Table | None = None
    sampled: pa.Table | None = None

    def __post_init__(self) -> None:
        ids = self.real.column(SOURCE_ID).to_numpy()
        for what, table in self.made.items():
            if not np.array_equal(ids, table.column(SOURCE_ID).to_numpy()):
                raise DataError(f"the {what} stars are not the real ones, row by row: bring both tables into the same order")
        if len(self.latents) != len(ids):
            raise DataError(f"{len(ids)} stars but {len(self.latents)} rows of latents: expected one row a star")

    @property
    def columns(self) -> tuple[str, ...]:
        """What is rated: the model's columns."""
        return tuple(n for n in self.rebuilt.column_names if n != SOURCE_ID)

    @property
    def made(self) -> dict[str, pa.Table]:
        """The tables that stand for the real one, by name: "rebuilt" and, where there is one, "baseline"."""
        return {"rebuilt": self.rebuilt} | ({"baseline": self.baseline} if self.baseline is not None else {})


@dataclass(frozen=True)
class Job:
    """One two-sample test, to be run anywhere (`run_job`): picklable, and independent of all others."""

    comparison: str
    features: Features
    real: pa.Table
    made: pa.Table
    rows: int
    seeds: int

    @property
    def name(self) -> str:
        return f"{self.comparison}/{self.features}"


def two_sample_jobs(rated: Rated, config: QualityConfig) -> list[Job]:
    """The two-sample tests of a rating: each comparison by each classifier.

    Comparisons, all against the real stars of one half (by hash of source_id), so that no star is on both sides: "rebuilt"
    and "baseline", the other half as the model and PCA rebuild it; "sampled", new stars; yardsticks "real", the other half
    itself, "independent" and "copula", made up after the other half. Empty where there are too few stars for a test.
    """
    half, other = _halves(rated)
    if min(len(half), len(other)) < 2 * FOLDS:
        return []
    # Enough for the seeds to draw different stars; whatever goes beyond would only be carried about.
    half, other = (rows[: config.two_sample_rows * config.two_sample_seeds] for rows in (half, other))
    names = list(rated.columns)
    real, against = rated.real.select(names).take(half), rated.real.select(names).take(other)
    comparisons = {name: table.select(names).take(half) for name, table in rated.made.items()}
    if rated.sampled is not None:
        comparisons["sampled"] = rated.sampled.select(names).slice(0, len(half))
    comparisons |= {
        "real": real,
        "independent": independent_columns_sample(real, len(half)),
        "copula": gaussian_copula_sample(real, len(half)),
    }
    return [
        Job(comparison, features, against, made, config.two_sample_rows, config.two_sample_seeds)
        for comparison, made in comparisons.items()
        for features in FEATURES
    ]


def run_job(job: Job) -> AucResult:
    """Run one two-sample test: one thread, no randomness but its seeds."""
    return two_sample_auc(job.real, job.made, job.features, job.rows, seeds=job.seeds)


def rate(
    rated: Rated,
    config: QualityConfig,
    two_sample: Mapping[str, AucResult] | None = None,
    storage: Mapping[str, Any] | None = None,
    train: pa.Table | None = None,
) -> Json:
    """Everything that quality.json says, JSON-able and strict (None where a number is undefined or infinite).

    two_sample: results of `two_sample_jobs` by the jobs' names, where they ran elsewhere; None runs them here.
    storage: of `bytes_a_star`. train: train stars with the model's columns, to tell whether new stars copy them.
    """
    if two_sample is None:
        two_sample = {job.name: run_job(job) for job in two_sample_jobs(rated, config)}
    skipped: dict[str, str] = {}
    result = {
        "stars": rated.real.num_rows,
        "latents": int(rated.latents.shape[1]),
        "reconstruction": {what: reconstruction(rated.real, made, rated.columns) for what, made in rated.made.items()},
        "two_sample": _two_sample(two_sample, config, skipped),
        "joint": _joint(rated, skipped),
        "sampling": _sampling(rated, train, skipped),
        "storage": storage,
        "skipped": skipped,
    }
    return dict(jsonable(result))


def _halves(rated: Rated) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return halves(rated.real)


def _two_sample(results: Mapping[str, AucResult], config: QualityConfig, skipped: dict[str, str]) -> Json | None:
    if not results:
        skipped["two_sample"] = f"fewer than {2 * FOLDS} test stars in each half"
        return None
    comparisons: dict[str, Json] = {}
    for name, auc in results.items():
        comparison, features = name.split("/")
        comparisons.setdefault(comparison, {"classifiers": {}})["classifiers"][features] = asdict(auc)
    for entry in comparisons.values():
        best = max(entry["classifiers"].values(), key=lambda auc: auc["mean"])
        entry |= {"auc": best["mean"], "spread": best["spread"], "classifier": best["features"]}
    rows = max(auc.rows for auc in results.values())
    settings = {"rows_asked": config.two_sample_rows, "folds": FOLDS, "seeds": config.two_sample_seeds, "max_iter": MAX_ITER}
    return {"rows_a_side": rows, **settings, "comparisons": comparisons}


_HR = ("bp_rp", "phot_g_mean_flux", "parallax")
_SKY = ("ra", "dec")
_VELOCITIES = ("bp_rp", "parallax", "pmra", "pmdec")


def _joint(rated: Rated, skipped: dict[str, str]) -> Json:
    """Each part for each made table; None, with the reason among `skipped`, where columns or stars are wanting."""
    half, other = _halves(rated)
    columns = list(rated.columns)
    real = rated.real.select(columns)
    ours, against = real.take(half), real.take(other)
    theirs = {what: made.select(columns).take(half) for what, made in rated.made.items()}
    whole = {what: made.select(columns) for what, made in rated.made.items()}
    if rated.sampled is not None:
        whole["sampled"] = rated.sampled.select(columns)
        theirs["sampled"] = whole["sampled"].slice(0, len(half))

    def part(name: str, needed: Sequence[str], make: Callable[[pa.Table], Any], made: Mapping[str, pa.Table]) -> Json | None:
        if missing := [c for c in needed if c not in columns]:
            skipped[name] = f"the model lacks column(s) {', '.join(missing)}"
            return None
        try:
            return {what: make(table) for what, table in made.items()}
        except DataError as error:  # too few stars: the rest of the rating stands
            skipped[name] = str(error)
            return None

    return {
        "hr_diagram": part("hr_diagram", _HR, lambda t: asdict(hr_distance(ours, against, t)), theirs),
        "sky": part("sky", _SKY, lambda t: asdict(sky_distance(ours, against, t)), theirs),
        "velocity_dispersions": part(
            "velocity_dispersions", _VELOCITIES, lambda t: [asdict(d) for d in velocity_dispersions(real, t)], whole
        ),
        "density_coverage": part("density_coverage", (), lambda t: asdict(density_coverage(against, t)), theirs | {"real": ours}),
    }


def _sampling(rated: Rated, train: pa.Table | None, skipped: dict[str, str]) -> Json | None:
    """New stars against the test stars, column by column, and whether they lie nearer to train stars than they should."""
    if rated.sampled is None:
        skipped["sampling"] = "the run has no prior, so no new stars were drawn (prior.kind is 'none')"
        return None
    columns = {}
    for name in rated.columns:
        ours, theirs = values(rated.real, name), values(rated.sampled, name)
        nulls = [float(np.isnan(column).mean()) for column in (ours, theirs)]
        ks = ks_distance(*(column[np.isfinite(column)] for column in (ours, theirs)))
        columns[name] = {"ks": ks, "null_share_real": nulls[0], "null_share_sampled": nulls[1]}
    nearer = None
    if train is not None:
        names = list(rated.columns)
        try:
            nearer = nearer_to_train(rated.sampled.select(names), train.select(names), rated.real.select(names))
        except DataError as error:  # too few stars: the rest of the rating stands
            skipped["nearer_to_train"] = str(error)
    beside = Summary.of({name: rating["ks"] for name, rating in columns.items() if name not in _SKY})
    return {"stars": rated.sampled.num_rows, "ks": asdict(beside), "columns": columns, "nearer_to_train": nearer}


def bytes_a_star(
    n_stars: int,
    latents: int,
    null_words: int,
    model_bytes: int,
    latent_bytes_on_disk: int | None = None,
    catalogue_bytes_on_disk: int | None = None,
) -> Json:
    """What a star costs, in bytes: source_id, HEALPix index, position, null mask, latents and its share of the model.

    `in_memory` is the latent table's uncompressed row, `on_disk` the latent files', `catalogue_on_disk` the raw
    catalogue's, all with nothing left out: `in_memory` and `on_disk` count the model's files. ratio: catalogue over
    latents on disk. Raises DataError for no stars.
    """
    if n_stars < 1:
        raise DataError(f"bytes a star of {n_stars} stars: a catalogue has at least one")
    row = {"source_id": 8, "healpix_29": 8, "position": 16, "null_mask": 8 * null_words, "latents": 4 * latents}
    model = model_bytes / n_stars
    on_disk = latent_bytes_on_disk / n_stars + model if latent_bytes_on_disk is not None else None
    catalogue = catalogue_bytes_on_disk / n_stars if catalogue_bytes_on_disk is not None else None
    return {
        "stars": n_stars,
        "row": row,
        "model": model,
        "in_memory": sum(row.values()) + model,
        "on_disk": on_disk,
        "catalogue_on_disk": catalogue,
        "ratio": catalogue / on_disk if catalogue is not None and on_disk else None,
    }
