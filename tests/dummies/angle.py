"""A further encoding, as somebody would add it: angles as cosine and sine, two network values a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gaiadask.inputs.encoding import Encoding, EncodingKind
from gaiadask.inputs.scaling import QuantileMap
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.release.column import Column


@dataclass(frozen=True)
class Angle:
    """An angle in degrees as its cosine and sine, times the square root of 2: of unit variance where all angles are as likely."""

    kind: ClassVar[str] = "angle"
    width: ClassVar[int] = 2
    spread: ClassVar[tuple[float, ...]] = (2.0, 2.0)

    def forward(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        angle = np.radians(x.astype(np.float64))
        return np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def inverse(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        cosine, sine = values.astype(np.float64).T
        return np.degrees(np.arctan2(sine, cosine)) % 360.0

    def slope(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.radians(np.abs(self.forward(x)[:, ::-1]))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Angle:
        return cls()


def fit(column: Column, sketch: QuantileSketch) -> Encoding:
    """Right ascension as an angle, every other column by its quantiles."""
    return Angle() if column.name == "ra" else QuantileMap.fit(sketch)


ANGLE = EncodingKind(Angle.from_json, {"angle": fit})
