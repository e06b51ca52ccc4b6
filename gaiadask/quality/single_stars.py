"""Single stars rated: how far each is from its rebuilt self, and how likely its latents are; and the stars like no other.

A star's reconstruction error is the largest over columns of |rebuilt - real| in units of the star's own catalogue error, over the
columns that have one. Its log-likelihood is that of its latents under the prior, given its position and nulls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.catalogue import Partition
from gaiadask.decode import Positions, decode
from gaiadask.errors import MissingStageError
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.prior import Prior, load_prior_cached
from gaiadask.product import with_latents
from gaiadask.quality.gather import rated_columns
from gaiadask.quality.reconstruction import absolute_error, in_sigma
from gaiadask.quality.records import NAN, Outlier, Outliers
from gaiadask.quality.tables import Floats, finite_values
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.sample import require_prior
from gaiadask.store.manifest import Manifest

WORST, UNLIKELY = "worst rebuilt", "least likely"
"""Why a star is like no other."""
OUTLIERS = pa.schema(
    [
        ("why", pa.string()), ("rank", pa.int32()), (SOURCE_ID, pa.int64()), (RA, pa.float64()), (DEC, pa.float64()),
        ("error_sigma", pa.float64()), ("log_likelihood", pa.float64()), ("column", pa.string()), ("value", pa.float64()),
        ("rebuilt", pa.float64()), ("error", pa.float64()),
    ]
)  # fmt: skip
"""A row a reason, ranked within each; the columns but why and rank are those of `records.Outlier`."""


class StarRatings(NamedTuple):
    """n stars rated one by one, shape (n,) each.

    Attributes:
        error: reconstruction error; NaN where a star has no catalogue error, infinite where a value was lost.
        column: number of the column that has it, among the model's; -1 where there is none.
        log_likelihood: nats; NaN without a prior of latents.
    """

    error: Floats
    column: NDArray[np.int16]
    log_likelihood: Floats


class Stars(NamedTuple):
    """Stars as in the catalogue, with positions, the model's columns and their errors; rebuilt, row by row; and their latents."""

    real: pa.Table
    rebuilt: pa.Table
    latents: NDArray[np.float32]


def rate_stars(stars: Stars, model: StarModel, prior: Prior | None) -> StarRatings:
    """Rate stars one by one."""
    transform, (real, rebuilt, z) = model.transform, stars
    error, column = np.full(len(real), NAN), np.full(len(real), -1, np.int16)
    for number, name in enumerate(transform.columns):
        if name in (RA, DEC) and transform.position == "condition":
            continue  # carried, not rebuilt
        own = in_sigma(real, transform.release.columns[name], absolute_error(real, rebuilt, name))
        if own is not None:
            is_larger = own > np.where(column < 0, -1, error)
            error, column = np.where(is_larger, own, error), np.where(is_larger, np.int16(number), column)
    if prior is None:
        return StarRatings(error, column, np.full(len(real), NAN))
    masks = transform.null_bits(real)
    return StarRatings(error, column, prior.log_likelihood(model, z, transform.condition(real, masks), masks))


def stars_of(source: ModelSource, partitions: Sequence[Partition]) -> Iterator[tuple[Stars, pa.Table]]:
    """The stars of some partitions, a row group at a time, and what their files of latents have. Errors as of `with_latents`."""
    model = source.load()
    columns = rated_columns(source.store, model, partitions[0])
    positions: Positions = "catalogue" if model.transform.position == "condition" else "model"
    for real, encoded in with_latents(source, partitions, columns):
        yield Stars(real, decode(encoded, model, positions), model.latents_of(encoded, "cannot rate stars")), encoded


