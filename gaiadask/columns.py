"""The column table: one row for each column of `gaiadr2.gaia_source` that gaiadask knows.

A column's name, unit, UCD, type, transform, error column and derivation are told here and nowhere else. To add a column
of the archive, add a row. Units are VOUnit strings, as the archive's own metadata spells them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from gaiadask.errors import ConfigurationError

TransformKind = Literal["identifier", "position", "quantile"]

MAS_PER_DEGREE = 3_600_000.0
FLOAT32_RESOLUTION = 6e-8
FLOAT64_RESOLUTION = 1.2e-16


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the archive.

    tolerance: relative error within which a rebuilt value is as good as the archive's own: the largest deviation of the
    formula for a derived column, else the resolution of its type.
    error_column, error_factor: `error_factor * row[error_column]` is one sigma of this column in this column's unit
    (for ra: of ra * cos(dec)).
    derived_from: the columns from which `gaiadask.derive` computes this one; empty for a free column.
    """

    name: str
    unit: str
    ucd: str
    dtype: pa.DataType
    description: str
    transform: TransformKind = "quantile"
    tolerance: float = FLOAT64_RESOLUTION
    error_column: str | None = None
    error_factor: float = 1.0
    derived_from: tuple[str, ...] = ()

    @property
    def field(self) -> pa.Field:
        """The parquet field: name, type, and unit, UCD and description as metadata."""
        metadata = {"unit": self.unit, "ucd": self.ucd, "description": self.description}
        return pa.field(self.name, self.dtype, metadata=metadata)


_F4, _F8, _I8 = pa.float32(), pa.float64(), pa.int64()
_COLOUR_SOURCES = {
    "bp_rp": ("phot_bp_mean_flux", "phot_rp_mean_flux"),
    "bp_g": ("phot_bp_mean_flux", "phot_g_mean_flux"),
    "g_rp": ("phot_g_mean_flux", "phot_rp_mean_flux"),
}
_FLAME_SOURCES = ("phot_g_mean_flux", "parallax", "teff_val")


def _with_error(
    name: str,
    unit: str,
    ucd: str,
    description: str,
    factor: float = 1.0,
    error_unit: str | None = None,
    transform: TransformKind = "quantile",
) -> tuple[Column, Column]:
    """A measured column and its standard error, both float64."""
    error_name = f"{name}_error"
    value = Column(name, unit, ucd, _F8, description, transform, error_column=error_name, error_factor=factor)
    error = Column(error_name, error_unit or unit, f"stat.error;{ucd}", _F8, f"Standard error of {name}")
    return value, error


def _colour(name: str, ucd: str, description: str) -> Column:
    return Column(name, "mag", ucd, _F4, description, tolerance=FLOAT32_RESOLUTION, derived_from=_COLOUR_SOURCES[name])


