"""Columns in which many stars share a value: what was shared comes back as it was, and the rest as before."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from gaiadask.inputs.encoding import encoding_from_json, fit_encoding
from gaiadask.inputs.masses import MassMap, kind_of, shared_values
from gaiadask.inputs.scaling import NORMAL_IQR, QuantileMap
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.cells import Cells, Drawn
from gaiadask.model.device_transform import DeviceTransform
from gaiadask.model.files import describe_columns
from gaiadask.model.flow import Flow, FlowShape
from gaiadask.prior.artifact import point_masses
from gaiadask.release.dr2 import COLUMNS, DR2
from gaiadask.training.rounding import allocated_bits

RANDOM = np.random.default_rng(3)
COUNTS = RANDOM.poisson(14, 5_000).astype(float)
FLAGS = (RANDOM.random(5_000) < 0.02).astype(float)
NOISE = np.where(RANDOM.random(5_000) < 0.4, 0.0, RANDOM.lognormal(size=5_000))
TEMPLATES = RANDOM.choice([3500.0, 4000.0, 4750.0, 5500.0], 5_000)
SHARED = {
    "astrometric_matched_observations": (COUNTS, "count"),
    "duplicated_source": (FLAGS, "flag"),
    "astrometric_excess_noise": (NOISE, "point mass"),
    "rv_template_teff": (TEMPLATES, "levels"),
}


def encoding(name: str, values: NDArray[np.float64]) -> MassMap:
    """Of a column with these values, as a model's card has it."""
    fitted = fit_encoding(COLUMNS[name], QuantileSketch.from_values(values), "quantile")
    again = encoding_from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    assert isinstance(again, MassMap)
    return again


@pytest.mark.parametrize("name", SHARED)
def test_a_value_that_many_share_comes_back_from_anywhere_in_its_cell(name: str) -> None:
    values, kind = SHARED[name]
    fitted = encoding(name, values)
    assert kind_of(COLUMNS[name], fitted) == kind
    low, high, centre = fitted.cells
    assert (low < centre).all() and (centre < high).all() and (high[:-1] < low[1:]).all()
    np.testing.assert_array_equal(fitted.value_of(low), fitted.masses)
    np.testing.assert_array_equal(fitted.value_of(high), fitted.masses)
    for part in (0.01, 0.3, 0.5, 0.99):
        np.testing.assert_array_equal(fitted.value_of((low + part * (high - low)).astype(np.float32)), fitted.masses)
    np.testing.assert_array_equal(fitted.score_of(fitted.masses), centre)
    np.testing.assert_allclose(fitted.value_of(fitted.score_of(values)), values, rtol=1e-9)
    # As much of a normal distribution as stars have it, but for what is cut off the outermost cells.
    shares = [(values == mass).mean() for mass in fitted.masses]
    np.testing.assert_allclose(norm.cdf(high) - norm.cdf(low), shares, atol=3e-3)


def test_what_is_drawn_from_a_normal_is_as_the_stars_are_and_of_their_kind() -> None:
    scores = np.random.default_rng(4).standard_normal(20_000)
    for name, (values, kind) in SHARED.items():
        drawn = encoding(name, values).value_of(scores)
        if kind == "point mass":
            assert (drawn == 0).mean() == pytest.approx((values == 0).mean(), abs=0.02)
            assert np.median(drawn[drawn > 0]) == pytest.approx(np.median(values[values > 0]), rel=0.1)
        elif kind == "count":  # between two cells lies a thousandth
            assert (drawn == np.rint(drawn)).mean() > 0.97
            assert drawn.mean() == pytest.approx(14, abs=0.2)
        else:  # of a flag as `Transform.inverse` rounds it
            assert set(np.rint(drawn[np.abs(scores) < 3])) == set(values)


