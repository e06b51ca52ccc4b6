"""Imputed values: within what train stars have, right as often as they say, or null with a reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hidden_values import coverages
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import fetched

from gaiadask.config.sections import Config
from gaiadask.decode import decode, decoded_schema
from gaiadask.encode import encode
from gaiadask.errors import DataError
from gaiadask.impute import _summary, check_imputes, imputable, not_imputed, tell_not_imputed
from gaiadask.inputs.nulls import NULL_MASK
from gaiadask.model import StarModel
from gaiadask.model.card import IMPUTED_DRAWS, ValueErrors
from gaiadask.split import Part, part_of
from gaiadask.training.codes import Batch
from gaiadask.training.hidden import hidden


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    return fetched(small_run)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_the_latents_and_the_nulls_values_are_what_train_stars_have(data: st.DataObject, star_model: StarModel) -> None:
    transform, rows = star_model.transform, 40
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([0.1, 1.0, 10.0]))
    z = star_model.latents_from(scale * random.standard_normal((rows, star_model.latents)))
    bits = [i for i, name in enumerate(transform.columns) if name in imputable(star_model)]
    masks = (random.random((rows, len(bits))) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))) @ (1 << np.array(bits))
    sky = {"ra": random.uniform(0, 360, rows), "dec": random.uniform(-90, 90, rows)}
    latents = pa.table({**sky, NULL_MASK: masks, **{name: z[:, i] for i, name in enumerate(star_model.latent_columns)}})
    filled = decode(latents, star_model, impute=True)
    for bit in bits:
        name = transform.columns[bit]
        null = pa.array((masks >> bit & 1).astype(bool))
        told, std = filled[name].filter(null), filled[f"{name}_std"].filter(null)
        assert told.is_valid().equals(std.is_valid()), name
        low, high = transform.limits[name]
        assert pc.all(pc.and_(pc.greater_equal(told, low), pc.less_equal(told, high))).as_py() is not False, name
        assert pc.all(pc.less_equal(std, high - low)).as_py() is not False, name
        if name in transform.free:
            assert told.null_count == 0, name


@pytest.mark.slow
def test_hidden_values_lie_within_one_and_two_deviations_as_often_as_they_should(stars: pa.Table, star_model: StarModel) -> None:
    test = stars.filter(pa.array(part_of(stars["source_id"].to_numpy()) == Part.TEST))
    # Of the 500 validation stars, hardly any lack other columns, so that little is known of what these stars lack beside.
    found = {each.column: each for each in coverages(test, star_model) if stars[each.column].null_count > 0.05 * len(stars)}
    assert {"teff_val", "radius_val", "radial_velocity"} <= set(found)
    for name, one in found.items():
        # How wide they are is known from some hundred stars: to about a tenth.
        assert one.within_1 > 0.55 and one.within_2 > 0.85, one
        assert one.error <= 1.3 * one.error_of_median, one
        low, high = star_model.transform.limits[name]
        assert low <= one.lowest <= one.highest <= high
    assert found["teff_val"].error < 0.8 * found["teff_val"].error_of_median


@pytest.mark.slow
def test_what_cannot_be_rated_stays_null_and_says_why(
    stars: pa.Table, star_model: StarModel, caplog: pytest.LogCaptureFixture
) -> None:
    errors = star_model.card.errors
    left = ValueErrors(rebuilt=errors.rebuilt, hidden={name: one for name, one in errors.hidden.items() if name != "teff_val"})
    model = dataclasses.replace(star_model, card=star_model.card.model_copy(update={"errors": left}))
    assert set(not_imputed(model)) == {"teff_val", "radius_val", "lum_val"} and not not_imputed(star_model)
    filled = decode(encode(stars, model), model, impute=True)
    assert filled["teff_val"].null_count == stars["teff_val"].null_count > 0
    assert filled["teff_val_std"].null_count == len(stars)
    assert filled["radial_velocity"].null_count == 0
    description = decoded_schema(model, True).field("teff_val_std").metadata[b"description"].decode()
    assert "too few validation stars" in description
    tell_not_imputed(model)
    assert "too few validation stars have them" in caplog.text and "teff_val" in caplog.text


def test_a_card_of_an_older_version_tells_nothing_of_hidden_values(star_model: StarModel) -> None:
    old = {"rebuilt": {"teff_val": 0.1}, "hidden": {"teff_val": {"offset": 0.0, "slope": 1.0, "error": 0.3}}}
    errors = ValueErrors.model_validate(old)
    assert errors.rebuilt == old["rebuilt"] and not errors.hidden
    model = dataclasses.replace(star_model, card=star_model.card.model_copy(update={"errors": errors}))
    with pytest.raises(DataError, match=r"older version. Train again with `gaiadask train CONFIG --replace train`"):
        check_imputes(model)


def test_the_deviation_is_as_wide_as_the_tails_ask_for() -> None:
    levels = (np.arange(IMPUTED_DRAWS) + 0.5) / IMPUTED_DRAWS - 0.5
    even, heavy = levels, levels**5 * 100
    draws = np.stack([even, heavy, np.where(np.arange(IMPUTED_DRAWS) < 20, even, np.nan), np.full(IMPUTED_DRAWS, np.nan)], axis=1)
    draws[:17, 2] = np.nan
    middle, std = _summary(draws)
    assert middle[:2] == pytest.approx(0, abs=1e-6) and np.isnan(middle[2:]).all() and np.isnan(std[2:]).all()
    assert std[0] == pytest.approx(0.34, abs=0.01)
    assert _summary(np.repeat([[1.0], [2.0]], IMPUTED_DRAWS // 2, axis=0), shared=True)[0] == 1.0, "a value that stars have"
    for values, one in zip((even, heavy), std, strict=False):
        assert (np.abs(values) <= one).mean() >= 0.65 and (np.abs(values) <= 2 * one).mean() >= 0.93


def test_values_are_hidden_as_stars_lack_them(stars: pa.Table, star_model: StarModel) -> None:
    transform = star_model.transform
    inputs = transform.forward(stars)
    batch = Batch(*map(torch.from_numpy, (*inputs, np.empty((len(stars), 0), np.float32))))
    first = transform.n_conditions - len(transform.null_groups)
    seen = {tuple(row) for row in inputs.condition[:, first:].tolist()}
    for number, group in enumerate(transform.null_groups):
        without = hidden(transform, batch, number)
        assert len(without) == (inputs.condition[:, first + number] == 0).sum()
        assert (without.condition[:, first + number] == 1).all()
        for bit in range(len(transform.null_groups)):
            null = without.condition[:, first + bit] == 1
            assert (without.values[null][:, list(transform.null_numbers[bit])] == 0).all()
        # A star that lacked nothing lacks now what another star lacks in truth.
        whole = (inputs.condition[:, first:] == 0).all(1)[inputs.condition[:, first + number] == 0]
        assert {tuple(row) for row in without.condition[torch.from_numpy(whole)][:, first:].tolist()} <= seen, group
