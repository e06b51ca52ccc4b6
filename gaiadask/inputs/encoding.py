"""Encodings: how the values of one column become network values, one or several, and come back.

A further encoding is one class and one line of `ENCODINGS`; the scalings in that line are what `model.scaling` may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gaiadask.errors import ConfigurationError
from gaiadask.inputs.masses import MassMap, fit_quantiles
from gaiadask.inputs.scaling import LinearMap, QuantileMap, fit_linear
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.records import JsonObject
from gaiadask.release.column import Column


class Encoding(Protocol):
    """An invertible map between the values of one column and `width` network values; fitted from train stars alone."""

    @property
    def kind(self) -> str:
        """Its key in `ENCODINGS`, and "kind" in its JSON."""

    @property
    def width(self) -> int:
        """How many network values the column takes."""

    @property
    def spread(self) -> tuple[float, ...]:
        """Interquartile range of each network value among train stars, length `width`."""

    def forward(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """Network values, shape (n, width), of finite column values, shape (n,), in archive units."""

    def inverse(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Column values, shape (n,), of network values, shape (n, width); finite for any values but NaN."""

    def slope(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """|d network value / d x|, shape (n, width), at finite column values, shape (n,)."""

    def to_json(self) -> JsonObject:
        """As `encoding_from_json` reads it, `kind` among it."""


class Slot(NamedTuple):
    """The network values that a column takes: numbers `start` to `stop`, exclusive.

    >>> Slot("parallax", 2, 3).names, Slot("ra", 0, 2).names, Slot("ra", 0, 2).values
    (('parallax',), ('ra[0]', 'ra[1]'), slice(0, 2, None))
    """

    column: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def values(self) -> slice:
        """Where they are among the network values."""
        return slice(self.start, self.stop)

    @property
    def numbers(self) -> range:
        """Their numbers among the network values."""
        return range(self.start, self.stop)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names: the column's where there is one, else numbered."""
        return (self.column,) if self.width == 1 else tuple(f"{self.column}[{i}]" for i in range(self.width))


Fit = Callable[[Column, QuantileSketch], Encoding]
"""Fits an encoding of a column from the sketch of its train stars, which has two different values at least.

Raises DataError where the values allow no such encoding."""


class EncodingKind(NamedTuple):
    """How encodings of one kind are read from JSON, and fitted: by the names that `model.scaling` may have."""

    from_json: Callable[[Mapping[str, Any]], Encoding]
    scalings: Mapping[str, Fit]


ENCODINGS: dict[str, EncodingKind] = {
    QuantileMap.kind: EncodingKind(QuantileMap.from_json, {"quantile": fit_quantiles}),
    MassMap.kind: EncodingKind(MassMap.from_json, {}),
    LinearMap.kind: EncodingKind(LinearMap.from_json, {name: partial(fit_linear, name) for name in ("min-max", "iqr")}),
}


def scalings() -> dict[str, Fit]:
    """Every scaling that `model.scaling` may name.

    >>> list(scalings())
    ['quantile', 'min-max', 'iqr']
    """
    return {name: fit for kind in ENCODINGS.values() for name, fit in kind.scalings.items()}


def fit_encoding(column: Column, sketch: QuantileSketch, scaling: str) -> Encoding:
    """The encoding of a column whose train stars have two different values at least, by the scaling of this name.

    Raises:
        ConfigurationError: for an unknown scaling.
        DataError: where the values allow no such encoding, or none that leaves the network anything to learn in float32.
    """
    known = scalings()
    if scaling not in known:
        raise ConfigurationError(f"unknown scaling {scaling!r}: expected one of {list(known)}")
    return known[scaling](column, sketch)


def encoding_from_json(record: Mapping[str, Any]) -> Encoding:
    """The encoding that its `to_json` wrote. Raises ValueError for a kind that this gaiadask does not have."""
    if (kind := record["kind"]) not in ENCODINGS:
        raise ValueError(f"unknown encoding {kind!r} of a column: this gaiadask has {list(ENCODINGS)}")
    return ENCODINGS[kind].from_json(record)