@pytest.mark.slow
@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=8, unique=True),
    st.lists(st.integers(-(2**40), 2**40) | st.integers(-3, 3), max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_integers_come_back_as_integers(known: list[int], others: list[int]) -> None:
    """Those that train stars have exactly, all others rounded."""
    fitted = encoding("priam_flags", np.repeat(np.array(known, float), 30))
    x = np.array([*known, *others, 0], float)
    back = fitted.value_of(fitted.score_of(x))
    np.testing.assert_array_equal(back[: len(known)], x[: len(known)])
    # To a billionth of the distance, as `QuantileMap` says.
    assert (np.abs(np.rint(back) - x) <= 2e-9 * np.abs(x - fitted.base.location) + 0.5).all()
    order = np.argsort(x)
    assert (np.diff(fitted.score_of(x)[order]) >= -1e-12).all()


@given(st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=30), st.sampled_from([0.0, 1.0, -1e30]))
@settings(max_examples=60, deadline=None)
def test_a_mass_is_told_from_all_that_is_not_it(others: list[float], mass: float) -> None:
    train = np.array([*others, *others, mass + 1, *[mass] * 20])
    sketch = QuantileSketch.from_values(train)
    fitted = MassMap.fit(sketch, sketch.values == mass, whole=False)
    x = np.array([*others, mass, np.nextafter(mass, 1e300), mass / 2 + 1, 1e250])
    back = fitted.value_of(fitted.score_of(x))
    assert (back[x == mass] == mass).all()
    away = np.abs(x / 2 - fitted.base.location / 2) * 2 + np.ldexp(1.0, fitted.base.exponent) + np.abs(x)
    assert (np.abs(back - x) <= 1e-8 * away).all()
    scores = fitted.score_of(np.sort(x))
    assert np.isfinite(scores).all() and (np.diff(scores) >= -1e-12).all()


def test_a_rare_value_has_a_cell_that_can_be_told_in_float32() -> None:
    values = np.repeat([0.0, 1.0, 2.0], [10**6, 1, 10**6])
    fitted = encoding("phot_proc_mode", values)
    low, high, _ = fitted.cells
    assert high[1] - low[1] >= 1e-3 and (low[1:] > high[:-1]).all()
    np.testing.assert_array_equal(fitted.value_of(fitted.score_of(np.arange(3.0)).astype(np.float32)), np.arange(3.0))


def test_measured_numbers_have_no_cells() -> None:
    sketch = QuantileSketch.from_values(np.random.default_rng(0).standard_normal(3_000))
    assert not shared_values(sketch).any()
    assert isinstance(fit_encoding(COLUMNS["pmra"], sketch, "quantile"), QuantileMap)
    assert kind_of(COLUMNS["pmra"], fit_encoding(COLUMNS["pmra"], sketch, "quantile")) == "continuous"
    assert kind_of(COLUMNS["phot_g_n_obs"], fit_encoding(COLUMNS["phot_g_n_obs"], sketch, "quantile")) == "integer"


def test_the_smooth_inverse_goes_through_the_masses_and_rises() -> None:
    for name, (values, _) in SHARED.items():
        fitted = encoding(name, values)
        np.testing.assert_allclose(fitted.smooth_value_of(fitted.cells.centre), fitted.masses, rtol=1e-12)
        assert (np.diff(fitted.smooth_value_of(np.linspace(-5, 5, 400))) >= 0).all()


# A table of all kinds -----------------------------------------------------------------------------------------------
def table_of_all_kinds() -> pa.Table:
    random = np.random.default_rng(8)
    n = len(COUNTS)
    columns = {name: pa.array(values, pa.float64()).cast(COLUMNS[name].dtype) for name, (values, _) in SHARED.items()}
    lacking = random.random(n) < 0.3
    columns["rv_template_teff"] = pa.array(TEMPLATES.astype(np.float32), mask=lacking)
    columns |= {
        "source_id": pa.array(np.arange(n) << 35),
        "ra": pa.array(random.uniform(0, 360, n)),
        "dec": pa.array(random.uniform(-80, 80, n)),
        "ref_epoch": pa.array(np.full(n, 2015.5)),
        "pmra": pa.array(random.standard_normal(n)),
        "pmra_error": pa.array(random.lognormal(-2, 0.2, n)),
        "phot_g_n_obs": pa.array(random.integers(50, 900, n).astype(np.int32)),
    }
    return pa.table(columns)


