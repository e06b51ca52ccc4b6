"""The codec's records: everything that a decoder must know beside the bytes of a chunk, as JSON."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from gaiadask.codec.bounds import Tolerance
from gaiadask.records import Record

FORMAT_VERSION = 1
SKY_ORDER = 3
"""HEALPix order of the tables over the sky, nested; read from source_id, never computed from a position."""
SKY_PIXELS = 12 * 4**SKY_ORDER
CELLS = 16
"""Cells of a parent's table; between their CELLS + 1 knots it is linear."""
STEPS = 64
"""Whole steps of a cell: a coordinate is a number of steps from the first knot."""
NULL_COORDINATE = CELLS * STEPS + 1
LEVELS = 4096
"""Equal parts of a feature's range, in which its knots are given."""
SCALE_UNIT = 256
"""Parts of an octave in which the logarithm of a residual's size is predicted."""

Anchor = Literal["source_id", "tile"]


class Feature(Record):
    """A number of a star, known once some columns are decoded, from which other columns are predicted."""

    kind: Literal["value", "residual", "ratio"] = Field(
        description="value: of the column; residual: the value less its prediction; ratio: of log2(column) less log2(other)"
    )
    column: str = Field(description="the column")
    other: str = Field("", description="ratio: the column that is divided by")
    centre: float = Field(0.0, description="linear columns: the number is sign(d) * plog2(1 + |d| / width), d = value - centre")
    width: float = Field(0.0, description="see centre; 0: the number is log2 of the value, or the difference of logarithms")
    low: float = Field(description="lower end of the number's range; smaller numbers count as this one")
    high: float = Field(description="upper end of the range")
    knots: tuple[int, ...] = Field(description="the CELLS + 1 knots, as numbers of LEVELS equal parts of the range, rising from 0")


class Parent(Record):
    """What one feature adds to a prediction."""

    feature: int = Field(description="number of the feature")
    mean: tuple[int, ...] = Field(description="added to the mean at each knot and, last, where the feature is null; in `unit`")
    scale: tuple[int, ...] = Field(description="the same for the scale, in octaves / SCALE_UNIT; 0 or more")
    slope: float = Field(description="added to the mean: slope * (number - low), 0 where the feature is null")


class Prediction(Record):
    """A value's mean and the size of what is left, as sums over its parents."""

    unit: float = Field(description="of the tables of means: a power of two, in the column's space")
    mean: int = Field(description="constant of the mean, in `unit`")
    parents: tuple[Parent, ...] = Field(description="in the order in which they are added")
    sky_mean: tuple[int, ...] = Field((), description="added for each pixel of the sky; none: nothing")
    sky_scale: tuple[int, ...] = Field((), description="the same for the scale; 0 or more")


class ColumnCode(Record):
    """How one column is coded."""

    name: str = Field(description="of the column; null:NAME is the null mask of NAME")
    dtype: str = Field(description="Arrow type of the column; bool for a mask")
    kind: Literal["source_id", "grid", "formula", "category", "exact", "ulps", "text"] = Field(
        description="source_id: pixel gaps and running numbers; grid: whole steps from the prediction; formula: what the release's formula gives; "
        "category: small whole numbers, "
        "texts or flags by their place in `labels`; exact: the values themselves; ulps: representable numbers from the formula; "
        "text: dictionary or characters"
    )
    tolerance: Tolerance = Field(description="how far values may be off")
    leader: str = Field(
        "", description="the column whose null mask is this one's too; its own name: it has the mask; none: no nulls"
    )
    space: Literal["log", "linear"] = Field("linear", description="grid: whether log2 of the value is predicted, or the value")
    offset: Literal["none", "formula", "centre"] = Field(
        "none", description="added to the mean: the formula's value, or the centre of the star's pixel"
    )
    step: float = Field(0.0, description="grid: of one step, in the error's unit (sigma), octaves (relative) or the column's unit")
    labels: tuple[str | int | bool, ...] = Field((), description="category: the values, in the order of their numbers")
    alone_bits: float = Field(0.0, description="bits a star that it took without a prediction, of the stars that were fitted to")
    prediction: Prediction | None = Field(None, description="none: the mean is 0 (or the offset), and there is one pile")


class CodecCard(Record):
    """Everything that decodes a compressed catalogue, beside its files."""

    version: int = Field(FORMAT_VERSION, description="of the format")
    release: str = Field(description="name of the data release")
    bound_sigma: float = Field(description="the bound, in units of each star's own error")
    anchor: Anchor = Field(
        description="whose centre positions are counted from: the pixel of order 12 in source_id, or the partition's"
    )
    schema_columns: tuple[str, ...] = Field(description="columns of the catalogue, in order")
    features: tuple[Feature, ...] = Field(description="by number")
    columns: tuple[ColumnCode, ...] = Field(description="in the order in which they are coded")
    fitted_stars: int = Field(description="train stars that the tables were fitted to")

    @cached_property
    def by_name(self) -> dict[str, ColumnCode]:
        """The columns' codes by name."""
        return {code.name: code for code in self.columns}

    @cached_property
    def with_residual(self) -> frozenset[str]:
        """Columns whose residual is a feature."""
        return frozenset(feature.column for feature in self.features if feature.kind == "residual")
