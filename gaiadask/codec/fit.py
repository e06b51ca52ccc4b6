"""Learning how the columns follow from each other: the order, each column's parents and their tables, in closed form.

Each column is fitted when the ones before it are, to what a decoder will have of those. What is learned is a table of whole numbers
for each parent: no more than a column's residuals in steps and their size, for the piles.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.codec import columns
from gaiadask.codec.bounds import Floats, Tolerance
from gaiadask.codec.card import (
    CELLS,
    LEVELS,
    SCALE_UNIT,
    SKY_PIXELS,
    STEPS,
    Anchor,
    CodecCard,
    ColumnCode,
    Feature,
    Parent,
    Prediction,
)
from gaiadask.codec.chunk import column_of
from gaiadask.codec.coders import CODERS
from gaiadask.codec.columns import Chosen, Judge, Native, Originals
from gaiadask.codec.dependencies import MASK
from gaiadask.codec.expected import bits_of_categories, bits_of_steps
from gaiadask.codec.grid import MOST_STEPS, Grid
from gaiadask.codec.nulls import Mask, as_floats, chosen
from gaiadask.codec.order import coding_order
from gaiadask.codec.pixels import centre_of
from gaiadask.codec.plan import first_codes
from gaiadask.codec.prediction import MOST_MEAN
from gaiadask.codec.regression import ENTRIES, FEW_STARS, FIRST_BENDING, Design, Sums, cells_of, gains
from gaiadask.codec.stars import Stars
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT, separation_deg
from gaiadask.store.paths import Tile

log = logging.getLogger(__name__)

MOST_PARENTS = 8
"""Of a column: more cost time in every star, and bring little."""
_LEAST_GAIN = 0.004
"""Bits a star that a parent must be expected to save."""
_TABLE_BITS = 500.0
"""Of one parent in the card, about: few stars do not pay for it."""
_LOG_UNIT = 2.0**-16
_STEP_PARTS = 64.0
"""A table of means is in parts of a step as fine as this, so that its rounding costs nothing."""
_ENDS = (0.002, 0.998)
"""Quantiles of a feature between which its knots lie."""
_OUTLIER = 3.0
"""In sizes of the residual: beyond it a star's weight in a mean falls."""
_NEAR_PIXEL_DEG, _IN_PIXEL_SHARE = 0.1, 0.95
_LOG_RANGE = 100.0
"""A positive column whose values span more than this factor is predicted in logarithms alone."""
_MOST_RATIOS = 3
_CHOOSING_STARS = 20_000
_MOST_CANDIDATES = 30
_SKY_BITS = 12_000.0
_ROUNDS = 3
"""Of the sums of a column, once its parents are chosen: weights and penalties follow from the fit before."""
_WHOLE_SKY = Tile(0, 0)


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def fit_codec(sample: pa.Table, bounds: Mapping[str, Tolerance], bound_sigma: float, release: Release, rows: int) -> CodecCard:
    """Learn how to code a catalogue.

    Args:
        sample: train stars, every column of the catalogue.
        bounds: of each column (`tolerances`).
        bound_sigma: the bound, for the card.
        release: the columns' data release.
        rows: stars of the catalogue: few of them do not pay for many tables.
    """
    stars = {name: columns.native(sample[name]) for name in sample.column_names if name != HEALPIX_29}
    codes = first_codes(stars, bounds, release)
    fitting = Fitting(sample.num_rows, stars, Judge(Originals(stars), bounds, release), _anchor(stars), rows)
    values = {code.name: fitting.floats(code) for code in codes if code.kind in ("grid", "category")}
    for code in coding_order(codes, values, release):
        fitting.add(code)
    used, features = _used(fitting.codes, fitting.features)
    return CodecCard(
        release=release.name, bound_sigma=bound_sigma, anchor=fitting.anchor, schema_columns=tuple(n for n in sample.column_names if n != HEALPIX_29),
        features=features, columns=used, fitted_stars=sample.num_rows,
    )  # fmt: skip


