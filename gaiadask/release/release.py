"""A data release as a value: its columns, the formulas of derived ones, its presets of columns.

Code that needs a column's unit, type, error or formula is given the release, or something that carries it (a configuration,
a transform, an archive). A further release is one module with its value and one line of `_RELEASES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.errors import ConfigurationError, known_names
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID, Column

Floats = NDArray[np.floating[Any]]
T = TypeVar("T")


class Sources:
    """The columns that others derive from, by name, in archive units, NaN where null, and what was computed of them so far."""

    def __init__(self, values: Mapping[str, ArrayLike]) -> None:
        self._values = values
        self._computed: dict[Callable[[Sources], Any], Any] = {}

    def __getitem__(self, name: str) -> ArrayLike:
        return self._values[name]

    def once(self, function: Callable[[Sources], T]) -> T:
        """What the function makes of these columns, computed when it is first asked for: several formulas may share it."""
        if function not in self._computed:
            self._computed[function] = function(self)
        return cast(T, self._computed[function])


Formula = Callable[[Sources], Floats]
"""A derived column from the columns that it derives from."""

_RELEASES = {"dr2": "gaiadask.release.dr2:DR2"}
DEFAULT_RELEASE = "dr2"
"""The data release of every configuration, and of every file that names none: so far gaiadask has one."""


def release_named(name: str) -> Release:
    """The data release of this name. Raises ConfigurationError for an unknown one."""
    if name not in _RELEASES:
        raise ConfigurationError(f"unknown data release {name!r}: gaiadask knows {sorted(_RELEASES)}")
    module, value = _RELEASES[name].split(":")
    release = getattr(importlib.import_module(module), value)
    assert isinstance(release, Release)
    return release


@dataclass(frozen=True, eq=False)
class Release:
    """One data release.

    name: as files name it. title: as people write it. table: of the archive. columns: in the archive's own order, by name.
    formulas: of the derived columns, by name. presets: names of columns by the preset's name; one is "all". mock_columns: those
    that mock stars have.

    >>> dr2 = release_named("dr2")
    >>> dr2.columns["parallax"].unit, dr2.derivable(["phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp"])
    ('mas', ('bp_rp',))
    """

    name: str
    title: str
    table: str
    columns: Mapping[str, Column]
    formulas: Mapping[str, Formula]
    presets: Mapping[str, tuple[str, ...]]
    mock_columns: tuple[str, ...]

    def __reduce__(self) -> tuple[Callable[[str], Release], tuple[str]]:
        # Pickled by name: formulas cannot be pickled, and workers have the same release.
        return release_named, (self.name,)

    def resolve(self, choice: str | Sequence[str]) -> tuple[str, ...]:
        """Names of columns, in order and without repeats.

        Args:
            choice: the name of a preset ("seed16", "seed25", "all"), or names of columns.

        Raises:
            ConfigurationError: for an unknown preset or column.
        """
        if isinstance(choice, str):
            if choice not in self.presets:
                raise ConfigurationError(
                    f"unknown column preset {choice!r}: expected a list of columns, or a preset: {known_names([choice], sorted(self.presets))}"
                )
            return self.presets[choice]
        unknown = [name for name in choice if name not in self.columns]
        if unknown:
            raise ConfigurationError(f"unknown column(s) {', '.join(unknown)}: {known_names(unknown, sorted(self.columns))}")
        return tuple(dict.fromkeys(choice))

    def derivable(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns, of `columns`, that can be derived from others among them, in the archive's order."""
        present = set(columns)
        return tuple(n for n, c in self.columns.items() if n in present and c.derived_from and present.issuperset(c.derived_from))

    @cached_property
    def magnitude_sources(self) -> frozenset[str]:
        """The columns, fluxes, that magnitudes and colours are derived from."""
        return frozenset(source for c in self.columns.values() if c.unit == "mag" for source in c.derived_from)

    def derive(self, values: Mapping[str, ArrayLike] | Sources, names: Sequence[str]) -> dict[str, Floats]:
        """Derived columns, from the columns that they follow from.

        Magnitudes, colours and ratios are the archive's to the last bit; the rest agrees with it to the column's tolerance. Every
        machine derives the same bits.

        Args:
            values: at least the columns that each name derives from (`Column.derived_from`), in archive units, NaN where null; as
                `Sources` where more is derived of them later, which may share what is computed. Their shapes may differ: what each
                column is derived from must broadcast.
            names: of the derived columns.

        Returns:
            Each of its archive type (an integer as float64, which has a NaN and represents it exactly) and of its inputs' shape,
            NaN where undefined.

        Raises:
            KeyError: for a name that is not a derived column, and for an input that is not among `values`.
        """
        with np.errstate(over="ignore"):  # a mock parallax near 0 gives an infinite luminosity
            sources = values if isinstance(values, Sources) else Sources(values)
            derived = {name: np.asarray(sources.once(self.formulas[name])).astype(self._float_type(name)) for name in names}
        # One NaN of the many: which one an operation gives is not the same everywhere.
        return {name: np.where(np.isnan(values), np.nan, values) for name, values in derived.items()}

    def g_magnitude(self, flux: ArrayLike) -> NDArray[np.float32]:
        """G magnitude of a mean flux in electrons/s, as the archive rounds it; NaN where flux is not above 0."""
        return np.asarray(self.formulas["phot_g_mean_mag"](Sources({"phot_g_mean_flux": flux})), np.float32)

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """Arrow schema of these columns, with units and UCDs."""
        return pa.schema([self.columns[name].field for name in names])

    def catalogue_schema(self, columns: Sequence[str]) -> pa.Schema:
        """Arrow schema of a raw catalogue with these columns: `_healpix_29`, source_id, then the rest, with units and UCDs."""
        names = [SOURCE_ID, *(n for n in (RA, DEC) if n not in columns), *(n for n in columns if n != SOURCE_ID)]
        healpix = pa.field(
            HEALPIX_29, pa.int64(), metadata={"unit": "", "ucd": "pos.healpix", "description": "HEALPix index, order 29, nested"}
        )
        return pa.schema([healpix, *self.schema(names)])

    def row_bytes(self, names: Iterable[str]) -> int:
        """Bytes of one uncompressed row with these columns, its `_healpix_29` (8 bytes) counted; unknown names are ignored."""
        return 8 + sum(self.columns[name].bytes for name in names if name in self.columns)

    def _float_type(self, name: str) -> np.dtype[np.floating[Any]]:
        dtype = np.dtype(self.columns[name].dtype.to_pandas_dtype())
        return dtype if dtype.kind == "f" else np.dtype(np.float64)
