"""One column of a data release, and the names that every release has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Role = Literal["identifier", "label", "position", "quantity"]

MAS_PER_DEGREE = 3_600_000.0
# Largest relative rounding error, half of the type's epsilon.
FLOAT32_RESOLUTION = 6e-8
FLOAT64_RESOLUTION = 1.2e-16


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a compressed value may be from the catalogue's.

    kind: "sigma": in units of the star's own catalogue error; "relative": in units of the value; "absolute": in the column's
    unit. amount: the bound where `codec.bound_sigma` is 1; it is multiplied by that number.
    """

    kind: Literal["sigma", "relative", "absolute"]
    amount: float


ONE_SIGMA = Bound("sigma", 1.0)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a data release.

    name, unit, ucd, dtype, description: as the archive has them; unit: a VOUnit string, empty where it has none.
    role: "quantity" or "position": a number that measures something; "label": a text or a flag; "identifier": unique numbers and names.
    nullable: False where every row of the archive has a value; users' files may lack values all the same.
    tolerance: relative error within which a rebuilt value is as good as the archive's own: the largest deviation of the
    formula for a derived column (of an angle: in its unit), else the resolution of its type.
    error_column, error_factor: `error_factor * row[error_column]` is one sigma of this column in this column's unit
    (for ra: of ra * cos(dec)).
    sign_matters: whether magnitudes or luminosities are made from it, so that a value above 0 must stay above 0.
    bound: how far a compressed value may be from this one; None: not at all, or for a derived column as far as the formula takes
    the bounds of its inputs.
    derived_from: the columns from which `Release.derive` computes this one; empty for a free column.
    """

    name: str
    unit: str
    ucd: str
    dtype: pa.DataType
    description: str
    role: Role = "quantity"
    nullable: bool = True
    tolerance: float = FLOAT64_RESOLUTION
    error_column: str | None = None
    error_factor: float = 1.0
    sign_matters: bool = False
    bound: Bound | None = None
    derived_from: tuple[str, ...] = ()

    @property
    def field(self) -> pa.Field:
        """The parquet field: name, type, and unit, UCD and description as metadata."""
        metadata = {"unit": self.unit, "ucd": self.ucd, "description": self.description}
        return pa.field(self.name, self.dtype, metadata=metadata)

    @property
    def bytes(self) -> int:
        """Bytes of one value in memory; for a text, a typical number."""
        return 24 if pa.types.is_string(self.dtype) else max(1, self.dtype.bit_width // 8)

    @property
    def is_text(self) -> bool:
        """Whether it is a label in words."""
        return self.role == "label" and not pa.types.is_boolean(self.dtype)

    @property
    def is_encodable(self) -> bool:
        """Whether a model can encode it: a number that measures something, or a flag; identifiers and texts only the catalogue has."""
        return self.role != "identifier" and not self.is_text


SOURCE_ID = "source_id"
RA, DEC = "ra", "dec"
HEALPIX_29 = "_healpix_29"

# Every selection has these columns: a star is filed by its position.
KEY_COLUMNS = (SOURCE_ID, RA, DEC)
