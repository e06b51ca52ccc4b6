"""The mock archive: whole, the same however it is cut, and with the physics, the gaps and the edges of real stars."""

from __future__ import annotations

import itertools
import pickle
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.archive.base import open_archive
from gaiadask.archive.chunks import Chunk
from gaiadask.archive.mock import archive as mock
from gaiadask.archive.mock.archive import MockArchive
from gaiadask.archive.mock.sky import MockSky, shuffled
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError, ConfigurationError
from gaiadask.release.dr2 import COLUMNS, DR2, MOCK_COLUMNS, SEED16, g_magnitude
from gaiadask.release.formulas import absolute_magnitude
from gaiadask.sky import ICRS_TO_GALACTIC, SOURCE_ID_STOP, healpix, healpix_of_source_id, separation_deg, unit_vector
from gaiadask.split import sample_hash

STARS = 30_000


def _archive(stars: int = STARS, seed: int = 0, chunk_rows: int = 500_000, **selection: Any) -> MockArchive:
    options: dict[str, Any] = {"columns": MOCK_COLUMNS, "not_null": (), **selection}
    config = ArchiveConfig(kind="mock", mock_stars=stars, mock_seed=seed, chunk_rows=chunk_rows)
    archive = open_archive(config, SelectionConfig(**options))
    assert isinstance(archive, MockArchive)
    return archive


def _all(archive: MockArchive) -> pa.Table:
    tables = [table for chunk in archive.plan().chunks for table in archive.fetch(chunk, lambda _: None)]
    return pa.concat_tables([archive.schema.empty_table(), *tables]).combine_chunks()


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    """float64 with NaN for null."""
    return table[name].to_numpy(zero_copy_only=False).astype(np.float64)


def _complete(table: pa.Table) -> pa.Table:
    return table.drop_null()


@pytest.fixture(scope="module")
def stars() -> pa.Table:
    return _all(_archive())


# Whole and the same --------------------------------------------------------------------------------------------------------
def test_schema_and_order(stars: pa.Table) -> None:
    assert stars.schema.equals(_archive().schema, check_metadata=True)
    assert len(stars) == STARS
    assert tuple(stars.column_names) == MOCK_COLUMNS
    source_id = stars["source_id"].to_numpy()
    assert (np.diff(source_id) > 0).all()
    for name in stars.column_names:
        if pa.types.is_floating(stars[name].type):
            assert not pc.any(pc.is_nan(stars[name])).as_py(), name
            assert np.isfinite(stars[name].drop_null().to_numpy()).all(), name
    for name in ("source_id", "random_index", "ra", "dec", "ra_error", "dec_error", "phot_g_mean_flux"):
        assert stars[name].null_count == 0, name


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [3_000, 12_000])
def test_the_same_stars_however_cut(stars: pa.Table, chunk_rows: int) -> None:
    archive = _archive(chunk_rows=chunk_rows)
    plan = archive.plan()
    assert len(plan.chunks) >= 2
    for chunk in plan.chunks:
        fetched = list(archive.fetch(chunk, lambda _: None))
        assert sum(map(len, fetched)) == chunk.expected_rows
        for table in fetched:
            ids = table["source_id"].to_numpy()
            assert chunk.first <= ids.min() <= ids.max() < chunk.stop
    assert _all(archive).equals(stars)


@pytest.mark.slow
@given(cuts=st.lists(st.integers(0, SOURCE_ID_STOP), max_size=3))
@settings(max_examples=4, deadline=None)
def test_any_range_can_be_asked_for(cuts: list[int]) -> None:
    archive = _archive(stars=300)
    whole = _all(archive)
    bounds = [0, *sorted(cuts), SOURCE_ID_STOP]
    pieces = [
        table for first, stop in itertools.pairwise(bounds) for table in archive.fetch(Chunk("x", first, stop), lambda _: None)
    ]
    assert pa.concat_tables(pieces).combine_chunks().equals(whole)


