"""The transform in torch gives what numpy's gives, to the last digit of float32, and a model that uses it the same latents and stars."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from small_run import fetched

from gaiadask.config.sections import Config
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import OutOfMemoryError
from gaiadask.inputs.scaling import QuantileMap
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model import StarModel
from gaiadask.model.card import latent_names
from gaiadask.model.device import Batches
from gaiadask.model.device_transform import DeviceTransform, RawStars
from gaiadask.release.dr2 import DR2, SEED16, SEED25

CPU = torch.device("cpu")
ROUNDING = 2.0**-23
"""Of a float32: the logarithms of two libraries differ in the last bit of float64, which rarely tips it."""
EXTREMES = np.array([0.0, 1.0, -1.0, 1e-30, 5e-324, 1e30, -1e30, 1e300, 1.7e308, -1.7e308])


def on_cpu(transform: Transform) -> DeviceTransform:
    device = DeviceTransform.of(transform, CPU)
    assert device is not None
    return device


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    """Mock stars with nulls and errors."""
    return fetched(small_run)


def with_errors(table: pa.Table, random: np.random.Generator) -> pa.Table:
    """The stars, and errors of what has some in the release, a tenth of them null."""
    for name in ("parallax_error", "pmra_error", "phot_g_mean_flux_error"):
        if name not in table.column_names:
            values = random.lognormal(size=len(table)).astype(str(DR2.columns[name].dtype).replace("double", "float64"))
            table = table.append_column(name, pa.array(values, DR2.columns[name].dtype, mask=random.random(len(table)) < 0.1))
    return table


@pytest.mark.slow
@pytest.mark.parametrize("position", ["condition", "input", "degrees"])
@pytest.mark.parametrize("scaling", ["quantile", "min-max", "iqr"])
def test_network_inputs_and_sigma_are_those_of_numpy(stars: pa.Table, scaling: str, position: str) -> None:
    stars = with_errors(stars, np.random.default_rng(0))
    columns = SEED25 if set(SEED25) <= set(stars.column_names) else SEED16
    transform = Transform.fit(columns, Statistics.from_table(stars, DR2).train, DR2, position, scaling)  # type: ignore[arg-type]
    assert transform.null_groups
    device = on_cpu(transform)
    inputs = device.forward(device.raw(stars, transform.null_bits(stars), errors=True))
    expected, sigma = transform.forward(stars), transform.sigma(stars)
    assert inputs.values.dtype == torch.float32
    assert (~expected.present).any() and (sigma > 0).any()
    np.testing.assert_array_equal(inputs.present.numpy(), expected.present)
    np.testing.assert_allclose(inputs.values.numpy(), expected.values, rtol=ROUNDING, atol=1e-9)
    np.testing.assert_allclose(inputs.condition.numpy(), expected.condition, rtol=ROUNDING, atol=1e-9)
    # At a knot the slope jumps: a star there may have that of either piece.
    off = ~np.isclose(inputs.sigma.numpy(), sigma, rtol=ROUNDING, atol=0)
    assert off.mean() < 1e-3
    for name, slot in transform.slots.items():
        at_knots = np.isin(stars[name].to_numpy(), getattr(transform.encodings[name], "values", []))
        assert not (off[:, slot.start] & ~at_knots).any(), name
    assert device.forward(device.raw(stars, transform.null_bits(stars))).sigma.shape == (len(stars), 0)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["quantile", "min-max", "iqr"])
def test_columns_come_back_as_those_of_numpy(stars: pa.Table, scaling: str) -> None:
    transform = Transform.fit(SEED16, Statistics.from_table(stars, DR2).train, DR2, "input", scaling)
    random = np.random.default_rng(0)
    values = transform.forward(stars).values.astype(np.float64) + 0.01 * random.standard_normal((len(stars), transform.n_values))
    values[: len(EXTREMES), : transform.vector_start] = EXTREMES[:, None]
    values[len(EXTREMES), 0] = np.nan
    device = on_cpu(transform)
    free = device.columns_of(device.inverse(torch.from_numpy(values)))
    with np.errstate(invalid="ignore"):
        for name, slot in transform.slots.items():
            expected = transform.encodings[name].inverse(values[:, slot.values])
            np.testing.assert_allclose(free[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


TRAINED_ON = {
    "next to nothing": np.array([0.0, 1e-300]),
    "all of float64": np.array([-1.7e308, 1.7e308]),
    "one outlier": np.array([1.0, 1.0 + 2**-52, 1e30]),
    "heavy tails": np.random.default_rng(0).standard_cauchy(5_000),
    "crowded at one end": 10.0 ** np.random.default_rng(1).uniform(-9, 3, 5_000),
}


@pytest.mark.parametrize("train", TRAINED_ON.values(), ids=list(TRAINED_ON))
def test_any_finite_number_has_the_same_score(train: NDArray[np.float64]) -> None:
    """Beside a column of another kind, whose table needs other halvings."""
    fitted = {
        "pmra": QuantileMap.fit(QuantileSketch.from_values(train)),
        "pmdec": QuantileMap.fit(QuantileSketch.from_values([1.0, 2.0])),
    }
    transform = Transform(("pmra", "pmdec"), ("pmra", "pmdec"), (), {}, "condition", fitted, DR2)
    x = np.concatenate([EXTREMES, train, np.random.default_rng(2).normal(size=200) * 10.0 ** np.linspace(-320, 300, 200)])
    zeros = np.zeros(len(x))
    table = pa.table({"ra": zeros, "dec": zeros, "pmra": x, "pmdec": x})
    device = on_cpu(transform)
    inputs = device.forward(device.raw(table, transform.null_bits(table)))
    np.testing.assert_allclose(inputs.values.numpy(), transform.forward(table).values, rtol=ROUNDING, atol=1e-9)
    scores = np.concatenate([fitted["pmra"].score_of(x), [5000.0, -5000.0, 1e308, -1e308]])
    back = device.columns_of(device.inverse(torch.from_numpy(np.stack([scores, scores], axis=1))))
    for name, encoding in fitted.items():
        np.testing.assert_allclose(back[name], encoding.value_of(scores), rtol=QuantileMap.ROUND_TRIP, atol=1e-300, err_msg=name)


# Models ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def through_torch(star_model: StarModel) -> StarModel:
    """The model as it is on a GPU: its transform in torch. Its batches are small."""
    model = StarModel(star_model.network, star_model.transform, star_model.card)
    vars(model)["device_transform"] = on_cpu(model.transform)
    vars(model)["_batches"] = Batches(700, least=100)
    return model


def test_latents_and_stars_are_the_same_by_either(stars: pa.Table, star_model: StarModel, through_torch: StarModel) -> None:
    stars = stars.slice(0, 1_500)
    latents, others = encode(stars, through_torch), encode(stars, star_model)
    for name in latents.column_names:
        if name in latent_names(star_model.latents):
            np.testing.assert_allclose(latents[name], others[name], rtol=1e-5, atol=2e-6)
        else:
            assert latents[name].equals(others[name]), name
    for impute in (False, True):
        rebuilt, expected = (decode(others, model, impute=impute) for model in (through_torch, star_model))
        assert rebuilt.schema.equals(expected.schema)
        for name in rebuilt.column_names:
            np.testing.assert_array_equal(rebuilt[name].is_null(), expected[name].is_null())
            np.testing.assert_allclose(rebuilt[name].drop_null(), expected[name].drop_null(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_batches_are_halved_where_memory_is_short(
    stars: pa.Table,
    star_model: StarModel,
    through_torch: StarModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forward, most = DeviceTransform.forward, 200

    def short_of_memory(self: DeviceTransform, raw: RawStars) -> object:
        if raw.numbers.shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
        return forward(self, raw)

    monkeypatch.setattr(DeviceTransform, "forward", short_of_memory)
    expected = encode(stars, star_model)
    np.testing.assert_allclose(encode(stars, through_torch)["z00"], expected["z00"], rtol=1e-5, atol=2e-6)
    assert [r.message.split(": ")[-1] for r in caplog.records] == ["350 stars at once from now on", "175 stars at once from now on"]
    most = 50
    with pytest.raises(
        OutOfMemoryError, match=r"no memory for 175 stars at once \(CUDA out of memory. .* GiB.\): .* lower cluster.workers"
    ):
        encode(stars, through_torch)


def test_threads_that_have_no_memory_for_the_same_batch_halve_it_once() -> None:
    together = threading.Barrier(2)

    def start(rows: slice) -> Callable[[], None]:
        if batches.rows == 2_000:
            together.wait(20)  # both have tried it before one halves it
        if rows.stop - rows.start > 1_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: None

    batches = Batches(2_000, least=1_000)
    with ThreadPoolExecutor(2) as threads:
        for ended in [threads.submit(batches.run, 5_000, start) for _ in range(2)]:
            ended.result(30)
    assert batches.rows == 1_000


def test_a_network_of_whole_batches_is_not_given_smaller_ones(star_model: StarModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its latents depend on the stars beside each."""
    model = StarModel(star_model.network, star_model.transform, star_model.card)
    monkeypatch.setattr(type(model.network), "depends_on_batch", property(lambda network: True))
    assert model._batches.least == model._batches.rows
