"""Stars as codes of 16 bits: what comes back, within the stated errors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import fitted, made_up_stars

from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import NetworkInputs, PositionMode, Transform
from gaiadask.release.dr2 import DR2, SEED16
from gaiadask.split import Part, part_of
from gaiadask.training.codes import ERROR, LINEAR, LINEAR_CODES, NULL, TAIL_ERROR, Batch, Codec

TABLE = made_up_stars(5_000, nulls=0.2)
TRAIN = Statistics.from_table(TABLE, DR2).train
FLOAT32 = np.finfo(np.float32)


def there_and_back(codec: Codec, inputs: NetworkInputs, sigma: np.ndarray) -> Batch:
    codes = codec.encode(inputs, sigma)
    assert codes.shape == (len(sigma), codec.width)
    return codec.decoder("cpu")(torch.from_numpy(codes))


@pytest.mark.slow
@pytest.mark.parametrize("position", ["condition", "input", "degrees"])
@pytest.mark.parametrize("scaling", ["quantile", "min-max", "iqr"])
def test_stars_come_back(position: PositionMode, scaling: str) -> None:
    columns = SEED16 if position != "input" else SEED16[:-1]
    transform = Transform.fit(columns, TRAIN, DR2, position, scaling)
    codec = Codec.fit(transform, TRAIN, errors=True)
    inputs = transform.forward(TABLE)
    sigma = np.random.default_rng(0).random(inputs.values.shape, np.float32)
    stars = there_and_back(codec, inputs, sigma)
    assert (stars.present.numpy() == inputs.present).all()
    assert (stars.values.numpy()[~inputs.present] == 0).all()
    assert not inputs.present.all()
    middle, unit = np.array(codec.middle)[: transform.n_values], np.array(codec.unit)[: transform.n_values]
    off, distance = np.abs(stars.values.numpy() - inputs.values), np.abs(inputs.values - middle)
    allowed = np.where(distance <= LINEAR * unit, ERROR * unit, TAIL_ERROR * distance)
    assert (off <= 1.01 * allowed + 1e-6)[inputs.present].all()
    np.testing.assert_allclose(stars.condition, inputs.condition, atol=5e-5)
    np.testing.assert_allclose(stars.sigma, sigma, rtol=1e-3, atol=1e-7)
    assert Codec.model_validate(codec.to_json()) == codec
    assert Codec.fit(transform, TRAIN, errors=False).width == codec.width - transform.n_values


def of_one(middle: float, unit: float, bits: int = 0) -> Codec:
    return Codec(middle=(middle,), unit=(unit,), n_values=1, null_bits=bits, sigmas=0)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    x=st.floats(width=32, allow_nan=False, allow_infinity=False),
    middle=st.floats(-1e6, 1e6),
    unit=st.floats(1e-30, 1e30),
)
def test_any_float32_comes_back(x: float, middle: float, unit: float) -> None:
    values = np.array([[x]], np.float32)
    inputs = NetworkInputs(values, np.ones((1, 1), bool), np.empty((1, 0), np.float32))
    back = float(there_and_back(of_one(middle, unit), inputs, np.empty((1, 0), np.float32)).values[0, 0])
    distance = abs(x - float(np.float32(middle)))
    rounding = 2 * float(FLOAT32.eps) * (abs(x) + abs(middle))
    assert np.isfinite(back)
    assert abs(back - x) <= 1.02 * max(ERROR * unit, TAIL_ERROR * distance if distance > LINEAR * unit * 0.999 else 0) + rounding


def test_codes_are_in_the_order_of_values() -> None:
    x = np.sort(np.random.default_rng(0).normal(0, 1, 4_000) * 10.0 ** np.random.default_rng(1).uniform(-3, 37, 4_000)).astype(
        np.float32
    )
    inputs = NetworkInputs(x[:, None], np.ones((4_000, 1), bool), np.empty((4_000, 0), np.float32))
    assert (np.diff(of_one(0.0, 1.0).encode(inputs, np.empty((4_000, 0), np.float32))[:, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("bits", [0, 1, 15, 16, 40])
def test_null_bits_come_back(bits: int) -> None:
    condition = (np.random.default_rng(bits).random((50, bits)) < 0.5).astype(np.float32)
    inputs = NetworkInputs(np.zeros((50, 1), np.float32), np.ones((50, 1), bool), condition)
    stars = there_and_back(of_one(0.0, 1.0, bits), inputs, np.empty((50, 0), np.float32))
    np.testing.assert_array_equal(stars.condition.numpy(), condition)


@pytest.mark.parametrize("bits", [0, 17])
def test_the_compiled_loop_gives_the_bits_that_torch_gives(bits: int) -> None:
    """So it does not matter to a training that a share of a batch with a number in a tail is decoded by torch."""
    random = np.random.default_rng(bits)
    middle, unit = random.normal(0, 1, 12), 10.0 ** random.uniform(-6, 6, 12)
    codec = Codec(middle=tuple(middle), unit=tuple(unit), n_values=9, null_bits=bits, sigmas=9)
    codes = random.integers(-LINEAR_CODES, LINEAR_CODES + 1, (1_000, codec.width)).astype(np.int16)
    codes[random.random(codes.shape) < 0.1 * (np.arange(codec.width) < 9)] = NULL
    codes[:, -9:] = random.random((1_000, 9)).astype(np.float16).view(np.int16)
    decoder = codec.decoder("cpu")
    by_loop, by_torch = decoder._on_host(torch.from_numpy(codes)), decoder._by_torch(torch.from_numpy(codes))
    assert by_loop is not None
    for own, other in zip(by_loop, by_torch, strict=True):
        assert own.dtype == other.dtype and torch.equal(own, other)
    for column in (0, 11):  # a value, a coordinate
        with_tail = codes.copy()
        with_tail[7, column] = -LINEAR_CODES - 1
        assert decoder._on_host(torch.from_numpy(with_tail)) is None


def test_a_column_that_half_of_the_stars_share_and_far_outliers_are_told_apart() -> None:
    """A linear scaling keeps both: values 1e-4 of the range apart, beside one that is as far away as the range is wide."""
    values = TABLE["a_g_val"].to_numpy(zero_copy_only=False).copy()
    values[:3_000] = 0.5
    far = 3_000 + int(np.flatnonzero(part_of(TABLE["source_id"].to_numpy()[3_000:]) == Part.TRAIN)[0])
    values[far] = 1e4
    table = TABLE.set_column(TABLE.column_names.index("a_g_val"), "a_g_val", pa.array(values, mask=np.isnan(values)))
    train = Statistics.from_table(table, DR2).train
    transform = Transform.fit(SEED16, train, DR2, "condition", "min-max")
    codec = Codec.fit(transform, train, errors=False)
    inputs = transform.forward(table)
    stars = there_and_back(codec, inputs, np.empty((len(table), 0), np.float32))
    column = transform.slots["a_g_val"].start
    near = (values < 3) & np.isfinite(values)
    off = np.abs(stars.values.numpy() - inputs.values)[:, column]
    assert codec.unit[column] < 1e-3
    assert np.median(off[near]) < 1e-8
    assert off[near].max() < 3e-6
    assert off[far] <= TAIL_ERROR * inputs.values[far, column]


def test_a_star_of_25_columns_takes_tens_of_bytes() -> None:
    """As the description of training.buffer_rows says."""
    transform = fitted(TABLE)
    assert 2 * Codec.fit(transform, TRAIN, errors=False).width == 2 * (9 + 3 + 1)
    assert 2 * Codec.fit(transform, TRAIN, errors=True).width == 2 * (9 + 3 + 1 + 9)
