"""What a model makes of values that a star lacks: the middle of what they may be, and how far from it they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.masses import MassMap
from gaiadask.model.card import IMPUTED_DRAWS, ONE_SIGMA, TWO_SIGMA
from gaiadask.model.star_model import StarModel

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Columns = dict[str, Floats]

STD = "_std"
_ROWS = 4_096
"""Stars at once: bounds memory, 1 MB a column."""

_SEED = 0
"""Of the order of draws: any fixed number will do, so that a star always gets the same."""


class Gaps(NamedTuple):
    """n stars of which some lack values.

    z: latents, shape (n, latents). condition: shape (n, n_conditions). values: what the network rebuilds, shape (n, n_values).
    lacking: whether the star has no such value, of that shape.
    """

    z: NDArray[np.float32]
    condition: NDArray[np.float32]
    values: NDArray[np.float32]
    lacking: NDArray[np.bool_]

    def rows(self, which: NDArray[np.int64]) -> Gaps:
        """Some of the stars."""
        return Gaps(self.z[which], self.condition[which], self.values[which], self.lacking[which])


class Sky(NamedTuple):
    """Positions of stars, degrees, shape (n,) each."""

    ra: Floats
    dec: Floats

    def rows(self, which: NDArray[np.int64]) -> Sky:
        """Of some of the stars."""
        return Sky(self.ra[which], self.dec[which])


def imputable(model: StarModel) -> tuple[str, ...]:
    """The columns that some train stars lack and others have, in the card's order."""
    lacking = {name for group in model.transform.null_groups for name in group}
    return tuple(name for name in model.transform.columns if name in lacking)


def not_imputed(model: StarModel) -> tuple[str, ...]:
    """Those of the imputable columns that stay null, since too few validation stars have them, or what they are derived from."""
    transform, hidden = model.transform, model.card.errors.hidden
    unrated = {
        column
        for column, name in zip(transform.value_columns, transform.value_names, strict=True)
        if column in transform.limits and name not in hidden
    }
    columns = transform.release.columns
    return tuple(name for name in imputable(model) if unrated.intersection((name, *columns[name].derived_from)))


def check_imputes(model: StarModel) -> None:
    """Raise DataError where the model does not know how well it guesses any value."""
    if imputable(model) and not (model.card.errors.hidden and model.transform.limits):
        raise DataError(
            "this model's card lacks its errors, so nothing can be imputed: it tells of no value that was hidden from validation stars, or was "
            "made by an older version. Train again with `gaiadask train CONFIG --replace train`, on more stars where there are few"
        )


def tell_not_imputed(model: StarModel) -> None:
    """Log which columns stay null."""
    if left := not_imputed(model):
        log.warning("not imputed, since too few validation stars have them to tell how well they are guessed: %s", ", ".join(left))


def std_metadata(model: StarModel, name: str) -> dict[str, str]:
    """Of the column <name>_std: unit and description."""
    column = model.transform.release.columns[name]
    what = (
        f"Null: too few validation stars have {name} to tell how well it is guessed"
        if name in not_imputed(model)
        else f"Standard deviation of the model's {name}: 68 % of what it may be is at most this far from it, and 95 % twice as far; null where the star has its own"
    )
    return {"unit": column.unit, "description": what}


def imputed(model: StarModel, stars: Gaps, null: dict[str, NDArray[np.bool_]], sky: Sky | None) -> tuple[Columns, Columns]:
    """Of each `imputable` column the median of what the model draws for it, and its standard deviation: as wide that ONE_SIGMA of the draws
    are at most one of it away and TWO_SIGMA at most two, which of heavy tails is more than the first alone asks for.

    Values that a star lacks are drawn as `_drawn_values` does, and what is derived follows from them. A value is NaN where the star has its
    own; where the column is `not_imputed`; and where half of the draws or more are undefined (a logarithm of a parallax below 0) or outside
    of what train stars have. Every star has the same draws, so that its numbers do not depend on the stars beside it.

    Args:
        stars: which values they lack is `null` once more, by value.
        null: whether each column is null, shape (n,) each.
        sky: where positions are not the model's.

    Returns:
        Columns of shape (n,), by name.

    Raises:
        DataError: where the card does not tell how values are guessed.
    """
    check_imputes(model)
    names = imputable(model)
    values, widths = ({name: np.full(len(stars.values), np.nan) for name in names} for _ in range(2))
    lacking = np.flatnonzero(np.any([null[name] for name in names], axis=0)) if names else np.empty(0, np.int64)
    for first in range(0, len(lacking), _ROWS):
        rows = lacking[first : first + _ROWS]
        draws = _drawn_columns(model, names, stars.rows(rows), sky.rows(rows) if sky else None)
        for name in names:
            middle, width = _summary(draws[name], isinstance(model.transform.encodings.get(name), MassMap))
            values[name][rows] = np.where(null[name][rows], middle, np.nan)
            widths[name][rows] = np.where(null[name][rows], width, np.nan)
    return values, widths


