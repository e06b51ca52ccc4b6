"""Latents as they are stored: small integers, each column with a scale and an offset; and back.

The integers of a latent with b bits are 0 to 2^b - 1 up to 8 bits (uint8: VOTable, which HATS writes the columns' metadata in, knows no
int8), else -2^(b-1) to 2^(b-1) - 1 (int16); latent = offset + scale * integer is the middle of a step of the range from -1 to 1. A latent
without bits is 0 for every star, and has no column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.catalogue import BITS_ENTRY
from gaiadask.errors import DataError
from gaiadask.records import Record


class LatentCode(Record):
    """How one latent is stored."""

    name: str = Field(description="of its column; a latent of 0 bits has none, and is 0")
    bits: int = Field(
        description="of its integers: 0 to 2^bits - 1 in columns of uint8 up to 8 bits, else -2^(bits - 1) to 2^(bits - 1) - 1 in int16"
    )
    scale: float = Field(description="latent = offset + scale * integer")
    offset: float = Field(description="see scale")
    precision: float = Field(
        description="a change of the latent by this changes the rebuilt columns by their IQR; on validation stars. Bits follow from it"
    )
    errors: tuple[float, ...] = Field(
        (),
        description="of a latent whose column has few values, which come back exactly: mean error in IQRs with 0, 1, … bits, 0 beyond. Bits follow "
        "from it then; empty for others",
    )

    @classmethod
    def of(cls, name: str, bits: int, precision: float, errors: Sequence[float] = ()) -> LatentCode:
        """The code with so many bits of a latent between -1 and 1."""
        scale = 2.0 ** (1 - bits)
        return cls(
            name=name,
            bits=bits,
            scale=scale,
            offset=(scale / 2 - (bits <= 8)) if bits else 0.0,
            precision=precision,
            errors=tuple(errors),
        )

    @property
    def smallest(self) -> int:
        """Of the integers."""
        return -(2 ** (self.bits - 1)) if self.bits > 8 else 0

    @property
    def largest(self) -> int:
        """Of the integers."""
        return self.smallest + 2**self.bits - 1

    @property
    def field(self) -> pa.Field:
        """Arrow field of the integers."""
        metadata = {
            "description": "latent = offset + scale * integer", BITS_ENTRY: str(self.bits), "scale": repr(self.scale), "offset": repr(self.offset)
        }  # fmt: skip
        return pa.field(self.name, pa.uint8() if self.bits <= 8 else pa.int16(), metadata=metadata)

    def integers(self, latents: NDArray[np.floating]) -> NDArray[np.int16]:
        """The integers nearest to latents, shape as latents."""
        if not self.bits:
            return np.zeros(latents.shape, np.int16)
        return np.clip(np.rint((latents - self.offset) / self.scale), self.smallest, self.largest).astype(np.int16)

    def rounded(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        """Latents in the middle of the step that each lies in, shape as latents."""
        return (self.offset + self.scale * self.integers(latents)).astype(np.float32)

    def latents(self, column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
        """The latents of a column, shape (n,): of integers, or of latents as they are.

        Raises:
            DataError: beginning with `where`, for a number that this latent does not have.
        """
        values, stored = column.to_numpy(), pa.types.is_integer(column.type)
        least, most = (self.smallest, self.largest) if stored else (-1, 1)
        if len(values) and (values.min() < least or values.max() > most):
            raise DataError(
                f"{where}: {self.name} is from {values.min():g} to {values.max():g}, expected {least} to {most} of "
                f"{'integers' if stored else 'floating-point numbers'}: the latents are of another model, or the integers of the files "
                "were made floating-point numbers without their scale and offset"
            )
        return np.float32(self.offset) + np.float32(self.scale) * values if stored else values.astype(np.float32, copy=False)


def as_stored(table: pa.Table, codes: Sequence[LatentCode]) -> pa.Table:
    """A table with its latents as integers; as it is where there are no codes."""
    for code in codes:
        if code.bits:
            integers = pa.array(code.integers(table[code.name].to_numpy()), pa.int16()).cast(code.field.type)
            table = table.set_column(table.schema.get_field_index(code.name), code.field, integers)
    return table


def as_latents(table: pa.Table, codes: Sequence[LatentCode], schema: pa.Schema) -> pa.Table:
    """A table of stored integers with the latents in their place; schema: of the latents."""
    for code in codes:
        if code.bits:
            latents = pa.array(code.latents(table[code.name], "the latents"))
            table = table.set_column(table.schema.get_field_index(code.name), schema.field(code.name), latents)
    return table
