"""Gaia DR2: the column table, one row for each of the 94 columns of `gaiadr2.gaia_source` in the archive's own order, the
formulas of derived columns, and the presets of columns.

A column's name, unit, UCD, type, role, error column and derivation stand here and nowhere else. Units are VOUnit
strings and UCDs are spelled as the archive's own metadata spell them, also where today's lists of UCD words differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.release.column import FLOAT32_RESOLUTION, FLOAT64_RESOLUTION, MAS_PER_DEGREE, ONE_SIGMA, SOURCE_ID, Bound, Column
from gaiadask.release.formulas import (
    SUN_TEFF_K,
    absolute_magnitude,
    goodness_of_fit,
    luminosity_of,
    magnitude,
    radius,
    ratio,
)
from gaiadask.release.release import Formula, Release, Sources
from gaiadask.sky import ecliptic, galactic

_F4, _F8, _I4, _I8, _BOOL, _TEXT = pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.bool_(), pa.string()
_ELECTRONS_S = "'electron'.s**-1"
# What compression may change at bound_sigma = 1: an error by a tenth; what has no error in the archive by less than its accuracy
# (Andrae et al. 2018: 324 K, 0.46 mag of A_G, 0.23 mag of E(BP-RP), some 10 % in radius).
_TENTH = Bound("relative", 0.1)
_KELVIN, _EXTINCTION, _REDDENING, _RADIUS = (
    Bound("absolute", 50.0),
    Bound("absolute", 0.1),
    Bound("absolute", 0.05),
    Bound("relative", 0.05),
)
_FLAME_SOURCES = ("phot_g_mean_flux", "parallax", "teff_val")


def _always(name: str, unit: str, ucd: str, dtype: pa.DataType, description: str, **more: Any) -> Column:
    """A column in which every star of the archive has a value."""
    return _real(name, unit, ucd, description, dtype=dtype, nullable=False, **more)


def _real(name: str, unit: str, ucd: str, description: str, **more: Any) -> Column:
    """A number, float32 unless `dtype` says otherwise."""
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
    value = Column(name, unit, ucd, _F8, description, error_column=error_name, error_factor=factor, bound=ONE_SIGMA, **more)
    error = Column(
        error_name, error_unit or unit, error_ucd or f"stat.error;{ucd}", _F8, f"Standard error of {name}",
        nullable=value.nullable, bound=_TENTH,
    )  # fmt: skip
    return value, error


def _position(name: str, unit_ucd: str, description: str) -> tuple[Column, Column]:
    return _with_error(
        name, "deg", f"{unit_ucd};meta.main", description, factor=1 / MAS_PER_DEGREE, error_unit="mas",
        error_ucd=f"stat.error;{unit_ucd}", role="position", nullable=False,
    )  # fmt: skip


def _snr(name: str, nullable: bool = True) -> Column:
    sources = (name, f"{name}_error")
    return _real(
        f"{name}_over_error", "", "arith.ratio", f"{name} divided by its standard error", nullable=nullable, derived_from=sources
    )


def _correlation(first: str, second: str, **more: Any) -> Column:
    return _real(
        f"{first}_{second}_corr",
        "",
        "stat.correlation",
        f"Correlation between {first} and {second}",
        bound=Bound("absolute", 0.1),
        **more,
    )


def _band(band: str, of: str, ucd: str, nullable: bool) -> tuple[Column, ...]:
    """The photometry of one band: number of observations, flux, its error and their ratio, magnitude."""
    flux = f"phot_{band}_mean_flux"
    return (
        _count(f"phot_{band}_n_obs", f"Number of observations contributing to {band.upper()} photometry"),
        *_with_error(flux, _ELECTRONS_S, f"phot.flux;{ucd}", f"{of} mean flux", nullable=nullable, sign_matters=True),
        _snr(flux, nullable),
        _real(f"phot_{band}_mean_mag", "mag", f"phot.mag;{ucd}", f"{of} mean magnitude (Vega)", nullable=nullable, derived_from=(flux,)),
    )  # fmt: skip


def _colour(name: str, description: str, first: str, second: str) -> Column:
    sources = (f"phot_{first}_mean_flux", f"phot_{second}_mean_flux")
    return _real(name, "mag", "phot.color", description, derived_from=sources)


def _angle(name: str, ucd: str, description: str) -> Column:
    return _always(name, "deg", ucd, _F8, description, tolerance=1e-10, derived_from=("ra", "dec"))


def _percentiles(name: str, unit: str, of: str, lower: str, upper: str, bound: Bound) -> tuple[Column, Column]:
    """The 16th and 84th percentiles of an estimate; lower, upper: their UCDs."""
    base = name.removesuffix("_val")
    return (
        _real(f"{base}_percentile_lower", unit, lower, f"{of}, 16th percentile", bound=bound),
        _real(f"{base}_percentile_upper", unit, upper, f"{of}, 84th percentile", bound=bound),
    )


def _estimate(
    name: str, unit: str, ucd: str, of: str, spread: Bound, error_ucd: str | None = None, **more: Any
) -> tuple[Column, ...]:  # fmt: skip
    """An astrophysical parameter and its percentiles; spread: how far compressed ones may be off, the value too unless it has a
    `bound` of its own; error_ucd: of both percentiles where it is one."""
    lower, upper = (error_ucd, error_ucd) if error_ucd else (f"{ucd};stat.min", f"{ucd};stat.max")
    return (_real(name, unit, ucd, of, **{"bound": spread, **more}), *_percentiles(name, unit, of, lower, upper, spread))


# fmt: off
_TABLE: tuple[Column, ...] = (
    # Who it is
    _always("solution_id", "", "meta.version", _I8, "Solution identifier: one number for all of DR2", role="identifier"),
    _always("designation", "", "meta.id;meta.main", _TEXT, "Unique name in all releases: 'Gaia DR2 ' and source_id", role="identifier"),
    _always("source_id", "", "meta.id", _I8, "Unique source identifier (unique within a release)", role="identifier"),
    _always("random_index", "", "meta.code", _I8, "Random index used to select subsets", role="identifier"),
    # Astrometry
    _always("ref_epoch", "yr", "meta.ref;time.epoch", _F8, "Reference epoch, Julian years: 2015.5 throughout DR2"),
    *_position("ra", "pos.eq.ra", "Right ascension at epoch 2015.5 (ICRS)"),
    *_position("dec", "pos.eq.dec", "Declination at epoch 2015.5 (ICRS)"),
    *_with_error("parallax", "mas", "pos.parallax", "Absolute stellar parallax", sign_matters=True),
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
    _always("astrometric_chi2_al", "", "stat.fit.chi2", _F4, "Chi-square of the observations along scan", bound=_TENTH),
    _always("astrometric_excess_noise", "mas", "stat.value", _F8, "Excess noise of the source", bound=_TENTH),
    _always("astrometric_excess_noise_sig", "", "stat.value", _F8, "Significance of the excess noise", bound=_TENTH),
    _count("astrometric_params_solved", "Which parameters were solved for, as bits: 31 (five) or 3 (position only)"),
    _always("astrometric_primary_flag", "", "meta.code", _BOOL, "Whether a primary source of the astrometric solution", role="label"),
    _always("astrometric_weight_al", "mas**-2", "stat.weight;stat.mean", _F4, "Mean astrometric weight of the source", bound=_TENTH),
    *_with_error("astrometric_pseudo_colour", "um**-1", "em.wavenumber", "Astrometrically determined pseudo-colour", error_ucd="em.wavenumber;stat.error"),
    _always("mean_varpi_factor_al", "", "stat.value", _F4, "Mean parallax factor along scan", bound=Bound("absolute", 0.05)),
    _count("astrometric_matched_observations", "Field-of-view transits used in the astrometric solution"),
    _count("visibility_periods_used", "Visibility periods used in the astrometric solution"),
    _always("astrometric_sigma5d_max", "mas", "pos.errorEllipse;stat.max", _F4, "Longest semi-major axis of the 5-d error ellipsoid", bound=_TENTH),
    _always("frame_rotator_object_type", "", "meta.code", _I4, "Type of a source used for the frame rotation; 0: none"),
    _count("matched_observations", "Field-of-view transits matched to this source"),
    _always("duplicated_source", "", "meta.code.status", _BOOL, "Whether the source was found with several identifiers", role="label"),
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
    _always("phot_variable_flag", "", "meta.code;src.var", _TEXT, "VARIABLE, CONSTANT or NOT_AVAILABLE", role="label"),
    # The position in other systems
    _angle("l", "pos.galactic.lon", "Galactic longitude at epoch 2015.5"),
    _angle("b", "pos.galactic.lat", "Galactic latitude at epoch 2015.5"),
    _angle("ecl_lon", "pos.ecliptic.lon", "Ecliptic longitude at epoch 2015.5"),
    _angle("ecl_lat", "pos.ecliptic.lat", "Ecliptic latitude at epoch 2015.5"),
    # Astrophysical parameters (Priam, FLAME)
    _real("priam_flags", "", "meta.code", "Flags of the Priam results", dtype=_I8),
    *_estimate("teff_val", "K", "phys.temperature.effective", "Stellar effective temperature (Priam)", _KELVIN),
    *_estimate("a_g_val", "mag", "phys.absorption;em.opt", "Line-of-sight extinction in the G band (Priam)", _EXTINCTION),
    *_estimate("e_bp_min_rp_val", "mag", "phot.color.excess", "Line-of-sight reddening E(BP - RP) (Priam)", _REDDENING),
    _real("flame_flags", "", "meta.code", "Flags of the FLAME results", dtype=_I8),
    *_estimate("radius_val", "solRad", "phys.size.radius", "Stellar radius (FLAME)", _RADIUS, "phys.size.radius;stat.error", tolerance=4e-4, derived_from=_FLAME_SOURCES),
    *_estimate("lum_val", "solLum", "phys.luminosity", "Stellar luminosity (FLAME)", _TENTH, "phys.luminosity;stat.error", tolerance=7.2e-4, bound=None, derived_from=_FLAME_SOURCES),
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
# Columns of mock stars.
MOCK_COLUMNS = tuple(name for name in COLUMNS if name in {SOURCE_ID, "random_index", *SEED25})

# Zero points of the Vega system, with the digits the release was made with (Evans et al. 2018, A&A 616, A4, give four).
G_ZERO_POINT = 25.6883657251
BP_ZERO_POINT = 25.3513881707
RP_ZERO_POINT = 24.7619199882

# BC_G as polynomials in (Teff - 5772 K), Andrae et al. 2018, A&A 616, A8, table 4: from 4000 K on, and below.
_BC_HOT = (6.000e-02, 6.731e-05, -6.647e-08, 2.859e-11, -7.197e-15)
_BC_COOL = (1.749e00, 1.977e-03, 3.737e-07, -8.966e-11, -4.183e-14)
_BC_BREAK_K = 4000.0


# Formulas ------------------------------------------------------------------------------------------------------------
def g_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """G magnitude of a mean flux in electrons/s, rounded to float32 as the archive does; NaN where flux is not above 0."""
    return magnitude(flux, G_ZERO_POINT)


def bp_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """BP magnitude of a mean flux in electrons/s, rounded to float32; NaN where flux is not above 0."""
    return magnitude(flux, BP_ZERO_POINT)


def rp_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """RP magnitude of a mean flux in electrons/s, rounded to float32; NaN where flux is not above 0."""
    return magnitude(flux, RP_ZERO_POINT)


def bolometric_correction(teff: ArrayLike) -> NDArray[np.float64]:
    """BC_G of effective temperatures in K (Andrae et al. 2018): M_bol = M_G + BC_G."""
    t = np.asarray(teff, np.float64)
    offset, is_cool = np.asarray(t - SUN_TEFF_K), t < _BC_BREAK_K
    correction = _polynomial(offset, _BC_HOT)
    correction[is_cool] = _polynomial(offset[is_cool], _BC_COOL)
    return correction


def _polynomial(x: NDArray[np.float64], coefficients: Sequence[float]) -> NDArray[np.float64]:
    """The sum of coefficients[i] x**i, by Horner's rule in one array."""
    value = np.full(x.shape, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += coefficient
    return value


def luminosity(g_mag: ArrayLike, parallax_mas: ArrayLike, teff: ArrayLike) -> NDArray[np.float64]:
    """Luminosity in solar units as FLAME computes it, with A_G = 0; not rounded."""
    return luminosity_of(absolute_magnitude(g_mag, parallax_mas) + bolometric_correction(teff))


def _over_error(name: str) -> Formula:
    return lambda v: ratio(v[name], v[f"{name}_error"])


def _excess_factor(v: Sources) -> NDArray[np.float64]:
    both = np.asarray(v["phot_bp_mean_flux"], np.float64) + np.asarray(v["phot_rp_mean_flux"], np.float64)
    return ratio(both, v["phot_g_mean_flux"])


def _bad_observations(v: Sources) -> NDArray[np.float64]:
    return np.asarray(v["astrometric_n_obs_al"], np.float64) - np.asarray(v["astrometric_n_good_obs_al"], np.float64)


# What several columns follow from.
def _g(v: Sources) -> NDArray[np.float32]:
    return g_magnitude(v["phot_g_mean_flux"])


def _bp(v: Sources) -> NDArray[np.float32]:
    return bp_magnitude(v["phot_bp_mean_flux"])


def _rp(v: Sources) -> NDArray[np.float32]:
    return rp_magnitude(v["phot_rp_mean_flux"])


def _luminosity(v: Sources) -> NDArray[np.float64]:
    return luminosity(v.once(_g), v["parallax"], v["teff_val"])


def _galactic(v: Sources) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return galactic(v["ra"], v["dec"])


def _ecliptic(v: Sources) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return ecliptic(v["ra"], v["dec"])


_FLUXES = ("phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux")

FORMULAS: dict[str, Formula] = {
    "phot_g_mean_mag": _g,
    "phot_bp_mean_mag": _bp,
    "phot_rp_mean_mag": _rp,
    # Subtracted in float32, as the archive does.
    "bp_rp": lambda v: v.once(_bp) - v.once(_rp),
    "bp_g": lambda v: v.once(_bp) - v.once(_g),
    "g_rp": lambda v: v.once(_g) - v.once(_rp),
    **{f"{name}_over_error": _over_error(name) for name in ("parallax", *_FLUXES)},
    "phot_bp_rp_excess_factor": _excess_factor,
    "l": lambda v: v.once(_galactic)[0],
    "b": lambda v: v.once(_galactic)[1],
    "ecl_lon": lambda v: v.once(_ecliptic)[0],
    "ecl_lat": lambda v: v.once(_ecliptic)[1],
    "astrometric_n_bad_obs_al": _bad_observations,
    "astrometric_gof_al": lambda v: goodness_of_fit(v["astrometric_chi2_al"], v["astrometric_n_good_obs_al"]),
    "lum_val": _luminosity,
    "radius_val": lambda v: radius(v.once(_luminosity), v["teff_val"]),
}
DR2 = Release(
    name="dr2",
    title="Gaia DR2",
    table="gaiadr2.gaia_source",
    columns=COLUMNS,
    formulas=FORMULAS,
    presets={"seed16": SEED16, "seed25": SEED25, "all": tuple(COLUMNS)},
    mock_columns=MOCK_COLUMNS,
)
