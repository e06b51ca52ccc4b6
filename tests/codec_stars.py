"""Stars for the tests of the codec: mock ones, tables of the release's whole schema, stars as no catalogue has them; and what comes
back of them, compared without the codec's own judgement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from small_run import fetched, small_config

from gaiadask.codec import fit
from gaiadask.codec.bounds import allowed, tolerances
from gaiadask.codec.card import CodecCard
from gaiadask.codec.chunk import CodedChunk, decode_chunk, encode_chunk
from gaiadask.codec.columns import Originals, native
from gaiadask.elementary import cos_degrees
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2
from gaiadask.sky import SOURCE_ID_SHIFT, healpix
from gaiadask.store.paths import Tile

WHOLE_SKY = Tile(0, 0)
"""Of chunks that have no `_healpix_29`: nothing is asked of it then."""
_NAN_WITH_PAYLOAD = np.array([0x7FF8_0000_0000_BEEF, 0xFFF0_0000_0000_0001], np.uint64).view(np.float64)
_WILD_FLOATS = np.array([
    0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1e-300, 1e300, -1e300, 1.7976931348623157e308, math.inf, -math.inf, math.nan,
    *_NAN_WITH_PAYLOAD, 1.0, -1.0, 1e-9, 1e18, 2.0**53 + 2, 90.0, -90.0, 360.0, 3e38, 1e-45,
])  # fmt: skip
WILD_INTEGERS = (0, 1, -1, 7, 31, 2**31 - 1, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63), 12 * 4**12 << SOURCE_ID_SHIFT)
WILD_TEXTS = ("", "VARIABLE", "NOT_AVAILABLE", "Gaia DR2 5", "é\n\x00'\"", "x" * 300)
WILD_POSITIONS: Mapping[str, Sequence[float]] = {
    RA: (0.0, -0.0, 5e-324, 1e-13, 360.0, math.nextafter(360.0, 0), 180.0),
    DEC: (90.0, -90.0, math.nextafter(90.0, 0), 89.9999999, -89.99999999999, 0.0, -0.0, 5e-324),
}


class Codec(NamedTuple):
    """A fitted codec and the stars that it was fitted to."""

    card: CodecCard
    stars: pa.Table
    own: Mapping[str, float]


@cache
def mock_stars(count: int = 3000) -> pa.Table:
    """Mock stars with their nulls, the seed's 25 columns, by source_id."""
    config = small_config(Path("nowhere"), archive={"mock_stars": count}, selection={"columns": "seed25"})
    return fetched(config)


@cache
def fitted(bound_sigma: float, *own: tuple[str, float], kind: str = "mock") -> Codec:
    """A codec of this bound, and bounds of single columns, for mock, all ("all94") or foreign ids' ("tile") stars."""
    stars = whole_release_stars(1500) if kind == "all94" else mock_stars()
    if kind == "tile":
        stars = stars.set_column(0, SOURCE_ID, pa.array(np.random.default_rng(4).permutation(stars.num_rows) * 7))
    return fitted_to(stars, bound_sigma, dict(own))


def fitted_to(stars: pa.Table, bound_sigma: float, own: Mapping[str, float] | None = None) -> Codec:
    """A codec that is fitted to these stars, its card as a file has it."""
    bounds = tolerances(DR2, stars.column_names, bound_sigma, own or {})
    # So many stars that they pay for every table, but not for the time that more parents take.
    with patch.object(fit, "MOST_PARENTS", 3):
        card = fit.fit_codec(stars, bounds, bound_sigma, DR2, 10**8)
    return Codec(CodecCard.model_validate_json(card.model_dump_json()), stars, own or {})