TABLE = table_of_all_kinds()
NAMES = tuple(name for name in TABLE.column_names if name != "source_id")
TRANSFORM = Transform.fit(NAMES, Statistics.from_table(TABLE, DR2).train, DR2, "condition")


def test_a_transform_encodes_columns_as_what_they_are() -> None:
    kinds = {column.name: (column.role, column.kind) for column in describe_columns(TRANSFORM)}
    assert kinds == {name: ("free", kind) for name, (_, kind) in SHARED.items()} | {
        "ra": ("position", None),
        "dec": ("position", None),
        "ref_epoch": ("constant", None),
        "pmra": ("free", "continuous"),
        "pmra_error": ("free", "continuous"),
        "phot_g_n_obs": ("free", "integer"),
    }
    again = Transform.from_json(json.loads(json.dumps(TRANSFORM.to_json(), allow_nan=False)))
    inputs = again.forward(TABLE)
    back = again.inverse(inputs.values, TABLE["ra"], TABLE["dec"])
    for name in (*SHARED, "phot_g_n_obs", "ref_epoch"):
        known = TABLE[name].is_valid().to_numpy()
        np.testing.assert_allclose(back[name][known], TABLE[name].cast(pa.float64()).to_numpy()[known], rtol=1e-5, err_msg=name)
        if name != "astrometric_excess_noise":
            np.testing.assert_array_equal(back[name][known], TABLE[name].cast(pa.float64()).to_numpy()[known])
    assert set(again.cells) == {again.slots[name].start for name in SHARED}
    assert not point_masses(Statistics.from_table(TABLE, DR2).train, again)  # they are in the encodings