# Stars like no other -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FindOutliers:
    """Finds the stars like no other among some partitions, on a worker; in memory are one row group, and those that are kept.

    Attributes:
        model: that rebuilds the stars.
        prior: key of the prior.
        most: stars to keep for each reason.
    """

    model: ModelSource
    prior: str
    most: int

    def __call__(self, partitions: Sequence[Partition]) -> pa.Table:
        """A table of the schema `OUTLIERS`. Raises DataError where latents are of other stars."""
        model = self.model.load()
        prior = load_prior_cached(self.model.store, self.model.run, self.prior)
        return self.merged([outliers_of(stars, model, prior, self.most) for stars, _ in stars_of(self.model, partitions)])

    def merged(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Several as one."""
        return ranked(pa.concat_tables(tables), self.most)


def require_latent_prior(manifest: Manifest) -> str:
    """Key of a run's prior of latents. Raises MissingStageError where it has none."""
    key, kind = require_prior(manifest), manifest.require("prior").result.get("kind")
    if kind != "latent":
        raise MissingStageError(
            f"run {manifest.run.name!r} was made with prior.kind {kind!r}, which has no density of latents, so that no star is less likely "
            "than another: set the kind 'latent', then `gaiadask prior CONFIG --replace prior`"
        )
    return key


def outliers_of(stars: Stars, model: StarModel, prior: Prior | None, most: int) -> pa.Table:
    """Of stars those like no other, `most` for each reason: a table of the schema `OUTLIERS`."""
    ratings = rate_stars(stars, model, prior)
    worst = _smallest(-ratings.error, most)
    unlikely = _smallest(ratings.log_likelihood, most)
    columns = np.array([*model.transform.columns, None], object)
    tables = [
        _described(stars, ratings, worst, WORST, columns[ratings.column[worst]], model),
        _described(stars, ratings, unlikely, UNLIKELY, _farthest(stars.real.take(unlikely), model), model),
    ]
    return ranked(pa.concat_tables(tables), most)


def ranked(table: pa.Table, most: int) -> pa.Table:
    """A table of the schema `OUTLIERS` with the `most` first of each reason, in their order; of equal ones that of smaller source_id."""
    kept = []
    for why, column, sign in ((WORST, "error_sigma", -1), (UNLIKELY, "log_likelihood", 1)):
        own = table.filter(pc.equal(table["why"], why))
        order = np.lexsort((own[SOURCE_ID].to_numpy(), sign * own[column].to_numpy()))[:most]
        rank = pa.array(np.arange(1, len(order) + 1, dtype=np.int32))
        kept.append(own.take(order).set_column(OUTLIERS.get_field_index("rank"), OUTLIERS.field("rank"), rank))
    return pa.concat_tables(kept)


def outliers_record(table: pa.Table, model: StarModel) -> Outliers:
    """A table of the schema `OUTLIERS` as quality.json has it."""
    release = model.transform.release

    def stars(why: str) -> tuple[Outlier, ...]:
        rows = table.filter(pc.equal(table["why"], why)).drop_columns(["why", "rank"]).to_pylist()
        return tuple(Outlier(**row, unit=release.columns[row["column"]].unit if row["column"] else "") for row in rows)

    return Outliers(worst_rebuilt=stars(WORST), least_likely=stars(UNLIKELY))


def _smallest(numbers: Floats, most: int) -> NDArray[np.int64]:
    """Rows of the `most` smallest numbers, but NaN, in their order."""
    order = np.argsort(numbers, kind="stable")
    return order[: min(most, int((~np.isnan(numbers)).sum()))]


def _farthest(real: pa.Table, model: StarModel) -> NDArray[np.object_]:
    """The column of each star whose network value lies farthest from the middle of the train stars, in interquartile ranges."""
    transform = model.transform
    inputs = transform.forward(real)
    slots = slice(0, transform.vector_start)
    far = np.where(inputs.present, np.abs(inputs.values) / np.array(transform.spread), -1.0)[:, slots]
    names = np.array([*transform.value_columns[slots], None], object)
    place = np.where(far.max(axis=1) >= 0, far.argmax(axis=1), -1)
    return np.asarray(names[place], object)


def _described(
    stars: Stars, ratings: StarRatings, rows: NDArray[np.int64], why: str, names: NDArray[np.object_], model: StarModel
) -> pa.Table:
    """Some stars with what they have in one column each."""
    real, rebuilt, columns = stars.real.take(rows), stars.rebuilt.take(rows), model.transform.release.columns
    value, made, error = (np.full(len(rows), NAN) for _ in range(3))
    for name in {str(name) for name in names if name is not None}:
        own, column = np.flatnonzero(names == name), columns[name]
        value[own], made[own] = (finite_values(table, name)[own] for table in (real, rebuilt))
        if column.error_column is not None and column.error_column in real.column_names:
            error[own] = column.error_factor * finite_values(real, column.error_column)[own]
    arrays = [
        np.full(len(rows), why, object), np.zeros(len(rows), np.int32), *(real[name] for name in (SOURCE_ID, RA, DEC)),
        ratings.error[rows], ratings.log_likelihood[rows], names, value, made, error,
    ]  # fmt: skip
    return pa.table(
        [
            array if isinstance(array, pa.ChunkedArray) else pa.array(array, field.type)
            for array, field in zip(arrays, OUTLIERS, strict=True)
        ],
        schema=OUTLIERS,
    )