def _drawn_values(model: StarModel, stars: Gaps) -> Iterator[Floats]:
    """Network values of stars, shape (n, n_values), IMPUTED_DRAWS times.

    A value that a star lacks is the decoder's guess and one of the errors that such guesses had where they could be checked: of validation
    stars from which the value was hidden (`HiddenValue`); NaN where the card does not tell. It is cut to what train stars have. Values that
    the star has scatter by the error of rebuilding them.
    """
    names, known = model.transform.value_names, model.card.errors
    noise = _normal(len(names)) * np.array([known.rebuilt.get(name, 0.0) for name in names])
    guess = model.decode(stars.z, model.transform.as_complete(stars.condition)).astype(np.float64)
    hidden = [known.hidden.get(name) for name in names]
    for i, value in enumerate(hidden):
        guess[:, i] = np.clip(guess[:, i], value.lowest, value.highest) if value else np.nan
    limits = _limits(model)
    for draw, own in enumerate(noise):
        drawn = guess.copy()
        for i, value in enumerate(hidden):
            if value and stars.lacking[:, i].any():
                errors = [row[value.draws[draw]] for row in value.errors]
                drawn[:, i] = value.slope * guess[:, i] + np.interp(guess[:, i], value.guesses, errors)
        yield np.where(stars.lacking, np.clip(drawn, *limits), stars.values + own)


def _normal(values: int) -> Floats:
    """Standard normal numbers, shape (IMPUTED_DRAWS, values): the same quantiles for each value, in an order of its own."""
    quantiles = np.array([NormalDist().inv_cdf((rank + 0.5) / IMPUTED_DRAWS) for rank in range(IMPUTED_DRAWS)])
    return np.random.default_rng(_SEED).permuted(np.tile(quantiles[:, None], values), axis=0)


def _limits(model: StarModel) -> tuple[Floats, Floats]:
    """The smallest and largest network value of train stars, shape (n_values,) each; infinite where they are not known, or a column takes
    several values."""
    transform = model.transform
    ends = np.tile([[-np.inf], [np.inf]], transform.n_values)
    for name, slot in transform.slots.items():
        if name in transform.limits and slot.width == 1:
            ends[:, slot.start] = transform.encodings[name].forward(np.array(transform.limits[name]))[:, 0]
    return ends[0], ends[1]


def _drawn_columns(model: StarModel, names: Sequence[str], stars: Gaps, sky: Sky | None) -> Columns:
    """Draws of the columns, shape (IMPUTED_DRAWS, n) each; NaN where undefined or, of what is derived, beyond what train stars have."""
    transform = model.transform
    draws = {name: np.empty((IMPUTED_DRAWS, len(stars.values))) for name in names}
    for draw, values in enumerate(_drawn_values(model, stars)):
        columns = model.inverse(values, *(sky or ()))
        for name in names:
            x, (low, high) = columns[name], transform.limits[name]
            beyond = (x < low) | (x > high)
            draws[name][draw] = np.where(beyond, np.nan, x) if name in transform.derived else np.clip(x, low, high)
    return draws


def _summary(draws: Floats, shared: bool = False) -> tuple[Floats, Floats]:
    """Median of draws, shape (IMPUTED_DRAWS, n), and their standard deviation about it; NaN where half of them are, or more.

    shared: whether stars share values, between which nothing may lie: the median is then the lower of the two draws in the middle.
    """
    count = np.isfinite(draws).sum(0)
    enough = count > IMPUTED_DRAWS // 2
    ascending = np.sort(draws, axis=0)
    lower = np.take_along_axis(ascending, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    middle = lower if shared else _quantile(ascending, 0.5, count)
    distance = np.sort(np.abs(draws - middle), axis=0)
    width = np.maximum(_quantile(distance, ONE_SIGMA, count), _quantile(distance, TWO_SIGMA, count) / 2)
    return np.where(enough, middle, np.nan), np.where(enough, width, np.nan)


def _quantile(ascending: Floats, rank: float, count: NDArray[np.int64]) -> Floats:
    """Of the first `count` of each column of numbers."""
    place = np.clip(rank * count - 0.5, 0, np.maximum(count - 1, 0))
    below = place.astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ascending, each[None], axis=0)[0] for each in (below, above))
    return low + (place - below) * (high - low)


def imputed_schema(model: StarModel) -> list[pa.Field]:
    """The columns that imputing adds."""
    return [pa.field(f"{name}{STD}", pa.float64(), metadata=std_metadata(model, name)) for name in imputable(model)]