@given(stars=st.integers(1, 30_000_000), pieces=st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_chunks_cover_every_source_id_once(stars: int, pieces: int) -> None:
    plan = _archive(stars=stars, chunk_rows=-(-stars // pieces)).plan()
    firsts, stops = [c.first for c in plan.chunks], [c.stop for c in plan.chunks]
    assert firsts == [0, *stops[:-1]]
    assert stops[-1] == 12 * 4**12 << 35 == SOURCE_ID_STOP
    assert len({c.name for c in plan.chunks}) == len(plan.chunks)
    assert plan.histogram.shape == (12 * 4**plan.order,)
    assert plan.histogram.min() >= 0
    assert plan.histogram.sum() == sum(c.expected_rows or 0 for c in plan.chunks) == stars


def test_histogram_is_exact(stars: pa.Table) -> None:
    plan = _archive().plan()
    counted = np.bincount(healpix_of_source_id(stars["source_id"].to_numpy(), plan.order), minlength=12 * 4**plan.order)
    np.testing.assert_array_equal(plan.histogram, counted)


@pytest.mark.slow
def test_another_seed_is_another_sky(stars: pa.Table) -> None:
    other = _all(_archive(seed=1))
    assert len(other) == STARS
    assert not np.isin(other["source_id"].to_numpy(), stars["source_id"].to_numpy()).any()
    assert not np.isin(other["parallax"].drop_null().to_numpy(), stars["parallax"].drop_null().to_numpy()).any()


@pytest.mark.slow
def test_a_worker_has_the_same_archive() -> None:
    archive = _archive(stars=300, limit=20)
    chunk = archive.plan().chunks[0]
    copy = pickle.loads(pickle.dumps(archive))
    assert pa.concat_tables(copy.fetch(chunk, lambda _: None)).equals(pa.concat_tables(archive.fetch(chunk, lambda _: None)))


@pytest.mark.slow
def test_tables_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(stars=4_000)
    whole = _all(archive)
    for rows in (100, 1_500):  # smaller than a tile, and larger
        monkeypatch.setattr(mock, "TABLE_ROWS", rows)
        tables = list(archive.fetch(archive.plan().chunks[0], lambda _: None))
        assert max(map(len, tables)) <= rows
        assert len(tables) <= 2 * 4_000 / rows + 12
        assert pa.concat_tables(tables).combine_chunks().equals(whole)


def test_large_skies_are_cut_into_more_tiles() -> None:
    orders = [MockSky(n, 0).order for n in (1, 300_000, 1_000_000, 10**8, 2 * 10**9)]
    assert orders == sorted(orders)
    assert orders[0] == 0
    assert orders[0] < orders[2] < orders[-1]
    assert MockSky(2 * 10**9, 0).tile_counts.max() < 200_000


# Identifiers ---------------------------------------------------------------------------------------------------------------
def test_source_ids_are_like_real_ones(stars: pa.Table) -> None:
    source_id = stars["source_id"].to_numpy()
    assert (source_id & 127 == 0).all()
    running = (source_id >> 7) & (2**25 - 1)
    bits = np.log2(running + 1)
    assert 12.5 < np.median(bits) < 15
    assert 18 < np.percentile(bits, 99) < 20


def test_some_stars_lie_in_a_neighbouring_pixel(stars: pa.Table) -> None:
    told = healpix_of_source_id(stars["source_id"].to_numpy())
    ra, dec = _numpy(stars, "ra"), _numpy(stars, "dec")
    strayed = told != healpix(ra, dec, 12)
    assert strayed.mean() == pytest.approx(0.007, abs=0.0015)
    centre_ra, centre_dec = _centres(told)
    # Pixels of order 12 are 52 arcsec wide; near the poles of the grid they are up to twice as long.
    assert separation_deg(ra, dec, centre_ra, centre_dec).max() < 180 / 3600


def _centres(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import cdshealpix

    lon, lat = cdshealpix.healpix_to_lonlat(pixels.astype(np.uint64), 12)
    return lon.deg, lat.deg


def test_random_index_is_a_shuffle(stars: pa.Table) -> None:
    index = stars["random_index"].to_numpy()
    np.testing.assert_array_equal(np.sort(index), np.arange(STARS))
    assert abs(np.corrcoef(index, np.arange(STARS))[0, 1]) < 0.02
    assert abs(np.corrcoef(np.diff(index)[:-1], np.diff(index)[1:])[0, 1] + 0.5) < 0.02  # as of independent numbers


@pytest.mark.slow
@given(size=st.integers(1, 3000), seed=st.integers(0, 5))
def test_shuffle_is_a_bijection(size: int, seed: int) -> None:
    np.testing.assert_array_equal(np.sort(shuffled(np.arange(size), size, seed)), np.arange(size))


# Gaps, edges, derived columns ----------------------------------------------------------------------------------------------
BLOCKS = {
    "parallax": ("parallax_error", "pmra", "pmra_error", "pmdec", "pmdec_error"),
    "phot_bp_mean_flux": ("phot_bp_mean_flux_error", "phot_rp_mean_flux", "phot_rp_mean_flux_error", "bp_rp", "bp_g", "g_rp"),
    "radial_velocity": ("radial_velocity_error",),
    "radius_val": ("lum_val",),
}


def test_what_is_missing_is_missing_together(stars: pa.Table) -> None:
    null = {name: np.asarray(stars[name].is_null()) for name in stars.column_names}
    for first, others in BLOCKS.items():
        assert null[first].any(), first
        for name in others:
            np.testing.assert_array_equal(null[first], null[name], err_msg=f"{first} and {name}")
    for inner, outer in (("a_g_val", "teff_val"), ("lum_val", "teff_val"), ("lum_val", "parallax"), ("teff_val", "bp_rp")):
        assert not (null[outer] & ~null[inner]).any(), f"{inner} within {outer}"
        assert (null[inner] & ~null[outer]).any()
    assert (null["a_g_val"] & ~null["lum_val"]).any()
    assert (null["lum_val"] & ~null["a_g_val"]).any()
    assert (null["teff_val"] & ~null["radial_velocity"]).any(), "radial velocities are not nested in Teff"


def test_edges_of_real_columns(stars: pa.Table) -> None:
    g = g_magnitude(_numpy(stars, "phot_g_mean_flux"))
    snr = _numpy(stars, "parallax") / _numpy(stars, "parallax_error")
    has = {name: np.asarray(stars[name].is_valid()) for name in stars.column_names}
    assert snr[has["lum_val"]].min() > 5
    assert _numpy(stars, "radius_val")[has["radius_val"]].min() >= 0.5
    assert _numpy(stars, "radial_velocity_error")[has["radial_velocity"]].max() <= 20
    assert 13.5 < g[has["radial_velocity"]].max() <= 14.15
    assert 16.9 < g[has["teff_val"]].max() <= 17.15
    negative = _numpy(stars, "parallax") < 0
    assert 0.005 < negative.mean() < 0.07
    assert (g[negative] > 13).mean() > 0.9


def test_derived_columns_are_so_to_the_bit(stars: pa.Table) -> None:
    values = {name: stars[name].to_numpy(zero_copy_only=False) for name in MOCK_COLUMNS}
    for name in MOCK_COLUMNS:
        if COLUMNS[name].derived_from:
            known = np.asarray(stars[name].is_valid())
            np.testing.assert_array_equal(DR2.derive(values, [name])[name][known], values[name][known], err_msg=name)


def test_grids_of_teff_and_extinction(stars: pa.Table) -> None:
    teff = stars["teff_val"].drop_null().to_numpy()
    assert len(np.unique(teff)) < 0.6 * len(teff)
    a_g = stars["a_g_val"].drop_null().to_numpy().astype(np.float64)
    assert (a_g > 0).all()
    assert np.abs(a_g * 1e4 - np.rint(a_g * 1e4)).max() < 2e-3


def test_a_good_share_has_all_columns(stars: pa.Table) -> None:
    assert 0.45 < len(_complete(stars)) / STARS < 0.65


# Physics -------------------------------------------------------------------------------------------------------------------
def test_hr_diagram_has_its_sequences(stars: pa.Table) -> None:
    full = _complete(stars)
    m_g = absolute_magnitude(g_magnitude(_numpy(full, "phot_g_mean_flux")), _numpy(full, "parallax"))
    colour = _numpy(full, "bp_rp")
    giants = (m_g < 3) & (colour > 0.95)
    dwarfs = (m_g > 3) & (colour < 2)
    subgiants = (m_g > 2.4) & (m_g < 3.6) & (colour > 0.8) & (colour < 1.1)
    assert 0.3 < giants.mean() < 0.75
    assert 0.2 < dwarfs.mean() < 0.6
    assert subgiants.mean() > 0.02
    # The clump: the densest half magnitude of the giants, whatever dust has done to it.
    counts, edges = np.histogram(m_g[giants], np.arange(-3, 3.1, 0.5))
    assert 0 <= edges[counts.argmax()] <= 1
    assert counts.max() > 1.5 * np.median(counts)


def test_stars_crowd_to_the_plane_and_dust_reddens_there(stars: pa.Table) -> None:
    sin_b = np.abs((unit_vector(_numpy(stars, "ra"), _numpy(stars, "dec")) @ ICRS_TO_GALACTIC.T)[:, 2])
    plane, pole = sin_b < 0.1, sin_b > 0.7
    assert plane.sum() / 0.1 > 3 * pole.sum() / 0.3
    a_g = _numpy(stars, "a_g_val")
    assert np.nanmedian(a_g[plane]) > 2 * np.nanmedian(a_g[pole])


def test_the_sun_moves_among_near_stars(stars: pa.Table) -> None:
    """Radial velocities of near stars tell the solar motion, which is in the mock as (11, 12 + lag, 7) km/s."""
    near = (_numpy(stars, "parallax") > 3) & np.asarray(stars["radial_velocity"].is_valid())
    direction = (unit_vector(_numpy(stars, "ra"), _numpy(stars, "dec")) @ ICRS_TO_GALACTIC.T)[near]
    motion = -np.linalg.lstsq(direction, _numpy(stars, "radial_velocity")[near], rcond=None)[0]
    np.testing.assert_allclose(motion, [11, 25, 7], atol=6)


def test_proper_motions_and_radial_velocities_tell_the_same_motion(stars: pa.Table) -> None:
    near = (_numpy(stars, "parallax") > 3) & np.asarray(stars["radial_velocity"].is_valid())
    ra, dec = np.radians(_numpy(stars, "ra")[near]), np.radians(_numpy(stars, "dec")[near])
    east = np.stack([-np.sin(ra), np.cos(ra), 0 * ra], axis=1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=1)
    scale = 4.740470463 / _numpy(stars, "parallax")[near]
    design = np.concatenate([east, north]) @ ICRS_TO_GALACTIC.T
    seen = np.concatenate([scale * _numpy(stars, "pmra")[near], scale * _numpy(stars, "pmdec")[near]])
    motion = -np.linalg.lstsq(design, seen, rcond=None)[0]
    np.testing.assert_allclose(motion, [11, 25, 7], atol=6)


def test_old_stars_are_faster(stars: pa.Table) -> None:
    full = _complete(stars)
    blue = (_numpy(full, "teff_val") > 6500) & (_numpy(full, "radius_val") < 4)
    velocity = _numpy(full, "radial_velocity")
    assert velocity[blue].std() < 0.75 * velocity[~blue].std()


# Selection -----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_selected_columns_and_rows(stars: pa.Table) -> None:
    archive = _archive(columns="seed16", not_null="seed25", where="bp_g > 0.4 AND random_index % 2 = 0")
    selected = _all(archive)
    assert selected.column_names == [name for name in MOCK_COLUMNS if name in {"source_id", *SEED16}]
    assert selected.schema.equals(archive.schema, check_metadata=True)
    complete = _complete(stars)
    keep = (_numpy(complete, "bp_g") > np.float32(0.4)) & (complete["random_index"].to_numpy() % 2 == 0)
    assert selected.equals(complete.filter(keep).select(selected.column_names).combine_chunks())
    plan = archive.plan()
    assert all(chunk.expected_rows is None for chunk in plan.chunks)
    np.testing.assert_array_equal(plan.histogram, _archive().plan().histogram)


@pytest.mark.slow
@pytest.mark.parametrize("not_null", [(), "seed25"])
def test_limit_takes_the_smallest_hashes(not_null: Any) -> None:
    archive = _archive(stars=5_000, limit=777, not_null=not_null, chunk_rows=1_000)
    plan = archive.plan()
    assert plan.histogram.sum() == sum(c.expected_rows or 0 for c in plan.chunks) == 777
    passed = _all(_archive(stars=5_000, not_null=not_null))["source_id"].to_numpy()
    expected = np.sort(passed[np.argsort(sample_hash(passed))[:777]])
    np.testing.assert_array_equal(_all(archive)["source_id"].to_numpy(), expected)
    for chunk in plan.chunks:
        assert sum(len(t) for t in archive.fetch(chunk, lambda _: None)) == chunk.expected_rows


@pytest.mark.slow
def test_a_limit_beyond_the_sky_takes_all() -> None:
    archive = _archive(stars=400, limit=1_000)
    assert archive.plan().histogram.sum() == len(_all(archive)) == 400


def test_a_chunk_of_an_unlimited_plan_is_refused() -> None:
    chunk = replace(_archive(stars=400).plan().chunks[0])
    with pytest.raises(ArchiveError, match="plan again"):
        list(_archive(stars=400, limit=10).fetch(chunk, lambda _: None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("parallax >", "syntax error"),
        ("paralax > 1", "paralax"),
        ("parallax + 1", "true or false"),
        ("radius_val > 'x'", "x"),
        ("l > 3", "have no l"),
    ],
)
def test_a_bad_condition_is_refused_in_the_plan(where: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _archive(stars=400, where=where).plan()


def test_an_empty_selection_has_no_tables() -> None:
    assert len(_all(_archive(stars=400, where="parallax > 1e9"))) == 0


def test_identity_is_of_stars_and_selection_only() -> None:
    same = [_archive(), _archive(chunk_rows=7), _archive(columns=tuple(reversed(MOCK_COLUMNS)))]
    other = [_archive(stars=9), _archive(seed=1), _archive(limit=1), _archive(where="ra > 1"), _archive(not_null="seed16")]
    assert all(a.identity() == same[0].identity() for a in same)
    assert all(a.identity() != same[0].identity() for a in (*other, _archive(columns="seed16")))


# Slow ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_rate_on_one_core() -> None:
    """50 000 stars a second of this process's time, everything included but the map of the sky, made once."""
    archive = _archive(stars=200_000, not_null="seed25")
    archive.plan()
    started = time.process_time()
    assert len(_all(archive)) > 80_000
    assert 200_000 / (time.process_time() - started) > 50_000


@pytest.fixture(scope="module")
def complete_sky() -> pa.Table:
    complete = _all(_archive(stars=200_000, columns="seed16", not_null="seed25")).drop_columns("source_id")
    assert len(complete) >= 100_000
    return complete


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "features", "at_least"), [("copula", "raw", 0.90), ("copula", "physics", 0.97), ("independent", "raw", 0.99)]
)
def test_no_easier_than_the_truth(complete_sky: pa.Table, made: str, features: Any, at_least: float) -> None:
    """Simple models of 100 000 complete stars are told apart from them. (The headline is the largest AUC, so no less.)"""
    from gaiadask.quality.two_sample import two_sample_auc
    from gaiadask.quality.yardsticks import gaussian_copula_sample, independent_columns_sample

    sample = (gaussian_copula_sample if made == "copula" else independent_columns_sample)(complete_sky, 20_000, DR2)
    assert two_sample_auc(complete_sky, sample, DR2, features, seeds=1).mean >= at_least
