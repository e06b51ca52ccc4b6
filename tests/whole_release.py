"""Mock stars in all columns of gaia_source: what mock stars do not have, made from what they have.

Not measured against the archive, as mock stars themselves are: the columns are of the right kinds (counts that depend on each other, a 0 for many,
templates, flags, percentiles about their estimate, null where the archive's are) and hang together about as the archive's do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gaiadask.archive.base import open_archive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2, MOCK_COLUMNS
from gaiadask.sky import mean_ecliptic

Floats = NDArray[np.float64]
_TEMPLATE_TEFF = np.array([3500, 3750, 4000, 4250, 4500, 4750, 5000, 5250, 5500, 5750, 6000, 6250, 6500, 6750, 7000])
_PAIRS = (
    "ra_parallax",
    "ra_pmra",
    "ra_pmdec",
    "dec_parallax",
    "dec_pmra",
    "dec_pmdec",
    "parallax_pmra",
    "parallax_pmdec",
    "pmra_pmdec",
)


def write_whole_release(folder: Path, stars: int) -> None:
    """Mock stars in every column, a parquet file of 250,000 each, unless the folder is there."""
    if folder.exists():
        return
    archive = open_archive(
        ArchiveConfig(kind="mock", mock_stars=stars, chunk_rows=250_000), SelectionConfig(columns=MOCK_COLUMNS, not_null=())
    )
    folder.mkdir(parents=True)
    for number, chunk in enumerate(archive.plan().chunks):
        table = whole_release(pa.concat_tables(archive.fetch(chunk, lambda facts: None)), number)
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=65_536)


def whole_release(stars: pa.Table, seed: int) -> pa.Table:
    """Mock stars in every column, from a table of `MOCK_COLUMNS`."""
    random, n = np.random.default_rng(seed), len(stars)
    made: dict[str, NDArray] = {
        name: stars[name].to_numpy() for name in stars.column_names if COLUMNS[name].role in ("position", "quantity")
    }
    g_mag = DR2.g_magnitude(made["phot_g_mean_flux"]).astype(float)
    lam, beta = mean_ecliptic(made["ra"], made["dec"])
    made |= _scans(g_mag, beta, np.isnan(made["parallax"]), random)
    made |= _fit(made, g_mag, random)
    made |= _correlations(lam, beta, np.isnan(made["parallax"]), random)
    made |= _photometry(made, random)
    made |= _spectra(made, random)
    made |= _parameters(made, random)
    made |= DR2.derive(made, DR2.derivable((*made, *(name for name, column in COLUMNS.items() if column.derived_from))))
    made |= {
        "ref_epoch": np.full(n, 2015.5),
        "frame_rotator_object_type": np.zeros(n),
        "solution_id": np.full(n, 1635721458409799680),
    }
    texts = {
        "designation": pa.array([f"Gaia DR2 {number}" for number in stars[SOURCE_ID].to_pylist()]),
        "phot_variable_flag": pa.array(np.where(random.random(n) < 0.005, "VARIABLE", "NOT_AVAILABLE")),
    }
    columns = {}
    for name, column in COLUMNS.items():
        if name in stars.column_names or name in texts:
            columns[name] = stars[name] if name in stars.column_names else texts[name]
            continue
        null = np.isnan(made[name])
        columns[name] = pa.array(np.where(null, 0, made[name]).astype(column.dtype.to_pandas_dtype()), column.dtype, mask=null)
    return pa.table(columns, schema=pa.schema([column.field for column in COLUMNS.values()]))


def _scans(g_mag: Floats, beta: Floats, two_parameters: NDArray[np.bool_], random: np.random.Generator) -> dict[str, NDArray]:
    """How often a star was seen: most 45 degrees from the ecliptic; each transit is nine observations along the scan."""
    often = 15 + 14 * np.exp(-(((np.abs(np.degrees(beta)) - 46) / 12) ** 2))
    matched = 4 + random.poisson(often)
    used = matched - random.binomial(matched, 0.03)
    along = 9 * used - random.binomial(used, 0.4)
    return {
        "matched_observations": matched,
        "astrometric_matched_observations": used,
        "astrometric_n_obs_al": along,
        "astrometric_n_obs_ac": np.where(g_mag < 13, along, 0),
        "astrometric_n_good_obs_al": along - random.binomial(along, np.where(random.random(len(along)) < 0.1, 0.06, 0.008)),
        "visibility_periods_used": np.clip(np.rint(0.42 * used + random.normal(0, 0.8, len(used))), 3, 22),
        "astrometric_params_solved": np.where(two_parameters, 3, 31),
        "phot_g_n_obs": 9 * matched - random.binomial(9 * matched, 0.03),
        "phot_bp_n_obs": matched - random.binomial(matched, 0.08),
        "phot_rp_n_obs": matched - random.binomial(matched, 0.07),
    }


def _fit(made: dict[str, NDArray], g_mag: Floats, random: np.random.Generator) -> dict[str, NDArray]:
    """How well the solution fits: chi-square, and the excess noise that would make it right, 0 for those that fit."""
    good, n = made["astrometric_n_good_obs_al"].astype(float), len(g_mag)
    badly = np.exp(random.normal(0, 0.25, n) + np.where(random.random(n) < 0.15, random.exponential(1.2, n), 0))
    ratio = badly * (0.9 + 0.35 * np.clip(13 - g_mag, 0, 4)) + random.normal(0, np.sqrt(2 / good))
    ratio = np.clip(ratio, 0.2, None)
    noise = 0.07 * 10 ** (0.2 * np.clip(g_mag - 13, 0, None))
    excess = np.where(ratio > 1.1, noise * np.sqrt(np.clip(ratio - 1.1, 0, None)), 0.0)
    errors = np.stack([made["ra_error"], made["dec_error"], np.nan_to_num(made["parallax_error"])])
    colour_error = 0.02 * 10 ** (0.17 * np.clip(g_mag - 13, -1, None)) * np.exp(random.normal(0, 0.3, n))
    colour = np.nan_to_num(made["bp_rp"].astype(float), nan=1.2)
    return {
        "astrometric_chi2_al": ratio * good,
        "astrometric_excess_noise": excess,
        "astrometric_excess_noise_sig": np.where(excess > 0, good * (ratio - 1.1) * np.exp(random.normal(0, 0.2, n)) / 4, 0.0),
        "astrometric_primary_flag": (excess == 0) & (random.random(n) < 0.85),
        "astrometric_weight_al": 1 / (noise**2 + excess**2 + 0.003) * np.exp(random.normal(0, 0.1, n)),
        "astrometric_sigma5d_max": errors.max(axis=0) * np.exp(np.abs(random.normal(0, 0.15, n))),
        "astrometric_pseudo_colour": np.where(np.isnan(made["parallax"]), np.nan, 1.95 - 0.32 * colour + 0.02 * colour**2 + colour_error * random.normal(0, 1, n)),
        "astrometric_pseudo_colour_error": np.where(np.isnan(made["parallax"]), np.nan, colour_error),
        "duplicated_source": random.random(n) < 0.08,
    }  # fmt: skip


def _correlations(lam: Floats, beta: Floats, two_parameters: NDArray[np.bool_], random: np.random.Generator) -> dict[str, NDArray]:
    """Of the solution's errors, by where the star was scanned from."""
    found: dict[str, NDArray] = {}
    for number, pair in enumerate(("ra_dec", *_PAIRS)):
        wave = 0.3 * np.sin((number % 4 + 1) * lam + number) * np.cos((number % 3) * beta) + random.normal(0, 0.12, len(lam))
        found[f"{pair}_corr"] = np.where(two_parameters & (number > 0), np.nan, np.tanh(wave))
    found["mean_varpi_factor_al"] = 0.18 * np.sin(2 * lam) * np.cos(beta) + random.normal(0, 0.04, len(lam))
    return found


