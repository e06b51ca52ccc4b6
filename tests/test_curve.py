"""Error against bits a star: what each code makes of a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import ndtr
from small_run import fetched

from gaiadask.config.sections import Config
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.model import StarModel
from gaiadask.quality.baseline import Moments, binned, fit_pca, pca_codes, pca_rebuild
from gaiadask.quality.curve import rate_curve
from gaiadask.quality.reconstruction import reconstruction
from gaiadask.quality.records import RateCurve
from gaiadask.release.dr2 import DR2


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    return fetched(small_run).slice(0, 4_000)


@pytest.fixture(scope="module")
def curve(stars: pa.Table, star_model: StarModel) -> RateCurve:
    train = Moments.of(star_model.transform.forward(stars).values)
    curve = rate_curve(star_model, stars, train)
    assert curve is not None
    return curve


def test_bins_have_equal_rank() -> None:
    scores = np.random.default_rng(0).standard_normal((1_000, 3))
    found = binned(scores, [0, 1, 5])
    assert (found[:, 0] == 0).all() and set(np.unique(found[:, 1].round(4))) == {-0.6745, 0.6745}
    assert np.abs(ndtr(found[:, 2]) - ndtr(scores[:, 2])).max() <= 2**-6
    assert np.isfinite(binned(np.array([[-40.0], [40.0]]), [4])).all()


def test_components_with_many_bits_are_those_without_any() -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal((5_000, 4)) @ random.standard_normal((4, 4))).astype(np.float32)
    pca = fit_pca(Moments.of(values), 3)
    assert np.quantile(np.abs(pca_codes(pca, values, 48) - pca_rebuild(pca, values)), 0.99) < 1e-3
    errors = [np.median(np.abs(pca_codes(pca, values, bits) - pca_rebuild(pca, values))) for bits in (12, 15, 18)]
    assert errors[0] > 1.7 * errors[1] > 2.9 * errors[2]


@pytest.mark.slow
def test_more_bits_are_better_until_the_network_has_no_more_to_say(
    curve: RateCurve, star_model: StarModel, stars: pa.Table
) -> None:
    assert [point.bits for point in curve.codes["model"]] == [24, 36, 48, 64, 80, 96, 108]
    assert curve.stars == 4_000 and curve.stored_bits == 72 > curve.entropy_bits > 48
    for name, least in (("model", 1.2), ("quantiles", 2.5), ("pca", 2.5)):
        points = curve.codes[name]
        assert points[0].error > least * points[2].error, name
        assert all(0 < point.error <= point.worst <= point.p99 for point in points)
    rebuilt = decode(encode(stars, star_model), star_model)
    columns = star_model.transform.columns
    stored = reconstruction(stars, rebuilt, columns, DR2, star_model.transform.derived).headline.beside_position.median
    assert curve.codes["model"][-1].error == pytest.approx(stored.mean, rel=0.03)


def test_latents_that_are_not_rounded_have_no_curve(star_model: StarModel, stars: pa.Table) -> None:
    plain = replace(star_model, card=star_model.card.model_copy(update={"codes": ()}))
    assert rate_curve(plain, stars, Moments.of(star_model.transform.forward(stars).values)) is None