def whole_release_stars(count: int, seed: int = 0) -> pa.Table:
    """Stars with all 94 columns: mock ones, and what they do not have made up, in the archive's groups of nulls."""
    random = np.random.default_rng(seed)
    stars = mock_stars().take(pa.array(random.integers(0, mock_stars().num_rows, count)))
    known = {name: stars[name] for name in stars.column_names}
    null = {name: np.asarray(column.is_null()) for name, column in known.items()}
    groups = {"radial": "radial_velocity", "rv_": "radial_velocity", "teff": "teff_val", "a_g": "a_g_val", "e_bp": "a_g_val",
              "radius": "radius_val", "lum": "lum_val", "phot_bp": "phot_bp_mean_flux", "phot_rp": "phot_rp_mean_flux",
              "flame": "radius_val", "priam": "teff_val"}  # fmt: skip
    columns = {}
    for name, column in COLUMNS.items():
        leader = next(
            (leader for start, leader in groups.items() if name.startswith(start)), "parallax" if "parallax" in name else ""
        )
        mask = null[leader] if leader and column.nullable else np.zeros(count, bool)
        columns[name] = known[name] if name in known else pa.array(_made_up(name, known, count, random), column.dtype, mask=mask)
    table = pa.table(columns)
    values = {name: native(table[name]).as_floats for name, column in COLUMNS.items() if column.role in ("position", "quantity")}
    for name in DR2.derivable(COLUMNS):
        made = DR2.derive(values, [name])[name].astype(np.float64)
        # A third of a thousand do not obey the formula.
        made = np.where(random.random(count) < 3e-4, made * 1.7, made)
        numbers = np.nan_to_num(made, posinf=0, neginf=0).astype(COLUMNS[name].dtype.to_pandas_dtype())
        table = table.set_column(table.column_names.index(name), name, pa.array(numbers, mask=~np.isfinite(made)))
    return table


def _made_up(name: str, known: Mapping[str, pa.ChunkedArray], count: int, random: np.random.Generator) -> Any:
    column = COLUMNS[name]
    if name == "designation":
        return np.array([f"Gaia DR2 {i}" for i in known[SOURCE_ID].to_pylist()], object)
    if name == "phot_variable_flag":
        return random.choice(np.array(["NOT_AVAILABLE", "CONSTANT", "VARIABLE"], object), count, p=(0.9, 0.05, 0.05))
    if name in ("solution_id", "ref_epoch"):
        return np.full(count, 1635721458409799680 if column.role == "identifier" else 2015.5)
    if column.dtype == pa.bool_():
        return random.random(count) < 0.1
    if pa.types.is_integer(column.dtype):
        return random.integers(0, 2**40, count) if column.role == "identifier" else random.poisson(20, count)
    return np.exp(random.normal(0, 1, count)) * (random.choice((-1, 1), count) if "corr" in name else 1)


# Stars as no catalogue has them --------------------------------------------------------------------------------------
def wild_values(name: str, count: int, random: np.random.Generator) -> Any:
    """Values of a column's type that break things, and any bits."""
    dtype = COLUMNS[name].dtype
    if pa.types.is_string(dtype):
        return np.array(WILD_TEXTS, object)[random.integers(0, len(WILD_TEXTS), count)]
    if pa.types.is_boolean(dtype):
        return random.random(count) < 0.5
    numpy_type = np.dtype(dtype.to_pandas_dtype())
    if name in WILD_POSITIONS:
        return random.choice(np.array(WILD_POSITIONS[name]), count)
    if numpy_type.kind == "i":
        within = [i for i in WILD_INTEGERS if np.iinfo(numpy_type).min <= i <= np.iinfo(numpy_type).max]
        return np.array(within, numpy_type)[random.integers(0, len(within), count)]
    with np.errstate(over="ignore", invalid="ignore"):
        special = random.choice(_WILD_FLOATS, count).astype(numpy_type)
    bits = random.integers(0, 256, (count, numpy_type.itemsize), np.uint8).view(numpy_type)[:, 0]
    return np.where(random.random(count) < 0.7, special, bits)


def made_wild(stars: pa.Table, share: float, null_share: float, random: np.random.Generator) -> pa.Table:
    """Stars with a share of their values replaced by wild ones, and another made null; ids stay where ra and dec are."""
    for place, name in enumerate(stars.column_names):
        if name == HEALPIX_29:
            continue
        column, rows = stars[name].combine_chunks(), stars.num_rows
        wild = pa.array(wild_values(name, rows, random), column.type)
        hit = random.random(rows) < share * random.choice((0, 1, 1, 5))
        null = np.asarray(column.is_null()) & ~hit
        if name not in (SOURCE_ID, RA, DEC):
            null |= random.random(rows) < null_share * random.choice((0, 0, 1, 20))
        both = pa.concat_arrays([column, wild])
        taken = pa.array(np.where(hit, rows, 0) + np.arange(rows), mask=null)
        stars = stars.set_column(place, name, both.take(taken))
    return stars


