"""The column table: one row for each of the 94 columns of `gaiadr2.gaia_source`, in the archive's own order.

A column's name, unit, UCD, type, transform, error column and derivation are told here and nowhere else. Units are VOUnit
strings and UCDs are spelled as the archive's own metadata spell them, also where today's lists of UCD words differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from gaiadask.errors import ConfigurationError
from gaiadask.release.column import DEC, FLOAT32_RESOLUTION, FLOAT64_RESOLUTION, HEALPIX_29, MAS_PER_DEGREE, RA, SOURCE_ID, Column

_F4, _F8, _I4, _I8, _BOOL, _TEXT = pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.bool_(), pa.string()


_ELECTRONS_S = "'electron'.s**-1"


_FLAME_SOURCES = ("phot_g_mean_flux", "parallax", "teff_val")


def _always(name: str, unit: str, ucd: str, dtype: pa.DataType, description: str, **more: Any) -> Column:
    """A column in which every star of the archive has a value."""
    return _real(name, unit, ucd, description, dtype=dtype, nullable=False, **more)


def _real(name: str, unit: str, ucd: str, description: str, **more: Any) -> Column:
    """A number, float32 unless told otherwise."""
    dtype = more.pop("dtype", _F4)
    resolution = FLOAT32_RESOLUTION if dtype == _F4 else FLOAT64_RESOLUTION
    return Column(name, unit, ucd, dtype, description, **{"tolerance": resolution, **more})


def _count(name: str, description: str, **more: Any) -> Column:
    return _always(name, "", "meta.number", _I4, description, **more)


def _with_error(
    name: str, unit: str, ucd: str, description: str, *,
    factor: float = 1.0, error_unit: str | None = None, error_ucd: str | None = None, **more: Any,
) -> tuple[Column, Column]:  # fmt: skip
    """A measured column and its standard error, both float64, both null in the same rows."""
    error_name = f"{name}_error"
    value = Column(name, unit, ucd, _F8, description, error_column=error_name, error_factor=factor, **more)
    error = Column(
        error_name, error_unit or unit, error_ucd or f"stat.error;{ucd}", _F8, f"Standard error of {name}",
        nullable=value.nullable,
    )  # fmt: skip
    return value, error


def _position(name: str, unit_ucd: str, description: str) -> tuple[Column, Column]:
    return _with_error(
        name, "deg", f"{unit_ucd};meta.main", description, factor=1 / MAS_PER_DEGREE, error_unit="mas",
        error_ucd=f"stat.error;{unit_ucd}", transform="position", nullable=False,
    )  # fmt: skip


def _snr(name: str, nullable: bool = True) -> Column:
    sources = (name, f"{name}_error")
    return _real(
        f"{name}_over_error", "", "arith.ratio", f"{name} divided by its standard error", nullable=nullable, derived_from=sources
    )


def _correlation(first: str, second: str, **more: Any) -> Column:
    return _real(f"{first}_{second}_corr", "", "stat.correlation", f"Correlation between {first} and {second}", **more)


def _band(band: str, of: str, ucd: str, nullable: bool) -> tuple[Column, ...]:
    """The photometry of one band: number of observations, flux, its error and their ratio, magnitude."""
    flux = f"phot_{band}_mean_flux"
    return (
        _count(f"phot_{band}_n_obs", f"Number of observations contributing to {band.upper()} photometry"),
        *_with_error(flux, _ELECTRONS_S, f"phot.flux;{ucd}", f"{of} mean flux", nullable=nullable),
        _snr(flux, nullable),
        _real(f"phot_{band}_mean_mag", "mag", f"phot.mag;{ucd}", f"{of} mean magnitude (Vega)", nullable=nullable, derived_from=(flux,)),
    )  # fmt: skip


def _colour(name: str, description: str, first: str, second: str) -> Column:
    sources = (f"phot_{first}_mean_flux", f"phot_{second}_mean_flux")
    return _real(name, "mag", "phot.color", description, derived_from=sources)


def _angle(name: str, ucd: str, description: str) -> Column:
    return _always(name, "deg", ucd, _F8, description, tolerance=1e-10, derived_from=("ra", "dec"))


def _percentiles(name: str, unit: str, of: str, lower: str, upper: str) -> tuple[Column, Column]:
    """The 16th and 84th percentiles of an estimate; lower, upper: their UCDs."""
    base = name.removesuffix("_val")
    return (
        _real(f"{base}_percentile_lower", unit, lower, f"{of}, 16th percentile"),
        _real(f"{base}_percentile_upper", unit, upper, f"{of}, 84th percentile"),
    )


def _estimate(name: str, unit: str, ucd: str, of: str, error_ucd: str | None = None, **more: Any) -> tuple[Column, ...]:
    """An astrophysical parameter and its percentiles; error_ucd: of both percentiles where it is one."""
    lower, upper = (error_ucd, error_ucd) if error_ucd else (f"{ucd};stat.min", f"{ucd};stat.max")
    return (_real(name, unit, ucd, of, **more), *_percentiles(name, unit, of, lower, upper))


# fmt: off
_TABLE: tuple[Column, ...] = (
    # Who it is
    _always("solution_id", "", "meta.version", _I8, "Solution identifier: one number for all of DR2", transform="identifier"),
    _always("designation", "", "meta.id;meta.main", _TEXT, "Unique name in all releases: 'Gaia DR2 ' and source_id", transform="identifier"),
    _always("source_id", "", "meta.id", _I8, "Unique source identifier (unique within a release)", transform="identifier"),
    _always("random_index", "", "meta.code", _I8, "Random index used to select subsets", transform="identifier"),
    # Astrometry
    _always("ref_epoch", "yr", "meta.ref;time.epoch", _F8, "Reference epoch, Julian years: 2015.5 throughout DR2"),
    *_position("ra", "pos.eq.ra", "Right ascension at epoch 2015.5 (ICRS)"),
    *_position("dec", "pos.eq.dec", "Declination at epoch 2015.5 (ICRS)"),
    *_with_error("parallax", "mas", "pos.parallax", "Absolute stellar parallax"),
    _snr("parallax"),
    *_with_error("pmra", "mas.yr**-1", "pos.pm;pos.eq.ra", "Proper motion in right ascension direction, times cos(dec)"),
    *_with_error("pmdec", "mas.yr**-1", "pos.pm;pos.eq.dec", "Proper motion in declination direction"),
    _correlation("ra", "dec", nullable=False),
    *(_correlation("ra", other) for other in ("parallax", "pmra", "pmdec")),
    *(_correlation("dec", other) for other in ("parallax", "pmra", "pmdec")),
    *(_correlation("parallax", other) for other in ("pmra", "pmdec")),
    _correlation("pmra", "pmdec"),
    _count("astrometric_n_obs_al", "Number of observations along scan"),
    _count("astrometric_n_obs_ac", "Number of observations across scan"),
    _count("astrometric_n_good_obs_al", "Number of good observations along scan"),
    _count("astrometric_n_bad_obs_al", "Number of bad observations along scan", derived_from=("astrometric_n_obs_al", "astrometric_n_good_obs_al")),
    _always("astrometric_gof_al", "", "stat.fit.goodness", _F4, "Goodness of fit of the model to the observations along scan",
            tolerance=2e-5, derived_from=("astrometric_chi2_al", "astrometric_n_good_obs_al")),
    _always("astrometric_chi2_al", "", "stat.fit.chi2", _F4, "Chi-square of the observations along scan"),
    _always("astrometric_excess_noise", "mas", "stat.value", _F8, "Excess noise of the source"),
    _always("astrometric_excess_noise_sig", "", "stat.value", _F8, "Significance of the excess noise"),
    _count("astrometric_params_solved", "Which parameters were solved for, as bits: 31 (five) or 3 (position only)"),
    _always("astrometric_primary_flag", "", "meta.code", _BOOL, "Whether a primary source of the astrometric solution", transform="label"),
    _always("astrometric_weight_al", "mas**-2", "stat.weight;stat.mean", _F4, "Mean astrometric weight of the source"),
    *_with_error("astrometric_pseudo_colour", "um**-1", "em.wavenumber", "Astrometrically determined pseudo-colour", error_ucd="em.wavenumber;stat.error"),
    _always("mean_varpi_factor_al", "", "stat.value", _F4, "Mean parallax factor along scan"),
    _count("astrometric_matched_observations", "Field-of-view transits used in the astrometric solution"),
    _count("visibility_periods_used", "Visibility periods used in the astrometric solution"),
    _always("astrometric_sigma5d_max", "mas", "pos.errorEllipse;stat.max", _F4, "Longest semi-major axis of the 5-d error ellipsoid"),
    _always("frame_rotator_object_type", "", "meta.code", _I4, "Type of a source used for the frame rotation; 0: none"),
    _count("matched_observations", "Field-of-view transits matched to this source"),
    _always("duplicated_source", "", "meta.code.status", _BOOL, "Whether the source was found with several identifiers", transform="label"),
    # Photometry
    *_band("g", "G-band", "stat.mean;em.opt", nullable=False),
    *_band("bp", "Integrated BP", "stat.mean", nullable=True),
    *_band("rp", "Integrated RP", "stat.mean", nullable=True),
    _real("phot_bp_rp_excess_factor", "", "arith.factor;phot.flux;em.opt", "BP and RP flux together over G flux",
          derived_from=("phot_bp_mean_flux", "phot_rp_mean_flux", "phot_g_mean_flux")),
    _always("phot_proc_mode", "", "meta.code", _I4, "Photometry processing mode: 0 gold, 1 silver, 2 bronze"),
    _colour("bp_rp", "BP - RP colour", "bp", "rp"),
    _colour("bp_g", "BP - G colour", "bp", "g"),
    _colour("g_rp", "G - RP colour", "g", "rp"),
    # Spectroscopy
    *_with_error("radial_velocity", "km.s**-1", "spect.dopplerVeloc.opt", "Spectroscopic barycentric radial velocity"),
    _count("rv_nb_transits", "Transits used to compute the radial velocity"),
    _real("rv_template_teff", "K", "stat.fit.param", "Effective temperature of the radial velocity's template"),
    _real("rv_template_logg", "log(cm.s**-2)", "stat.fit.param", "Surface gravity of the radial velocity's template"),
    _real("rv_template_fe_h", "'dex'", "stat.fit.param", "[Fe/H] of the radial velocity's template"),
    _always("phot_variable_flag", "", "meta.code;src.var", _TEXT, "VARIABLE, CONSTANT or NOT_AVAILABLE", transform="label"),
    # The position in other systems
    _angle("l", "pos.galactic.lon", "Galactic longitude at epoch 2015.5"),
    _angle("b", "pos.galactic.lat", "Galactic latitude at epoch 2015.5"),
    _angle("ecl_lon", "pos.ecliptic.lon", "Ecliptic longitude at epoch 2015.5"),
    _angle("ecl_lat", "pos.ecliptic.lat", "Ecliptic latitude at epoch 2015.5"),
    # Astrophysical parameters (Priam, FLAME)
    _real("priam_flags", "", "meta.code", "Flags of the Priam results", dtype=_I8),
    *_estimate("teff_val", "K", "phys.temperature.effective", "Stellar effective temperature (Priam)"),
    *_estimate("a_g_val", "mag", "phys.absorption;em.opt", "Line-of-sight extinction in the G band (Priam)"),
    *_estimate("e_bp_min_rp_val", "mag", "phot.color.excess", "Line-of-sight reddening E(BP - RP) (Priam)"),
    _real("flame_flags", "", "meta.code", "Flags of the FLAME results", dtype=_I8),
    *_estimate("radius_val", "solRad", "phys.size.radius", "Stellar radius (FLAME)", "phys.size.radius;stat.error", tolerance=4e-4, derived_from=_FLAME_SOURCES),
    *_estimate("lum_val", "solLum", "phys.luminosity", "Stellar luminosity (FLAME)", "phys.luminosity;stat.error", tolerance=7.2e-4, derived_from=_FLAME_SOURCES),
)
# fmt: on


COLUMNS: dict[str, Column] = {column.name: column for column in _TABLE}


SEED16 = (
    "ra", "dec", "parallax", "pmra", "pmdec", "radial_velocity",
    "phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp", "bp_g", "g_rp",
    "teff_val", "a_g_val", "radius_val", "lum_val",
)  # fmt: skip


_SEED_ERRORS = tuple(c for name in SEED16 if (c := COLUMNS[name].error_column))


SEED25 = SEED16 + _SEED_ERRORS


# What the archive of made-up stars has.
MOCK_COLUMNS = tuple(name for name in COLUMNS if name in {SOURCE_ID, "random_index", *SEED25})


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