def test_torch_gives_the_same() -> None:
    device = DeviceTransform.of(TRANSFORM, torch.device("cpu"))
    assert device is not None
    inputs = device.forward(device.raw(TABLE, TRANSFORM.null_bits(TABLE), errors=True))
    for found, expected in zip(inputs, TRANSFORM.forward(TABLE), strict=False):
        np.testing.assert_allclose(found, expected, rtol=2**-23, atol=1e-9)
    assert np.isclose(inputs.sigma, TRANSFORM.sigma(TABLE), rtol=1e-6).mean() > 0.999  # at a knot slopes are of either side
    values = np.random.default_rng(9).normal(0, 1.5, (3_000, TRANSFORM.n_values)).astype(np.float32)
    back = TRANSFORM.rounded(device.columns_of(device.inverse(torch.from_numpy(values))))
    expected = TRANSFORM.inverse(values, np.zeros(3_000), np.zeros(3_000))
    for name in TRANSFORM.free:
        np.testing.assert_allclose(back[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


# The flow -----------------------------------------------------------------------------------------------------------
INPUTS = [torch.from_numpy(part) for part in TRANSFORM.forward(TABLE)]


def flow(bits: int) -> Flow:
    torch.manual_seed(0)
    groups = tuple(tuple(TRANSFORM.slots[name].start for name in group) for group in TRANSFORM.null_groups)
    network = Flow(FlowShape(TRANSFORM.n_values, TRANSFORM.n_conditions, (24, 24), groups, bits), Cells.of(TRANSFORM.cells))
    network.start_linear(INPUTS[0], 0.003)
    with torch.no_grad():
        network.last.weight.mul_(20)
    return network


def test_a_latent_with_enough_bits_gives_a_shared_value_back() -> None:
    network = flow(16 * TRANSFORM.n_values)
    values, present, condition = INPUTS
    errors = network.errors_by_bits(values, condition)
    numbers = {name: TRANSFORM.slots[name].start for name in TRANSFORM.free}
    few = [name for name in SHARED if name != "astrometric_excess_noise"]
    assert {name for name in TRANSFORM.free if errors[numbers[name]]} == set(few)
    enough = [len(each) - 1 if each else 16 for each in errors]
    assert all(errors[numbers[name]][-1] < 1e-3 < errors[numbers[name]][0] for name in few)
    for bits in (3, 16):
        given = [min(bits, each) for each in enough]
        rebuilt = network.decode(network.mean(values, condition, torch.tensor(given)), condition)
        for name in few:
            own, there = numbers[name], present[:, numbers[name]]
            off = (rebuilt[there, own] - values[there, own]).abs().mean().item() / NORMAL_IQR
            # What rounding does to values before it changes the rest a little.
            assert off == pytest.approx(errors[own][given[own]], rel=0.5, abs=0.01), (name, bits)
    zero = torch.from_numpy(NOISE == 0)
    assert (
        rebuilt[zero, numbers["astrometric_excess_noise"]] == values[zero, numbers["astrometric_excess_noise"]]
    ).float().mean() > 0.995


def test_bits_go_where_a_value_would_be_wrong() -> None:
    assert allocated_bits([0.1, 0.1, 0.1], 9, [[0.5, 0.0], [], []]) == [1, 4, 4]
    assert allocated_bits([0.1, 0.1], 7, [[0.5, 0.5, 0.5, 0.0], []]) == [3, 4]
    assert allocated_bits([0.1, 0.1], 9, [[0.0], []]) == [0, 9]


def test_noise_in_a_cell_is_normal_there_and_counts_what_the_value_says() -> None:
    """Of values that depend on no others the bound is their entropy, and of one that nearly all stars have nearly nothing."""
    cells = Cells.of(TRANSFORM.cells)
    values, noise = INPUTS[0], torch.Generator().manual_seed(3)
    uniform = torch.rand(values.shape, generator=noise)
    drawn = cells.spread_out(values, uniform, Drawn(values, torch.zeros_like(values)))
    for name, (of_stars, kind) in SHARED.items():
        own = TRANSFORM.slots[name].start
        there = INPUTS[1][:, own]
        score, entropy = drawn.values[there, own], drawn.entropy[there, own]
        # KL = E[log noise's density - log normal's density].
        bound = (-entropy + 0.5 * score.square() + 0.5 * np.log(2 * np.pi)).mean().item()
        if kind == "point mass":
            zero = torch.from_numpy(of_stars == 0)
            assert score[zero].max() < norm.ppf(0.42) and (score[~zero] == values[there, own][~zero]).all()
            continue
        shares = np.unique(of_stars, return_counts=True)[1] / len(of_stars)
        assert bound == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.05)
        assert abs(score.mean()) < 0.05 and score.std() == pytest.approx(1, abs=0.05)
    inside = cells.widths(values) > 0
    back = cells.put_back(values, values + 1)
    assert (back[inside] == values[inside]).all() and (back[~inside] == values[~inside] + 1).all()
    widths = cells.widths(values)
    assert (widths[:, TRANSFORM.slots["pmra"].start] == 0).all()
    assert (widths[:, TRANSFORM.slots["duplicated_source"].start] > 0.1).all()


def test_what_is_drawn_from_a_flow_is_of_its_kind() -> None:
    network, condition = flow(16 * TRANSFORM.n_values), INPUTS[2]
    with torch.no_grad():
        network.last.weight.zero_()
    scores = torch.randn(len(condition), TRANSFORM.n_values, generator=torch.Generator().manual_seed(5))
    drawn = TRANSFORM.inverse(network.decode(torch.tanh(scores / network.squash), condition).numpy(), TABLE["ra"], TABLE["dec"])
    assert set(drawn["duplicated_source"]) == {0.0, 1.0}
    there = condition[:, -1].numpy() == 0
    assert set(drawn["rv_template_teff"][there]) <= {3500.0, 4000.0, 4750.0, 5500.0}
    for name in ("phot_g_n_obs", "astrometric_matched_observations"):
        np.testing.assert_array_equal(drawn[name], np.rint(drawn[name]))
    assert (drawn["astrometric_excess_noise"] == 0).mean() == pytest.approx((NOISE == 0).mean(), abs=0.1)
    assert (drawn["ref_epoch"] == 2015.5).all()