def _photometry(made: dict[str, NDArray], random: np.random.Generator) -> dict[str, NDArray]:
    n, no_colour = len(made["ra"]), np.isnan(made["phot_bp_mean_flux"])
    return {"phot_proc_mode": np.where(no_colour, random.choice([1, 2], n, p=(0.8, 0.2)), np.where(random.random(n) < 0.04, 1, 0))}


def _spectra(made: dict[str, NDArray], random: np.random.Generator) -> dict[str, NDArray]:
    """Transits, and the template nearest to the star."""
    none, n = np.isnan(made["radial_velocity"]), len(made["ra"])
    teff = np.nan_to_num(made["teff_val"].astype(float), nan=5000) * np.exp(random.normal(0, 0.03, n))
    giant = np.nan_to_num(made["radius_val"].astype(float), nan=1.0) > 3.5
    template = _TEMPLATE_TEFF[np.abs(teff[:, None] - _TEMPLATE_TEFF).argmin(axis=1)]
    gravity = np.where(giant, random.choice([2.0, 2.5, 3.0], n, p=(0.2, 0.35, 0.45)), random.choice([4.0, 4.5], n, p=(0.2, 0.8)))
    metals = random.choice([0.0, 0.25, -0.25, -0.5, -1.0, -1.5], n, p=(0.75, 0.05, 0.08, 0.06, 0.03, 0.03))
    transits = 2 + random.binomial(made["matched_observations"] // 2, 0.6)
    return {
        "rv_nb_transits": np.where(none, 0, transits),
        **{
            name: np.where(none, np.nan, values)
            for name, values in (("rv_template_teff", template), ("rv_template_logg", gravity), ("rv_template_fe_h", metals))
        },
    }


def _parameters(made: dict[str, NDArray], random: np.random.Generator) -> dict[str, NDArray]:
    """Flags and percentiles of Priam's and FLAME's estimates, and the reddening."""
    n = len(made["ra"])
    found: dict[str, NDArray] = {}

    def about(name: str, values: Floats, width: float, digits: int) -> None:
        for side, sign in (("lower", -1), ("upper", 1)):
            off = np.exp(sign * width * np.exp(random.normal(0, 0.4, n)))
            found[f"{name}_percentile_{side}"] = np.round(values * off, digits)

    extinction = made["a_g_val"].astype(float)
    reddening = np.round(extinction * (0.5 + 0.02 * random.normal(0, 1, n)), 4)
    about("teff", made["teff_val"].astype(float), 0.025, 2)
    about("a_g", extinction, 0.4, 4)
    about("e_bp_min_rp", reddening, 0.4, 4)
    about("radius", made["radius_val"].astype(float), 0.05, 6)
    about("lum", made["lum_val"].astype(float), 0.03, 6)
    flags = random.choice([100001, 100002, 101001, 110001, 120001], n, p=(0.8, 0.15, 0.03, 0.01, 0.01))
    found["e_bp_min_rp_val"] = reddening
    found["priam_flags"] = np.where(np.isnan(made["teff_val"]), np.nan, flags)
    found["flame_flags"] = np.where(np.isnan(made["radius_val"]), np.nan, np.where(random.random(n) < 0.003, 0, 200111))
    return found