def rows_of_tile(stars: pa.Table, tile: Tile) -> pa.Table:
    """A partition's rows, of these stars: sorted, `_healpix_29` first."""
    index = healpix(stars[RA], stars[DEC])
    first, stop = tile.healpix_29
    rows = stars.add_column(0, HEALPIX_29, pa.array(index)).filter(pa.array((index >= first) & (index < stop)))
    return rows.sort_by(HEALPIX_29)


# What comes back ------------------------------------------------------------------------------------------------------
def bytes_of(chunk: CodedChunk) -> dict[str, list[bytes]]:
    """What is stored of a chunk."""
    return {name: coded.blobs for name, coded in chunk.columns.items()}


def round_trip(codec: Codec, stars: pa.Table, tile: Tile = WHOLE_SKY, names: Sequence[str] | None = None) -> pa.Table:
    """Stars as they come back."""
    chunk = encode_chunk(stars, codec.card, tile, DR2)
    return decode_chunk(chunk.rows, bytes_of(chunk), codec.card, tile, DR2, stars.column_names if names is None else names)


def differ(first: pa.ChunkedArray, second: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which values differ in a bit: NaNs have payloads, 0 a sign. Nulls must have been compared."""
    if pa.types.is_floating(first.type):
        bits = np.dtype(f"u{first.type.bit_width // 8}")
        one, other = (native(column).values.view(bits) for column in (first, second))
        return np.asarray((one != other) & ~native(first).null if native(first).null is not None else one != other)
    pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
    return np.array([one != other for one, other in pairs], bool)


def deviation(name: str, values: Mapping[str, NDArray], rebuilt: NDArray) -> NDArray:
    """How far rebuilt values of a column are off, shape (stars,), in the column's unit, of ra along the sphere and the short way
    round; 0 where both are NaN or the same infinity, infinite where one alone is."""
    value = values[name]
    with np.errstate(invalid="ignore"):
        off = np.abs(rebuilt - value)
    if name == RA:
        off = np.minimum(off, 360.0 - off) * cos_degrees(values[DEC])
    same = (rebuilt == value) | (np.isnan(rebuilt) & np.isnan(value))
    return np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))


@np.errstate(all="ignore")
def assert_within(stars: pa.Table, rebuilt: pa.Table, codec: Codec) -> None:
    """Every value within its bound, the same bits where the bound is 0 or there is none; the same nulls."""
    assert rebuilt.schema.names == stars.schema.names and rebuilt.num_rows == stars.num_rows
    kappa = codec.card.bound_sigma
    bounds = tolerances(DR2, [name for name in stars.column_names if name != HEALPIX_29], kappa, codec.own)
    values, back = (Originals({name: native(t[name]) for name in bounds}) for t in (stars, rebuilt))
    for name in bounds:
        assert rebuilt[name].type == stars[name].type
        assert rebuilt[name].is_null().equals(stars[name].is_null()), f"nulls of {name}"
        if bounds[name].kind == "exact":
            _report(name, differ(stars[name], rebuilt[name]), stars, rebuilt)
            continue
        most = allowed(name, values, bounds, DR2)
        off, exact = deviation(name, values, back[name]), most == 0
        _report(name, ~(off <= most), stars, rebuilt)
        _report(name, exact & differ(stars[name], rebuilt[name]), stars, rebuilt)
        column = COLUMNS[name]
        if column.sign_matters:
            _report(name, (values[name] > 0) & ~(back[name] > 0), stars, rebuilt)
        if name.endswith("_mean_flux"):
            far_below = (values[name] > 0) & (most >= values[name]) & (back[name] * (1 + most / values[name]) < values[name])
            _report(name, far_below, stars, rebuilt)
        # Once more without the codec's own bounds.
        if column.error_column in bounds and name not in codec.own and name != RA:
            with np.errstate(invalid="ignore", over="ignore"):
                off = np.abs(back[name] - values[name])
                most = kappa * column.error_factor * values[column.error_column]
            finite = np.isfinite(values[name]) & np.isfinite(most) & (most > 0)
            _report(name, finite & ~(off <= most), stars, rebuilt)
            _report(name, ~finite & differ(stars[name], rebuilt[name]), stars, rebuilt)


def _report(name: str, wrong: NDArray[np.bool_], stars: pa.Table, rebuilt: pa.Table) -> None:
    rows = np.flatnonzero(wrong)
    assert not len(rows), (
        f"{name}, row {rows[0]}: {stars[name][rows[0]]!r} came back as {rebuilt[name][rows[0]]!r}; {len(rows)} such"
    )