@dataclass
class Fitting:
    """The sample as far as it is coded, and the columns' codes."""

    rows: int
    natives: Mapping[str, Native]
    judge: Judge
    anchor: Anchor
    catalogue_rows: int
    features: list[Feature] = field(default_factory=list)
    codes: list[ColumnCode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stars = Stars(self.features, self.anchor, _WHOLE_SKY, self.rows, self.natives)
        self.few_stars = self.rows < FEW_STARS
        self.least_gain = max(_LEAST_GAIN, _TABLE_BITS / max(self.catalogue_rows, 1))

    def floats(self, code: ColumnCode) -> Floats:
        """A column as predictions see it: numbers, NaN where null."""
        if code.name.startswith(MASK):
            null = self.natives[code.leader].null
            return np.zeros(self.rows) if null is None else null.astype(np.float64)
        column = self.natives[code.name]
        if code.kind != "category":
            return column.as_floats
        coder = CODERS["category"](code, self.stars, column.null, self.judge.release)
        numbers = coder.propose(column.values, self.judge.originals).numbers
        assert numbers is not None
        return as_floats(numbers, column.null)

    def add(self, code: ColumnCode) -> None:
        """Choose how a column is predicted, code the sample's with it, and offer it as features to those that follow."""
        column = column_of(code, self.natives, self.stars)
        trials = [code, *self._candidates(code, column)]
        sizes = [self._bytes(trial, column) for trial in trials]
        best = trials[int(np.argmin(sizes))]
        if best is not trials[-1]:
            columns.choose(best, self.stars, column, self.judge)  # so that the stars have what it gives
        best = best.model_copy(update={"alone_bits": round(8 * sizes[0] / max(self.catalogue_rows, 1), 4)})
        self.codes.append(best)
        log.debug("%s: %s bytes, %s", code.name, [round(size) for size in sizes], best.space)
        self._offer(best)

    def _bytes(self, code: ColumnCode, column: Native) -> float:
        """Bytes of the column in the whole catalogue, its tables in the card counted."""
        bytes_a_star = self._sample_bytes(columns.choose(code, self.stars, column, self.judge)) / max(self.rows, 1)
        tables = (len(code.prediction.parents), bool(code.prediction.sky_mean)) if code.prediction else (0, False)
        return bytes_a_star * self.catalogue_rows + (tables[0] * _TABLE_BITS + tables[1] * _SKY_BITS) / 8

    def _sample_bytes(self, trial: Chosen) -> float:
        """Bytes of the sample's values; where they are too few to fill the piles that a chunk will have, those to be expected of so many
        of them there."""
        coder, numbers = trial.coder, trial.proposal.numbers
        if numbers is None or not self.rows < FEW_STARS <= self.catalogue_rows:
            return sum(map(len, trial.packed().blobs))
        numbers = chosen(numbers, coder.null)
        levels = None if coder.levels is None else chosen(coder.levels, coder.null)
        if coder.code.kind == "category":
            bits = bits_of_categories(numbers, len(coder.code.labels), levels)
        else:
            bits = bits_of_steps(numbers, levels)
        return bits / 8 + sum(map(len, trial.head))

    def _candidates(self, code: ColumnCode, column: Native) -> list[ColumnCode]:
        """The column's code with a prediction, in each space that its values allow."""
        if code.kind not in ("grid", "category") or len(set(code.labels)) == 1:
            return []
        present = column.present
        spaces = ["linear"] if code.tolerance.kind != "relative" else ["log"]
        if code.tolerance.kind in ("sigma", "absolute") and code.offset == "none" and len(present) and present.min() > 0:
            low, high = np.quantile(present, (0.01, 0.99))
            spaces = ["log"] if high > _LOG_RANGE * low else ["linear", "log"]
        found = [ColumnFit(self, code.model_copy(update={"space": space}), column).best() for space in spaces]
        return [candidate for candidate in found if candidate is not None]

    def _offer(self, code: ColumnCode) -> None:
        """Make a column's features."""
        name, column = code.name, self.natives.get(code.name)
        if code.kind not in ("grid", "category") or name == RA:
            return
        offered = [] if name == DEC else [Feature(kind="value", column=name, **self._scale(code, self.stars.values[name]))]
        if name in self.stars.means:
            left = (self.stars.log(name) if code.space == "log" else self.stars.values[name]) - self.stars.means[name]
            offered.append(Feature(kind="residual", column=name, **self._scale(code, left, centred=True)))
        if code.space == "log" and column is not None:
            unit = self.judge.release.columns[name].unit
            partners = [c.name for c in self.codes[:-1] if c.space == "log" and self.judge.release.columns[c.name].unit == unit]
            offered += [
                Feature(kind="ratio", column=name, other=other, low=0, high=0, knots=()) for other in partners[:_MOST_RATIOS]
            ]
        self.features += [made for feature in offered if (made := self._ranged(feature)) is not None]

    def _scale(self, code: ColumnCode, numbers: Floats, centred: bool = False) -> dict[str, object]:
        """Centre and width of a feature of a column that is not in logarithms, and no range yet."""
        empty: dict[str, object] = {"low": 0, "high": 0, "knots": ()}
        if code.space == "log":
            return empty
        finite = numbers[np.isfinite(numbers)]
        centre = 0.0 if centred or not len(finite) else float(np.median(finite))
        off = np.abs(finite - centre)
        # Where most are the centre: of those that are not.
        width = float(np.median(off if np.median(off) else off[off > 0])) if off.any() else 1.0
        return empty | {"centre": centre, "width": width if np.isfinite(width) else 1.0}

    def _ranged(self, feature: Feature) -> Feature | None:
        """A feature with its range and knots; none where it is the same in all stars."""
        numbers = self.stars.number(feature)
        finite = numbers[np.isfinite(numbers)]
        if len(finite) < ENTRIES:
            return None
        low, high = (float(end) for end in np.quantile(finite, _ENDS))
        if not high > low:
            low, high = float(finite.min()), float(finite.max())
        if not high > low:
            return None
        levels = (np.quantile(finite, np.linspace(*_ENDS, CELLS + 1)) - low) * (LEVELS / (high - low))
        knots = np.clip(np.rint(levels).astype(int), 0, LEVELS)
        knots[0], knots[-1] = 0, LEVELS
        for i in range(1, CELLS):
            knots[i] = min(max(knots[i], knots[i - 1] + 1), LEVELS - CELLS + i)
        return feature.model_copy(update={"low": low, "high": high, "knots": tuple(knots.tolist())})


class ColumnFit:
    """Fits the prediction of one column in one space."""

    def __init__(self, fitting: Fitting, code: ColumnCode, column: Native) -> None:
        self._fitting, self._code, self._stars = fitting, code, fitting.stars
        numbers = fitting.floats(code)
        rows = np.arange(fitting.rows) if column.null is None else np.flatnonzero(~column.null)
        target, step = (every[rows] for every in self._target(numbers, column.null))
        # Nothing is to be learned of values that are too far away to be coded in steps.
        usable = np.isfinite(target) & np.isfinite(step) & (step > 0) & (np.abs(target) < MOST_STEPS * step)
        self._unit_step = float(np.median(step[usable])) if usable.any() else 1.0
        usable &= np.abs(target) < MOST_STEPS * self._unit_step
        self._rows = rows[usable]
        self._target_steps = target[usable] / self._unit_step

    def _target(self, values: Floats, null: Mask) -> tuple[Floats, Floats]:
        """What the tables must add up to, and the step, of each value in the column's space."""
        code = self._code
        if code.kind == "category":
            return values, np.full(len(values), 1.0 / STEPS)
        grid = Grid.of(code, self._stars, null, self._fitting.judge.release)
        step = grid.step
        with np.errstate(invalid="ignore", divide="ignore"):
            if code.space == "log":
                in_octaves = step if code.tolerance.kind == "relative" else step / (np.abs(values) * np.log(2))
                return np.log2(np.where(values > 0, values, np.nan)) - grid.mean, in_octaves
            off = values - grid.mean
        return (off - 360.0 * np.rint(off / 360.0) if code.name == RA else off), step

    def best(self) -> ColumnCode | None:
        """The column's code with the parents that save most; none where there are too few stars, or no feature says anything: the
        sky alone says little of a chunk, which is one part of it and has its own distribution."""
        if len(self._rows) < 2 * ENTRIES:
            return None
        parents = self._parents()
        if not parents and self._code.offset != "centre":
            return None
        mean, *_ = self._fitted(parents, np.ones(len(self._rows)), rounds=_ROUNDS)
        code = self._with(parents, mean, None)
        return self._with(parents, mean, self._sizes_in_steps(code, parents))

    def _parents(self) -> list[int]:
        """Numbers of the features that save most, chosen one after the other on some of the stars."""
        features, error = self._fitting.features, self._code.tolerance.error
        parents = [i for i, f in enumerate(features) if f.kind == "value" and f.column == error]
        candidates = [i for i in range(len(features)) if i not in parents]
        if self._code.offset == "centre":
            candidates = [i for i in candidates if features[i].column == DEC]
        count = min(len(self._rows), _CHOOSING_STARS)
        numbers, weights = np.array(candidates, np.int64), np.ones(count)
        cells = cells_of(self._stars.coordinates(candidates).steps[numbers][:, self._rows[:count]])
        while len(parents) < MOST_PARENTS:
            _, left, sizes, weights = self._fitted(parents, weights, rounds=1)
            gained = gains(cells, left, sizes, weights, 2.0 * self._fitting.few_stars)
            best = np.argsort(-gained, kind="stable")[:_MOST_CANDIDATES]
            best = best[gained[best] > self._fitting.least_gain / 2]
            if not len(best) or gained[best[0]] < self._fitting.least_gain:
                break
            parents.append(int(numbers[best[0]]))
            numbers, cells = numbers[best[1:]], cells[best[1:]]
        return parents

    def _fitted(self, parents: list[int], weights: Floats, rounds: int) -> tuple[Sums, Floats, Floats, Floats]:
        """The sums of the means of the first stars, as many as there are weights to begin with; residuals, log2 of their sizes less
        the predicted, and the stars' weights by these."""
        rows, target = self._rows[: len(weights)], self._target_steps[: len(weights)]
        design = self._design(parents, rows)
        bending = of_sizes = self._first_bending(parents) if rounds > 1 else None
        for _ in range(rounds):
            sums, mean = design.fit(target, weights, bending)
            bending = sums.bending
            left = target - mean
            sizes = np.log2(np.abs(left) + 0.25)
            of_size, predicted = design.fit(sizes, None, of_sizes)
            of_sizes = of_size.bending
            size = np.exp2(predicted)
            weights = np.minimum(1.0, _OUTLIER * size / (np.abs(left) + 1e-300)) / (size * size)
        return sums, left, sizes - predicted, weights / weights.mean()

    def _first_bending(self, parents: list[int]) -> Floats | None:
        """The penalty that estimating it begins with; none where there are stars enough for any."""
        return np.full(len(parents), FIRST_BENDING) if self._fitting.few_stars else None

    def _design(self, parents: list[int], rows: NDArray[np.int64]) -> Design:
        return Design(self._stars.coordinates(parents), parents, rows, self._stars.sky[rows])

    def _sizes_in_steps(self, code: ColumnCode, parents: list[int]) -> Sums:
        """The sums of log2 of how many steps each value is from its mean."""
        if code.kind == "category":
            return Sums(0.0, np.zeros((len(parents), ENTRIES)), np.zeros(len(parents)), np.zeros(SKY_PIXELS), None)
        release = self._fitting.judge.release
        steps, _ = Grid.of(code, self._stars, None, release).steps(self._fitting.floats(code))
        design, octaves = self._design(parents, self._rows), np.log2(np.abs(steps[self._rows]) + 0.25)
        bending = self._first_bending(parents)
        for _ in range(1 if bending is None else _ROUNDS):
            sums, _ = design.fit(octaves, None, bending)
            bending = sums.bending
        return sums

    def _with(self, parents: list[int], mean: Sums, scale: Sums | None) -> ColumnCode:
        """The column's code with these sums, in whole numbers."""
        unit = _LOG_UNIT if self._code.space == "log" else float(np.exp2(np.floor(np.log2(self._unit_step / _STEP_PARTS))))
        in_units = self._unit_step / unit
        tables = []
        for place, number in enumerate(parents):
            feature = self._fitting.features[number]
            # Of a scale no line is taken: its slope goes into the table, at the knots.
            above = np.array(feature.knots) * ((feature.high - feature.low) / LEVELS)
            sizes = np.zeros(ENTRIES) if scale is None else scale.tables[place] + scale.slopes[place] * np.append(above, 0.0)
            tables.append(
                Parent(
                    feature=number,
                    mean=_whole(mean.tables[place] * in_units),
                    scale=_not_negative(sizes),
                    slope=float(mean.slopes[place] * self._unit_step),
                )
            )
        sky = {"sky_mean": _whole(mean.sky * in_units), "sky_scale": _not_negative(mean.sky * 0 if scale is None else scale.sky)}
        if self._fitting.anchor == "tile" or self._code.offset == "centre":
            sky = {}
        prediction = Prediction(unit=unit, mean=_whole(np.array([mean.constant * in_units]))[0], parents=tuple(tables), **sky)
        return self._code.model_copy(update={"prediction": prediction})


def _whole(values: Floats) -> tuple[int, ...]:
    return tuple(np.clip(np.rint(values), -MOST_MEAN, MOST_MEAN).astype(np.int64).tolist())


def _not_negative(octaves: Floats) -> tuple[int, ...]:
    sizes = np.rint(octaves * SCALE_UNIT).astype(np.int64)
    return tuple((sizes - sizes.min()).tolist())


def _anchor(stars: Mapping[str, Native]) -> Anchor:
    """The pixel in source_id where that is where the stars are, as in Gaia's catalogues."""
    pixels = stars[SOURCE_ID].values >> SOURCE_ID_SHIFT
    inside = (pixels >= 0) & (pixels < 12 * 4**SOURCE_ID_ORDER)
    ra, dec = centre_of(SOURCE_ID_ORDER, np.clip(pixels, 0, 12 * 4**SOURCE_ID_ORDER - 1))
    near = separation_deg(ra, dec, stars[RA].values, stars[DEC].values) < _NEAR_PIXEL_DEG
    return "source_id" if np.sum(inside & near) > _IN_PIXEL_SHARE * len(pixels) else "tile"


def _used(codes: list[ColumnCode], features: list[Feature]) -> tuple[tuple[ColumnCode, ...], tuple[Feature, ...]]:
    """The codes with the features that they use numbered anew, and those features."""
    used = sorted({parent.feature for code in codes if code.prediction for parent in code.prediction.parents})
    number = {old: new for new, old in enumerate(used)}
    renumbered = []
    for code in codes:
        if code.prediction is not None:
            parents = tuple(p.model_copy(update={"feature": number[p.feature]}) for p in code.prediction.parents)
            code = code.model_copy(update={"prediction": code.prediction.model_copy(update={"parents": parents})})
        renumbered.append(code)
    return tuple(renumbered), tuple(features[old] for old in used)
