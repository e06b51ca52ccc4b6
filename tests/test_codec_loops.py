"""The codec's compiled loops give, to the bit, what plain numpy gives of whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from codec_stars import deviation
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.codec.piles import Piles, unpack_any
from gaiadask.compiled import fixed

ROWS = 5_000
WILD = np.array([0.0, -0.0, 5e-324, 1e-300, -1e300, np.inf, -np.inf, np.nan, 1.7976931348623157e308])
RANDOM = np.random.default_rng(1)


def wild(share: float = 0.05) -> NDArray:
    """Numbers of usual sizes, some of them as no catalogue has them."""
    return np.where(
        RANDOM.random(ROWS) < share, RANDOM.choice(WILD, ROWS), RANDOM.normal(size=ROWS) * 10.0 ** RANDOM.integers(-3, 4, ROWS)
    )


@pytest.fixture(params=[0.0, 0.3], ids=["no nulls", "nulls"])
def null(request: pytest.FixtureRequest) -> NDArray:
    """A mask as the loops take it: empty where nothing is null."""
    return RANDOM.random(ROWS) < request.param if request.param else loops.NO_NULL


@np.errstate(all="ignore")
@pytest.mark.parametrize(("width", "two"), [(0.0, False), (0.0, True), (0.7, False), (0.7, True)])
def test_numbers_and_coordinates_of_features(width: float, two: bool) -> None:
    first, second = wild(), wild() if two else loops.NONE
    scale, places = loops.Scale(0.3, width, -2.5, 3.25), np.append(RANDOM.integers(0, 1024, 4097), 1025).astype(np.uint16)
    number = first - second if two else first
    if width:
        off = number - 0.3
        bits = (np.abs(off) / width + 1.0).view(np.int64) >> 20
        number = np.where(np.isnan(off), np.nan, np.copysign(bits * 2.0**-32 - 1023.0, off))
    made, steps, above = np.empty(ROWS), np.empty(ROWS, np.uint16), np.empty(ROWS)
    loops.numbers(fixed(first), fixed(second), scale, made)
    loops.coordinates(fixed(first), fixed(second), scale, fixed(places), steps, above)
    np.testing.assert_array_equal(made, number)
    inside = np.where(np.isnan(number), 0.0, np.clip(number, -2.5, 3.25) + 2.5)
    np.testing.assert_array_equal(above, inside)
    np.testing.assert_array_equal(
        steps, np.where(np.isnan(number), 1025, places[np.minimum((inside * (4096 / 5.75)).astype(int), 4096)])
    )


@pytest.mark.parametrize("parents", [0, 3])
@pytest.mark.parametrize("has_sky", [False, True])
def test_sums_of_tables(parents: int, has_sky: bool) -> None:
    features = RANDOM.permutation(7)[:parents]
    means, scales = RANDOM.integers(-(2**38), 2**38, (parents, 1026)), RANDOM.integers(0, 4000, (parents, 1026))
    slopes = np.where(np.arange(parents) == 1, 0.0, RANDOM.normal(size=parents))
    steps, above = RANDOM.integers(0, 1026, (7, ROWS)).astype(np.uint16), RANDOM.random((7, ROWS))
    sky_mean, sky_scale = RANDOM.integers(-(2**38), 2**38, 768 * has_sky), RANDOM.integers(0, 4000, 768 * has_sky)
    sky = RANDOM.integers(0, 768, ROWS if has_sky else 0)
    tables = loops.Tables(-12_345, 2.0**-20, *map(fixed, ((means << 20) + scales, features, slopes, (sky_mean << 20) + sky_scale)))
    mean, levels = np.empty(ROWS), np.empty(ROWS, np.int32)
    loops.summed(tables, loops.Coordinates(fixed(steps), fixed(above)), fixed(sky), mean, levels)
    of_parent = [(table[steps[f]], scale[steps[f]]) for f, table, scale in zip(features, means, scales, strict=True)]
    whole, scale = (sum((pair[i] for pair in of_parent), np.zeros(ROWS, np.int64)) for i in (0, 1))
    if has_sky:
        whole, scale = whole + sky_mean[sky], scale + sky_scale[sky]
    expected = (whole - 12_345) * 2.0**-20
    for feature, slope in zip(features, slopes, strict=True):
        expected += above[feature] * slope
    np.testing.assert_array_equal(mean, expected)
    np.testing.assert_array_equal(levels, scale >> 7)


def test_piles_keep_the_stars_order(null: NDArray) -> None:
    """So many stars that no levels are put together."""
    levels, numbers = RANDOM.integers(3, 9, 6 * ROWS).astype(np.int32), RANDOM.integers(-(2**40), 2**40, 6 * ROWS)
    mask = np.tile(null, 6) if len(null) else None
    piles = Piles(levels, mask, 6 * ROWS)
    here = np.flatnonzero(~mask) if mask is not None else np.arange(6 * ROWS)
    packed = piles.pack(numbers)
    ordered = np.concatenate([unpack_any(part) for part in packed])
    assert len(packed) > 3
    np.testing.assert_array_equal(ordered, numbers[here[np.argsort(levels[here], kind="stable")]])
    back = piles.unpack(packed)
    np.testing.assert_array_equal(back[here], numbers[here])
    assert mask is None or not back[mask].any()


@np.errstate(all="ignore")
@pytest.mark.parametrize("ends", [loops.NO_END, loops.POLES, loops.TURN, loops.WHOLE])
@pytest.mark.parametrize("has_errors", [False, True])
def test_steps_and_values_of_grids(ends: int, has_errors: bool, null: NDArray) -> None:
    values, origin, errors = wild() * 60, wild() * 60, np.abs(wild())
    step = 0.2 * errors if has_errors else np.full(ROWS, 0.2)
    here = ~null if len(null) else np.ones(ROWS, bool)
    ruler = loops.Ruler(fixed(origin), 0.2, fixed(errors if has_errors else loops.NONE), ends)
    steps, wrong, placed = np.empty(ROWS, np.int64), np.empty(ROWS, np.bool_), np.empty(ROWS)
    loops.nearest(fixed(values), ruler, 2.0**40, fixed(null), steps, wrong)
    loops.placed(fixed(steps), ruler, fixed(null), placed)
    off = values - origin
    off = np.rint((off - 360.0 * np.rint(off / 360.0) if ends == loops.TURN else off) / step)
    near = here & (np.abs(off) < 2.0**40)
    np.testing.assert_array_equal(steps, np.where(near, off, 0))
    np.testing.assert_array_equal(wrong, here & ~near)
    value = np.rint(origin) + steps if ends == loops.WHOLE else steps * step + origin
    if ends == loops.POLES:
        value = np.clip(value, -90.0, 90.0)
    if ends == loops.TURN:
        value = np.where(value < 0, value + 360.0, value)
        value = np.where(value >= 360.0, value - 360.0, value)
    np.testing.assert_array_equal(placed, np.where(here, value, np.nan))
    assert near.mean() > 0.4 and (here & ~near).any()


@np.errstate(all="ignore")
@pytest.mark.parametrize("name", ["ra", "parallax"])
@pytest.mark.parametrize("stays", [loops.ANY_SIGN, loops.POSITIVE, loops.NOT_FAR_BELOW])
def test_what_is_within_its_bound(name: str, stays: int, null: NDArray) -> None:
    values = {name: np.abs(wild()) % 360, "dec": RANDOM.uniform(-90, 90, ROWS)}
    rebuilt, most = np.where(RANDOM.random(ROWS) < 0.1, wild(), values[name] + RANDOM.normal(0, 0.1, ROWS)), np.abs(wild())
    loops.usable(fixed(values[name]), most)
    verdict = (RANDOM.random(ROWS) < 0.1).astype(np.uint8)
    here, before = (~null if len(null) else np.ones(ROWS, bool)), verdict.copy()
    cosines = np.cos(np.radians(values["dec"]))
    worst = loops.judged(
        fixed(values[name]), fixed(rebuilt), fixed(most), fixed(cosines if name == "ra" else loops.NONE), stays, fixed(null), verdict
    )  # fmt: skip
    off, exact = deviation(name, values, rebuilt), most == 0
    wrong = (before == 1) | here & (~exact & ~(off / most <= 1) | (stays > 0) & (values[name] > 0) & ~(rebuilt > 0))
    if stays == loops.NOT_FAR_BELOW:
        far = here & (values[name] > 0) & (most >= values[name]) & (rebuilt * (1 + most / values[name]) < values[name])
        assert (far & ~wrong).any()
        wrong |= far
    # At the edge of a bound the loop may decide otherwise than the sphere's cosine of another library.
    sure = np.abs(off / most - 1) > 1e-12
    np.testing.assert_array_equal((verdict == loops.WRONG)[sure | exact], wrong[sure | exact])
    np.testing.assert_array_equal(verdict == loops.EXACT, here & exact & ~wrong)
    assert worst == pytest.approx((off / most)[here & (verdict == 0)].max(), rel=1e-12) and 0 < worst <= 1
    assert (np.isfinite(values[name]) | exact).all()
