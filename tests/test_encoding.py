"""Encodings of columns: a further one is a new file and one line of a table."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from dummies.angle import ANGLE
from made_up import made_up_stars, untrained

from gaiadask.config.model import ModelConfig
from gaiadask.config.toml import parse_config
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import ConfigurationError
from gaiadask.impute import imputable
from gaiadask.inputs.encoding import ENCODINGS, encoding_from_json, fit_encoding
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import load_model, new_network, save_model
from gaiadask.prior.artifact import point_masses
from gaiadask.release.dr2 import DR2, SEED16
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.codes import Batch
from gaiadask.training.group import OneRank
from gaiadask.training.hidden import value_errors
from gaiadask.training.objective import Objective, validate

TABLE = made_up_stars(2_000, seed=5, nulls=0.2)


@pytest.fixture
def transform(monkeypatch: pytest.MonkeyPatch) -> Transform:
    """Position in degrees, right ascension as an angle of two network values."""
    monkeypatch.setitem(ENCODINGS, "angle", ANGLE)
    config = parse_config({"model": {"scaling": "angle", "position": "degrees"}}).model
    return Transform.fit(SEED16, Statistics.from_table(TABLE, DR2).train, DR2, config.position, config.scaling)


def test_a_column_of_two_values_has_a_slot_of_two(transform: Transform) -> None:
    assert transform.n_values == len(transform.free) + 1 == len(transform.spread)
    assert transform.value_names == ("ra[0]", "ra[1]", *transform.free[1:])
    assert transform.value_columns == ("ra", *transform.free)
    assert transform.slots["ra"].values == slice(0, 2)
    assert transform.slots["dec"].values == slice(2, 3)
    inputs = transform.forward(TABLE)
    assert inputs.values.shape == (2_000, transform.n_values)
    np.testing.assert_allclose(inputs.values[:, :2].std(axis=0), 1, atol=0.05)
    assert transform.sigma(TABLE.append_column("ra_error", pa.array(np.full(2_000, 3.6e6))))[:, :2].max() == pytest.approx(
        np.sqrt(2) * np.pi / 180, rel=1e-3
    )


def test_it_goes_through_json_network_and_back(transform: Transform) -> None:
    record = json.loads(json.dumps(transform.to_json(), allow_nan=False))
    assert record["maps"]["ra"] == {"kind": "angle"}
    again = Transform.from_json(record)
    assert again.to_json() == transform.to_json()
    inputs = again.forward(TABLE)
    for before, after in zip(transform.forward(TABLE), inputs, strict=True):
        np.testing.assert_array_equal(before, after)
    back = again.inverse(inputs.values)
    np.testing.assert_allclose(back["ra"], TABLE["ra"].to_numpy(), atol=1e-4)
    np.testing.assert_allclose(back["dec"], TABLE["dec"].to_numpy(), atol=1e-4)

    config, store = ModelConfig(latents=11, hidden=(8,), scaling="angle", position="degrees"), Store("memory://encoding")
    network = new_network(transform, config)
    network.start_linear(torch.from_numpy(inputs.values), 0.003)  # as many latents as values: PCA rebuilds nearly exactly
    stars = Batch(*map(torch.from_numpy, (*inputs, np.empty((2_000, 0), np.float32))))
    objective = Objective.of(config.model_copy(update={"error_share": 0.0}), transform, torch.device("cpu"))
    assert len(validate(network, stars, objective, 1.0, OneRank()).median_error) == transform.n_values
    outcome = untrained(config, "k").model_copy(update={"errors": value_errors(network, transform, stars)})
    save_model(store, RunPaths("r"), network, transform, outcome)
    model = load_model(store, RunPaths("r"))
    assert set(model.card.errors.rebuilt) == set(transform.value_names)

    rebuilt = decode(encode(TABLE, model), model, "model")
    for name in transform.free:
        assert rebuilt[name].is_null().equals(TABLE[name].is_null()), name
    off = (rebuilt["ra"].to_numpy() - TABLE["ra"].to_numpy() + 180) % 360 - 180
    assert np.median(np.abs(off)) < 2
    guessed = decode(encode(TABLE, model), model, "model", impute=True)
    assert imputable(model)
    assert guessed["teff_val"].null_count == 0


def test_a_column_of_several_values_has_no_point_masses(transform: Transform) -> None:
    assert "ra" not in point_masses(Statistics.from_table(TABLE, DR2).train, transform)


def test_an_unknown_encoding_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"scaling: Input should be 'quantile', 'min-max' or 'iqr' \(found 'angle'\)"):
        parse_config({"model": {"scaling": "angle"}})
    with pytest.raises(ConfigurationError, match=r"unknown scaling 'angle': expected one of \['quantile', 'min-max', 'iqr'\]"):
        fit_encoding(DR2.columns["ra"], QuantileSketch.from_values([1.0, 2.0]), "angle")
    with pytest.raises(
        ValueError, match=r"unknown encoding 'angle' of a column: this gaiadask has \['quantile', 'masses', 'linear'\]"
    ):
        encoding_from_json({"kind": "angle"})
