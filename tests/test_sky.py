"""Positions: HEALPix indices, unit vectors, separations."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gaiadask.sky import healpix, healpix_of_source_id, position, separation_deg, unit_vector

RA = st.floats(0, 360, exclude_max=True)
DEC = st.floats(-90, 90)


def test_source_ids_tell_the_pixel_of_real_stars(real_rows: pa.Table) -> None:
    ra, dec, ids = (real_rows[name].to_numpy() for name in ("ra", "dec", "source_id"))
    told, here = healpix_of_source_id(ids), healpix(ra, dec, 12)
    assert (told == here).mean() == pytest.approx(0.993, abs=2e-3)
    # The rest lie next door: a pixel of order 12 is 0.86 arcminutes wide.
    other = told != here
    assert (healpix_of_source_id(ids[other], 6) == here[other] >> 12).mean() > 0.95


def test_known_pixels() -> None:
    # Proxima Centauri.
    assert int(healpix_of_source_id(5853498713160606720)) == 170359234
    # The twelve base pixels have their centres at dec 41.81, 0 and -41.81 (sin dec = 2/3), the nested order starts from the first.
    edge = np.degrees(np.arcsin(2 / 3))
    ra, dec = [45, 135, 225, 315, 0, 90, 180, 270, 45, 135, 225, 315], [edge] * 4 + [0] * 4 + [-edge] * 4
    assert healpix(ra, dec, 0).tolist() == list(range(12))
    assert healpix([0.0, 45.0], [90.0, 89.9999999], 12).tolist() == [4**12 - 1, 4**12 - 1]


@given(RA, DEC, st.integers(0, 28))
def test_pixels_nest(ra: float, dec: float, order: int) -> None:
    fine = int(healpix([ra], [dec], 29)[0])
    assert fine >> 2 * (29 - order) == int(healpix([ra], [dec], order)[0])
    assert 0 <= fine < 12 * 4**29


@given(st.integers(0, 2**63 - 1), st.integers(0, 12))
def test_source_id_pixels_nest(source_id: int, order: int) -> None:
    assert int(healpix_of_source_id(source_id, order)) == (source_id >> 35) >> 2 * (12 - order)


@pytest.mark.slow
@given(st.lists(st.tuples(RA, DEC), min_size=1, max_size=20), st.floats(1e-3, 1e3))
@example([(0.0, 0.0), (359.9999999999999, 0.0), (1e-300, 0.0), (180.0, 90.0), (10.0, -90.0)], 2.0)
def test_positions_come_back_from_unit_vectors(stars: list[tuple[float, float]], length: float) -> None:
    ra, dec = np.array(stars).T
    vectors = unit_vector(ra, dec)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-15)
    ra_back, dec_back = position(length * vectors)
    assert ((ra_back >= 0) & (ra_back < 360)).all() and (np.abs(dec_back) <= 90).all()
    np.testing.assert_allclose(separation_deg(ra, dec, ra_back, dec_back), 0, atol=1e-12)
    np.testing.assert_allclose(dec_back, dec, atol=1e-6)  # arctan2 near a pole; the separation above is the real test


def test_right_ascension_has_no_edge() -> None:
    assert healpix([360.0], [12.0]) == healpix([0.0], [12.0])
    np.testing.assert_allclose(unit_vector(360.0, 12.0), unit_vector(0.0, 12.0), atol=1e-15)
    assert separation_deg(359.9999, 0.0, 0.0001, 0.0) == pytest.approx(2e-4, rel=1e-9)
    # An angle a hair below zero is 0, never 360.
    assert position(np.array([[1.0, -1e-300, 0.0]]))[0][0] == 0.0


def test_separations() -> None:
    mas = 1 / 3.6e6
    assert separation_deg(10.0, 60.0, 10.0 + mas, 60.0) == pytest.approx(mas / 2, rel=1e-6)
    assert separation_deg(0.0, 90.0, 123.0, -90.0) == pytest.approx(180.0)
    assert separation_deg(0.0, 0.0, 90.0, 0.0) == pytest.approx(90.0)
