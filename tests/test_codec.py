"""Chunks of stars as bytes and back: every value within its bound, whatever the stars; the same result everywhere; damage is named."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import decoded_bits
import numpy as np
import pyarrow as pa
import pytest
from codec_stars import (
    WHOLE_SKY,
    WILD_INTEGERS,
    Codec,
    assert_within,
    bytes_of,
    deviation,
    differ,
    fitted,
    fitted_to,
    made_wild,
    mock_stars,
    round_trip,
    rows_of_tile,
    whole_release_stars,
)
from decoded_bits import digests_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from numpy.typing import NDArray

from gaiadask.codec import piles
from gaiadask.codec.bounds import allowed, tolerances
from gaiadask.codec.chunk import decode_chunk, encode_chunk, needed
from gaiadask.codec.columns import HEAD, Originals, native
from gaiadask.codec.dependencies import MASK
from gaiadask.elementary import log10
from gaiadask.errors import ConfigurationError, DamagedFileError, DataError
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2, SEED25, g_magnitude
from gaiadask.sky import AU_PER_YEAR_KM_S, healpix
from gaiadask.store.paths import Tile

OWN = (
    ("parallax", 0.01),
    ("teff_val", 1.0),
    ("parallax_error", 0.9),
    ("radius_val", 0.0),
    ("phot_g_mean_flux", 3.0),
    ("lum_val", 0.0),
)
CODECS = {
    "0.1": ("mock", 0.1, ()),
    "5": ("mock", 5.0, ()),
    "exact": ("mock", 0.0, ()),
    "own bounds": ("mock", 0.1, OWN),
    "foreign ids": ("tile", 0.3, ()),
    "94 columns": ("all94", 0.1, ()),
    "94 columns, exact": ("all94", 0.0, ()),
}
VECTOR_UNITS = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
seeds = st.integers(0, 2**32)


def codec_of(label: str) -> Codec:
    kind, bound_sigma, own = CODECS[label]
    return fitted(bound_sigma, *own, kind=kind)


def some_stars(codec: Codec, rows: int, random: np.random.Generator) -> pa.Table:
    return codec.stars.take(pa.array(random.integers(0, codec.stars.num_rows, rows)))


def replaced(stars: pa.Table, **columns: object) -> pa.Table:
    """Stars with some columns replaced."""
    for name, values in columns.items():
        array = pa.array(values, stars[name].type)
        stars = stars.set_column(stars.column_names.index(name), name, array)
    return stars


@cache
def whole_release_chunk() -> tuple[Codec, dict[str, list[bytes]], pa.Table]:
    """A chunk of stars with all columns, as bytes and as it comes back."""
    codec = fitted(0.1, kind="all94")
    stars = made_wild(codec.stars.slice(0, 64), 0.01, 0.02, np.random.default_rng(5))
    blobs = bytes_of(encode_chunk(stars, codec.card, WHOLE_SKY, DR2))
    return codec, blobs, decode_chunk(64, blobs, codec.card, WHOLE_SKY, DR2, stars.column_names)


# Within the bound -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("label", CODECS)
@settings(deadline=None, max_examples=10)
@given(seed=seeds, rows=st.sampled_from([0, 1, 2, 7, 60]), share=st.sampled_from([0.0, 0.01, 0.2, 0.6]))
def test_arbitrary_stars(label: str, seed: int, rows: int, share: float) -> None:
    random, codec = np.random.default_rng(seed), codec_of(label)
    stars = made_wild(some_stars(codec, rows, random), share, share / 5, random)
    rebuilt = round_trip(codec, stars)
    assert_within(stars, rebuilt, codec)
    if codec.card.bound_sigma == 0:
        assert not any(differ(stars[name], rebuilt[name]).any() for name in stars.column_names)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(SEED25[:20]), value=st.floats(), sigma=st.floats(), label=st.sampled_from(["0.1", "5", "own bounds"]))
def test_any_number_with_any_error(name: str, value: float, sigma: float, label: str) -> None:
    codec, column = codec_of(label), COLUMNS[name]
    stars = codec.stars.slice(40, 3)
    with np.errstate(over="ignore"):
        stars = replaced(stars, **{name: np.full(3, value, column.dtype.to_pandas_dtype())})
    if column.error_column:
        stars = replaced(stars, **{column.error_column: np.array([sigma, -sigma, 1.0])})
    assert_within(stars, round_trip(codec, stars), codec)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["0.1", "foreign ids"])
def test_ids_at_the_edges(label: str) -> None:
    codec = codec_of(label)
    ids = np.array([i for i in WILD_INTEGERS if -(2**63) <= i < 2**63])
    stars = replaced(codec.stars.slice(0, len(ids)), source_id=ids)
    assert codec.card.anchor == ("tile" if label == "foreign ids" else "source_id")
    assert_within(stars, round_trip(codec, stars), codec)
    assert_within(stars[::-1], round_trip(codec, stars[::-1]), codec)


@pytest.mark.slow
def test_fluxes_stay_above_0() -> None:
    """An error of many times the flux allows 0; an exception is made of the star."""
    codec = fitted(5.0)
    stars = codec.stars.slice(0, 500)
    names = [name for name, column in COLUMNS.items() if column.sign_matters]
    for name in names:
        stars = replaced(stars, **{name: np.geomspace(1e-6, 1e6, 500), f"{name}_error": np.full(500, 1e3)})
    rebuilt = round_trip(codec, stars)
    assert len(names) == 4
    for name in names:
        assert min(rebuilt[name].to_pylist()) > 0
        assert differ(stars[name], rebuilt[name]).mean() > 0.1
    assert_within(stars, rebuilt, codec)


@pytest.mark.slow
def test_values_that_are_not_what_was_fitted_to() -> None:
    """Labels, texts and nulls that the fit did not see, columns that are null in other rows than their leaders."""
    codec = fitted(0.1, kind="all94")
    stars = codec.stars.slice(0, 50)
    flags = ["CONSTANT", "ÜNKNOWN", None, "", *["VARIABLE"] * 46]
    kinds = {code.name: code.kind for code in codec.card.columns}
    assert (kinds["phot_variable_flag"], kinds["frame_rotator_object_type"]) == ("category", "grid")
    led = [code.name for code in codec.card.columns if code.leader not in ("", code.name) and not code.name.startswith(MASK)]
    alternating = [None if i % 2 else 1 for i in range(50)]
    stars = replaced(stars, phot_variable_flag=flags, duplicated_source=[None, True] * 25, designation=["a"] * 49 + ["b"])
    stars = replaced(stars, frame_rotator_object_type=[2**31 - 1, -(2**31)] * 25, **{led[3]: alternating, led[9]: pa.nulls(50)})
    assert_within(stars, round_trip(codec, stars), codec)
    empty = replaced(
        stars, **{name: pa.nulls(50, stars[name].type) for name in stars.column_names if name not in (SOURCE_ID, RA, DEC)}
    )
    assert_within(empty, round_trip(codec, empty), codec)


ODD_SAMPLES: dict[str, Callable[[], pa.Table]] = {
    "no star": lambda: mock_stars().slice(0, 0),
    "one star": lambda: mock_stars().slice(0, 1),
    "few stars": lambda: mock_stars().slice(0, 40),
    "wild": lambda: made_wild(mock_stars(), 0.02, 0.05, np.random.default_rng(1)),
    "wilder, 94 columns": lambda: made_wild(whole_release_stars(800), 0.3, 0.05, np.random.default_rng(2)),
    "all the same": lambda: mock_stars().take(pa.array([7] * 500)),
    "null": lambda: replaced(mock_stars(), teff_val=pa.nulls(3000), phot_g_mean_flux=pa.nulls(3000)),
    "declination first": lambda: mock_stars().select([SOURCE_ID, DEC, "radius_val", "parallax", "teff_val", "phot_g_mean_flux", RA, "ra_error", "dec_error"]),
    "positions alone": lambda: mock_stars().select([SOURCE_ID, RA, DEC]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("label", ODD_SAMPLES)
def test_whatever_it_is_fitted_to(label: str) -> None:
    sample = ODD_SAMPLES[label]()
    codec = fitted_to(sample, 0.1)
    stars = mock_stars().slice(100, 200).select(sample.column_names) if sample.num_columns < 90 else sample.slice(0, 200)
    assert_within(stars, round_trip(codec, stars), codec)


def moved(stars: pa.Table) -> pa.Table:
    """The same stars, no buffer of which is aligned: as they come out of a message of another process."""

    def at_an_odd_place(buffer: pa.Buffer | None) -> pa.Buffer | None:
        return buffer if buffer is None else pa.py_buffer(b"x" + buffer.to_pybytes()).slice(1)

    arrays = [column.combine_chunks() for column in stars.columns]
    again = [pa.Array.from_buffers(array.type, len(array), [*map(at_an_odd_place, array.buffers())]) for array in arrays]
    return pa.Table.from_arrays(again, schema=stars.schema)


@pytest.mark.slow
@pytest.mark.parametrize("bound_sigma", [0.1, 0.0])
def test_stars_may_lie_anywhere_in_memory(bound_sigma: float) -> None:
    stars = pa.Table.from_batches(whole_release_stars(300).combine_chunks().to_batches())
    assert fitted_to(moved(stars), bound_sigma).card == (card := fitted_to(stars, bound_sigma).card)
    assert bytes_of(encode_chunk(moved(stars), card, WHOLE_SKY, DR2)) == bytes_of(encode_chunk(stars, card, WHOLE_SKY, DR2))


def test_real_rows(real_rows: pa.Table) -> None:
    names = [name for name in COLUMNS if name in real_rows.column_names]
    whole = real_rows.select(names).cast(DR2.schema(names))
    stars = whole.filter(np.all([np.asarray(whole[name].is_valid()) for name in (SOURCE_ID, RA, DEC)], axis=0))
    for bound_sigma in (0.1, 0.0):
        codec = fitted_to(stars.slice(0, 600), bound_sigma)
        assert_within(stars, round_trip(codec, stars), codec)


# What follows from the values -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_users_compute_is_within_the_propagated_interval() -> None:
    """Absolute magnitudes, colours and tangential velocities, at the corners of what the columns' bounds allow."""
    codec = fitted(0.5)
    stars = codec.stars
    rebuilt = round_trip(codec, stars)
    bounds = tolerances(DR2, stars.column_names, 0.5, {})
    given_values, back = (Originals({name: native(t[name]) for name in bounds}) for t in (stars, rebuilt))

    def absolute_g(flux: NDArray, parallax: NDArray) -> NDArray:
        return np.asarray(g_magnitude(flux) + 5 * log10(parallax / 100))

    def velocity(pmra: NDArray, pmdec: NDArray, parallax: NDArray) -> NDArray:
        return AU_PER_YEAR_KM_S * np.hypot(pmra, pmdec) / parallax

    def colour(first: NDArray, second: NDArray) -> NDArray:
        return -2.5 * log10(first / second)

    for function, names in (
        (absolute_g, ("phot_g_mean_flux", "parallax")),
        (velocity, ("pmra", "pmdec", "parallax")),
        (colour, ("phot_bp_mean_flux", "phot_rp_mean_flux")),
    ):
        sides = {name: allowed(name, given_values, bounds, DR2) for name in names}
        sure = np.all([np.abs(given_values[name]) > sides[name] for name in names], axis=0)
        corners = [
            function(*(given_values[name] + sign * sides[name] for name, sign in zip(names, signs, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(names))
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            made = function(*(back[name] for name in names))
        known = sure & np.isfinite(corners).all(axis=0)
        slack = 2e-6 * np.abs(made)
        assert known.sum() > 500
        assert ((made >= np.min(corners, axis=0) - slack) & (made <= np.max(corners, axis=0) + slack))[known].all(), names
        assert (made != function(*(given_values[name] for name in names)))[known].mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("own", [(), (("ra", 0.0),), (("dec", 0.0),), (("ra", 0.0), ("dec", 0.0))], ids=str)
@settings(deadline=None, max_examples=4)
@given(seed=seeds, pixel=st.integers(0, 11))
def test_stars_stay_in_their_order_and_tile(own: tuple[tuple[str, float], ...], seed: int, pixel: int) -> None:
    random, codec, tile = np.random.default_rng(seed), fitted(5.0, *own), Tile(0, pixel)
    stars = some_stars(codec, 400, random)
    # Errors of a degree: without care, positions would mix.
    stars = replaced(stars, ra_error=random.exponential(3e5, 400), dec_error=random.exponential(3e5, 400))
    stars = rows_of_tile(made_wild(stars, 0.01, 0.0, random), tile)
    half = stars.num_rows // 2
    parts, before, first = [], -1, tile.healpix_29[0]
    for part in (stars.slice(0, half), stars.slice(half)):
        chunk = encode_chunk(part, codec.card, tile, DR2, before)
        parts.append(decode_chunk(chunk.rows, bytes_of(chunk), codec.card, tile, DR2, part.column_names))
        before = part[HEALPIX_29][-1].as_py() if part.num_rows else before
    rebuilt = pa.concat_tables(parts)
    index = rebuilt[HEALPIX_29].to_numpy()
    assert (np.diff(index, prepend=first) >= 0).all() and (index < tile.healpix_29[1]).all()
    np.testing.assert_array_equal(index, healpix(rebuilt[RA], rebuilt[DEC]))
    assert_within(stars, rebuilt, codec)


# The same everywhere --------------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(names=st.sets(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=6))
def test_some_columns_are_what_they_are_among_all(names: set[str]) -> None:
    codec, blobs, whole = whole_release_chunk()
    read = {code.name: blobs[code.name] for code in needed(codec.card, list(names), DR2)}
    some = decode_chunk(64, read, codec.card, WHOLE_SKY, DR2, list(names))
    assert len(read) < len(blobs)
    assert not any(differ(some[name], whole[name]).any() for name in names)


@pytest.mark.slow
def test_other_chunkings_and_orders_give_the_same_bits() -> None:
    codec = fitted(0.1)
    random = np.random.default_rng(3)
    stars = made_wild(some_stars(codec, 9_000, random), 0.01, 0.02, random)  # several piles
    rebuilt, order = round_trip(codec, stars), pa.array(random.permutation(9_000))
    assert_within(stars, rebuilt, codec)
    parts = [round_trip(codec, stars.slice(start, 2_500)) for start in range(0, 9_000, 2_500)]
    for other, expected in (
        (round_trip(codec, stars.take(order)), rebuilt.take(order)),
        (pa.concat_tables(parts), rebuilt),
    ):
        for name in stars.column_names:
            assert other[name].is_null().equals(expected[name].is_null()), name
            assert not differ(other[name], expected[name]).any(), name


@pytest.mark.slow
@pytest.mark.skipif(not VECTOR_UNITS, reason="numpy uses nothing here but what every machine of this kind has")
def test_the_same_bits_without_vector_units_and_with_threads(tmp_path: Path) -> None:
    random, chunks = np.random.default_rng(8), []
    for label, rows in (("0.1", 9_000), ("exact", 400), ("foreign ids", 400), ("94 columns", 400)):
        codec = codec_of(label)
        stars = made_wild(some_stars(codec, rows, random), 0.01, 0.01, random)
        chunk = encode_chunk(stars, codec.card, WHOLE_SKY, DR2)
        chunks.append((chunk.rows, bytes_of(chunk), codec.card, stars.column_names))
    path = tmp_path / "chunks"
    path.write_bytes(pickle.dumps(chunks))
    here = digests_of(path)
    assert {len(codec_of(label).card.features) > 10 for label in ("0.1", "94 columns")} == {True}
    assert any(len(chunks[0][1][code.name]) > HEAD + 1 for code in chunks[0][2].columns if code.kind == "grid")  # several piles
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(digests_of, [path] * 2)) == [here, here]
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(VECTOR_UNITS),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, decoded_bits.__file__, str(path), *VECTOR_UNITS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[] {here}"


# Damage and wrong input -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_other_bytes_are_damage(data: st.DataObject) -> None:
    """Whatever becomes of a part, what decodes is what was compressed, or an error says so."""
    codec, blobs, good = whole_release_chunk()
    name = data.draw(st.sampled_from(sorted(blobs)))
    place = data.draw(st.integers(0, len(blobs[name]) - 1))
    part = blobs[name][place]
    others = [st.binary(max_size=20), st.sampled_from([p for parts in blobs.values() for p in parts]), st.just(b"")]
    if part:
        flipped = st.tuples(st.integers(0, len(part) - 1), st.integers(0, 7))
        others.append(flipped.map(lambda at: part[: at[0]] + bytes([part[at[0]] ^ (1 << at[1])]) + part[at[0] + 1 :]))
    changed = data.draw(st.one_of(*others, st.none()))
    parts = [*blobs[name][:place], *([] if changed is None else [changed]), *blobs[name][place + 1 :]]
    column = name.removeprefix(MASK)
    try:
        found = decode_chunk(64, {**blobs, name: parts}, codec.card, WHOLE_SKY, DR2, [column])
    except DamagedFileError:
        return
    assert found[column].is_null().equals(good[column].is_null()) and not differ(found[column], good[column]).any()


@pytest.mark.parametrize("name", [SOURCE_ID, "designation", "phot_variable_flag", "parallax", "random_index", "duplicated_source"])
def test_parts_of_another_column_are_damage(name: str) -> None:
    codec, blobs, _ = whole_release_chunk()
    for other in {"pmra", "designation", "l", "null:parallax"} - {name}:
        parts = [blobs[name][0], *blobs[other][1:]]
        with pytest.raises(DamagedFileError, match=r"column|parts|numbers"):
            decode_chunk(64, {**blobs, name: parts}, codec.card, WHOLE_SKY, DR2, [name])


@settings(deadline=None, max_examples=100)
@given(garbage=st.one_of(st.binary(max_size=60), st.integers(0, 40).map(lambda at: piles.pack(np.arange(99))[:at])))
def test_garbage_is_damage_to_pcodec_too(garbage: bytes) -> None:
    if garbage:
        with pytest.raises(DamagedFileError, match=r"cannot be decoded|has 0 numbers where it must have 99"):
            piles.unpack(garbage, 99)


@pytest.mark.parametrize(
    ("bound_sigma", "own", "message"),
    [
        (-0.1, {}, r"bound of bound_sigma is -0.1: expected a number of 0 \(exact\) or more"),
        (float("nan"), {}, "bound of bound_sigma is nan"),
        (float("inf"), {}, "bound of bound_sigma is inf"),
        (0.1, {"parallax": -1.0}, "bound of parallax is -1.0"),
        (0.1, {"paralax": 1.0}, "no column paralax: did you mean parallax"),
        (0.1, {"bp_rp": 0.1}, "bp_rp follows from phot_bp_mean_flux, phot_rp_mean_flux and is bounded as they are: choose theirs, or 0"),
        (0.1, {"source_id": 1.0}, "source_id is always exact: leave it out, or give it 0"),
        (0.1, {"parallax_error": 1.5}, "bound of parallax_error is 1.5 of its value: expected less than 1"),
    ],
)  # fmt: skip
def test_wrong_bounds_are_refused(bound_sigma: float, own: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tolerances(DR2, mock_stars().column_names, bound_sigma, own)


@pytest.mark.slow
def test_without_its_error_column_a_column_is_exact() -> None:
    stars = mock_stars().drop_columns(["parallax_error", "ra_error"])
    codec = fitted_to(stars, 0.1)
    assert {c.name: c.tolerance.note for c in codec.card.columns if c.tolerance.note} == {
        "parallax": "its error column parallax_error is not in the catalogue",
        "ra": "its error column ra_error is not in the catalogue",
    }
    rebuilt = round_trip(codec, stars.slice(0, 300))
    assert not differ(stars["parallax"].slice(0, 300), rebuilt["parallax"]).any()
    assert_within(stars.slice(0, 300), rebuilt, codec)


@pytest.mark.slow
def test_a_chunk_of_other_columns_types_or_order_is_refused() -> None:
    codec = fitted(0.1)
    stars = mock_stars().slice(0, 10)
    with pytest.raises(DataError, match="no column parallax: the catalogue that was fitted had it"):
        encode_chunk(stars.drop_columns("parallax"), codec.card, WHOLE_SKY, DR2)
    narrow = stars.set_column(5, "parallax", stars["parallax"].cast(pa.float32()))
    with pytest.raises(DataError, match="column parallax is of type float: expected double"):
        encode_chunk(narrow, codec.card, WHOLE_SKY, DR2)
    with pytest.raises(DataError, match="lie in another tile"):
        encode_chunk(rows_of_tile(mock_stars(), Tile(0, 4)), codec.card, Tile(0, 5), DR2)


def test_deviations_are_measured_along_the_sphere() -> None:
    values = {RA: np.array([359.9, 0.1, 10.0, 10.0]), DEC: np.array([60.0, 60.0, 90.0, -90.0])}
    off = deviation(RA, values, np.array([0.1, 359.9, 190.0, 11.0]))
    np.testing.assert_allclose(off, [0.1, 0.1, 0.0, 0.0], atol=1e-12)
    nan = deviation("parallax", {"parallax": np.array([np.nan, 1.0, np.inf])}, np.array([1.0, np.nan, -np.inf]))
    assert np.isinf(nan).all()