# fmt: off
_TABLE: tuple[Column, ...] = (
    Column("source_id", "", "meta.id;meta.main", _I8, "Unique source identifier (unique within a release)", "identifier"),
    Column("random_index", "", "meta.code", _I8, "Random index used to select subsets", "identifier"),
    *_with_error("ra", "deg", "pos.eq.ra;meta.main", "Right ascension at epoch 2015.5 (ICRS)", 1 / MAS_PER_DEGREE, "mas", "position"),
    *_with_error("dec", "deg", "pos.eq.dec;meta.main", "Declination at epoch 2015.5 (ICRS)", 1 / MAS_PER_DEGREE, "mas", "position"),
    *_with_error("parallax", "mas", "pos.parallax.trig", "Absolute stellar parallax"),
    *_with_error("pmra", "mas/yr", "pos.pm;pos.eq.ra", "Proper motion in right ascension direction, times cos(dec)"),
    *_with_error("pmdec", "mas/yr", "pos.pm;pos.eq.dec", "Proper motion in declination direction"),
    *_with_error("radial_velocity", "km/s", "spect.dopplerVeloc.opt;em.opt.I", "Spectroscopic barycentric radial velocity"),
    *_with_error("phot_g_mean_flux", "'electron'.s**-1", "phot.flux;em.opt", "G-band mean flux"),
    *_with_error("phot_bp_mean_flux", "'electron'.s**-1", "phot.flux;em.opt.B", "Integrated BP mean flux"),
    *_with_error("phot_rp_mean_flux", "'electron'.s**-1", "phot.flux;em.opt.R", "Integrated RP mean flux"),
    _colour("bp_rp", "phot.color;em.opt.B;em.opt.R", "BP - RP colour"),
    _colour("bp_g", "phot.color;em.opt.B;em.opt", "BP - G colour"),
    _colour("g_rp", "phot.color;em.opt;em.opt.R", "G - RP colour"),
    Column("teff_val", "K", "phys.temperature.effective", _F4, "Stellar effective temperature (Priam)", tolerance=FLOAT32_RESOLUTION),
    Column("a_g_val", "mag", "phys.absorption;em.opt", _F4, "Line-of-sight extinction in the G band (Priam)", tolerance=FLOAT32_RESOLUTION),
    Column("radius_val", "solRad", "phys.size.radius", _F4, "Stellar radius (FLAME)", tolerance=4e-4, derived_from=_FLAME_SOURCES),
    Column("lum_val", "solLum", "phys.luminosity", _F4, "Stellar luminosity (FLAME)", tolerance=7.2e-4, derived_from=_FLAME_SOURCES),
)
# fmt: on

COLUMNS: dict[str, Column] = {column.name: column for column in _TABLE}

SOURCE_ID = "source_id"
RA, DEC = "ra", "dec"
HEALPIX_29 = "_healpix_29"
# What every star must have before it can be filed: it is never selected away.
KEY_COLUMNS = (SOURCE_ID, RA, DEC)

SEED16 = (
    "ra", "dec", "parallax", "pmra", "pmdec", "radial_velocity",
    "phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp", "bp_g", "g_rp",
    "teff_val", "a_g_val", "radius_val", "lum_val",
)  # fmt: skip
_SEED_ERRORS = tuple(c for name in SEED16 if (c := COLUMNS[name].error_column))
SEED25 = SEED16 + _SEED_ERRORS
PRESETS: dict[str, tuple[str, ...]] = {"seed16": SEED16, "seed25": SEED25, "all": tuple(COLUMNS)}


def resolve_columns(choice: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a preset ("seed16", "seed25", "all") or of a list, in order and without repeats.

    Raises ConfigurationError for an unknown preset or column.
    """
    if isinstance(choice, str):
        if choice not in PRESETS:
            raise ConfigurationError(f"unknown column preset {choice!r}: expected one of {sorted(PRESETS)} or a list of columns")
        return PRESETS[choice]
    unknown = [name for name in choice if name not in COLUMNS]
    if unknown:
        raise ConfigurationError(f"unknown column(s) {unknown}: gaiadask knows {sorted(COLUMNS)}")
    return tuple(dict.fromkeys(choice))


def derivable(columns: Iterable[str]) -> tuple[str, ...]:
    """Those of `columns` that follow from other columns among them, in the table's order."""
    present = set(columns)
    return tuple(n for n, c in COLUMNS.items() if n in present and c.derived_from and present.issuperset(c.derived_from))


def catalogue_schema(columns: Sequence[str]) -> pa.Schema:
    """Arrow schema of a raw catalogue with these columns: `_healpix_29`, source_id, then the rest, with units and UCDs."""
    names = [SOURCE_ID, *(n for n in (RA, DEC) if n not in columns), *(n for n in columns if n != SOURCE_ID)]
    healpix = pa.field(
        HEALPIX_29, _I8, metadata={"unit": "", "ucd": "pos.healpix", "description": "HEALPix index, order 29, nested"}
    )
    return pa.schema([healpix, *(COLUMNS[name].field for name in names)])
