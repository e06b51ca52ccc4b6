"""Stars rated one by one: errors in units of their own, likelihoods that are probabilities, and the stars like no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from small_run import copied

from gaiadask import catalogue
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config, PriorConfig
from gaiadask.errors import ConfigurationError, MissingStageError
from gaiadask.model.star_model import StarModel
from gaiadask.prior.density_fit import fit_density
from gaiadask.prior.flows import Gaussianised
from gaiadask.quality.records import Outliers
from gaiadask.quality.single_stars import OUTLIERS, FindOutliers, Stars, outliers_of, outliers_record, rate_stars, stars_of
from gaiadask.report.outliers import outliers
from gaiadask.run import Run, open_run
from gaiadask.stages.outliers import find_outliers
from gaiadask.store.files import Store

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def stars(run: Run) -> Stars:
    parts = [part for part, _ in stars_of(run._model_source, run.catalogue_record.partitions)]
    real, rebuilt = (pa.concat_tables(getattr(part, name) for part in parts) for name in ("real", "rebuilt"))
    return Stars(real, rebuilt, np.concatenate([part.latents for part in parts]))


def column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), np.float64)


def test_a_stars_error_is_the_largest_over_columns_in_units_of_its_own(run: Run, stars: Stars) -> None:
    ratings = rate_stars(stars, run.model, None)
    release, names = run.model.transform.release, run.model.transform.columns
    ratios = {}
    for name in names:
        error = release.columns[name].error_column
        if name not in ("ra", "dec") and error is not None:
            off = np.abs(column(stars.rebuilt, name) - column(stars.real, name))
            ratios[name] = off / (release.columns[name].error_factor * column(stars.real, error))
    expected = pd.DataFrame(ratios)
    np.testing.assert_allclose(ratings.error, expected.max(axis=1))
    assert len(ratios) > 3 and [names[i] for i in ratings.column] == expected.idxmax(axis=1).tolist()
    assert np.isnan(ratings.log_likelihood).all(), "without a prior"


def test_the_log_likelihood_of_a_density_is_normalised() -> None:
    random = np.random.default_rng(0)
    x = np.exp(0.5 * random.standard_normal((4_000, 1)))
    config = PriorConfig(rows_seen=20_000, batch_rows=500, hidden=(16,), transforms=1, bins=4)
    pairs = (x, np.empty((len(x), 0), np.float32))
    density = fit_density(pairs, pairs, config, 0).density
    grid = np.linspace(0.01, 12, 20_000)[:, None]
    p = np.exp(density.log_density(grid, np.empty((len(grid), 0))))
    assert np.trapezoid(p, grid[:, 0]) == pytest.approx(1, abs=0.02)
    truth = norm.pdf(np.log(grid[:, 0]) / 0.5) / (0.5 * grid[:, 0])
    bulk = truth > 0.1 * truth.max()
    assert np.median(np.abs(p - truth)[bulk] / truth[bulk]) < 0.15, "quantiles of 4,000 stars"


def test_the_rough_map_stretches_as_its_derivative_says() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((500, 3)) @ np.array([[1, 0.5, 0], [0, 2, 1], [0, 0, 0.1]])
    rough, step = Gaussianised.fit(x), 1e-6
    at = np.vstack([x[:20] + 1e-3, 4 * x[:5]])  # in the tails, too
    slopes = np.stack([(rough.forward(at + step * e) - rough.forward(at - step * e)) / (2 * step) for e in np.eye(3)], axis=2)
    np.testing.assert_allclose(rough.log_stretch(at), np.linalg.slogdet(slopes)[1], atol=1e-4)


def test_the_probabilities_of_rounded_latents_are_about_those_of_their_steps(star_model: StarModel) -> None:
    """The volume of all steps along a latent is that of what `continuous` draws within them."""
    code = star_model.card.codes[0]
    z = np.tile(star_model.latents_from(np.zeros((1, star_model.latents))), (3, 1))
    z[:, 0] = code.offset + code.scale * np.array([code.smallest + 20, 0 if code.bits > 8 else 128, code.largest - 20])
    middle, log_steps = star_model.as_continuous(z)
    draws = [star_model.continuous(z, np.random.default_rng(i)) for i in range(300)]
    widths = np.ptp([drawn[:, 0] for drawn in draws], axis=0) * 301 / 299
    others = np.log([c.scale * 2.0 / (1 - z[0, i] ** 2) for i, c in enumerate(star_model.card.codes) if i]).sum()
    np.testing.assert_allclose(np.exp(log_steps.sum(axis=1) - others), widths, rtol=0.05)
    assert np.abs(middle[:, 0] - np.mean([drawn[:, 0] for drawn in draws], axis=0)).max() < 0.1 * widths.max()


@pytest.mark.slow
def test_outliers_are_the_worst_of_all_stars_however_partitions_are_grouped(run: Run, stars: Stars) -> None:
    found = run.outliers(4)
    assert list(found.columns) == OUTLIERS.names and found["rank"].tolist() == [1, 2, 3, 4] * 2
    ratings = rate_stars(stars, run.model, run.prior)
    ids = stars.real["source_id"].to_numpy()
    for why, key in (("worst rebuilt", -ratings.error), ("least likely", ratings.log_likelihood)):
        own = found[found.why == why]
        assert own.source_id.tolist() == ids[np.argsort(key)[:4]].tolist()
        row = int(np.flatnonzero(ids == own.source_id.iloc[0])[0])
        assert own.error_sigma.iloc[0] == pytest.approx(ratings.error[row], rel=1e-4)
        assert own.log_likelihood.iloc[0] == pytest.approx(ratings.log_likelihood[row], abs=1e-2)
    worst = found[found.why == "worst rebuilt"]
    np.testing.assert_allclose((worst.rebuilt - worst.value).abs() / worst.error, worst.error_sigma, rtol=1e-6)
    find = FindOutliers(run._model_source, run.prior.key, 4)
    one_by_one = find.merged([find([partition]) for partition in run.catalogue_record.partitions])
    assert one_by_one["source_id"].to_pylist() == found.source_id.tolist() and len(run.catalogue_record.partitions) > 2


@pytest.mark.slow
def test_the_command_finds_them_on_workers(run: Run, small_run: Config) -> None:
    found, expected = find_outliers(small_run, 3, workers=Here()).to_pandas(), run.outliers(3)
    assert found.source_id.tolist() == expected.source_id.tolist()


@pytest.mark.slow
def test_outliers_in_quality_json_and_report(run: Run, stars: Stars) -> None:
    record = outliers_record(outliers_of(stars, run.model, run.prior, 3), run.model)
    assert Outliers.model_validate_json(record.model_dump_json()).to_json() == record.to_json()
    assert [star.source_id for star in record.worst_rebuilt] == run.outliers(3).source_id.tolist()[:3]
    quality = SimpleNamespace(outliers=record)
    page = str(outliers(SimpleNamespace(quality=quality, stars=1_000)))  # type: ignore[arg-type]
    for star in (*record.worst_rebuilt, *record.least_likely):
        assert str(star.source_id) in page and star.column is not None and star.column in page
    none = Outliers(worst_rebuilt=(), least_likely=())
    for absent in (None, none):
        assert "No single stars" in str(outliers(SimpleNamespace(quality=SimpleNamespace(outliers=absent), stars=9)))  # type: ignore[arg-type]


def test_a_star_that_is_moved_is_found_and_why(run: Run, stars: Stars) -> None:
    real = stars.real.slice(0, 500)
    strange = column(real, "pmra").copy()
    strange[7] = 5_000.0
    number = real.schema.get_field_index("pmra")
    moved = Stars(
        real.set_column(number, real.schema.field(number), pa.array(strange)), stars.rebuilt.slice(0, 500), stars.latents[:500]
    )
    worst = outliers_of(moved, run.model, None, 1).to_pylist()
    assert [(star["source_id"], star["column"], star["value"]) for star in worst] == [
        (real["source_id"][7].as_py(), "pmra", 5_000.0)
    ]
    found = outliers_of(
        moved._replace(latents=np.where(np.arange(500)[:, None] == 7, -0.999, moved.latents)), run.model, run.prior, 1
    )
    unlikely = found.to_pylist()[1]
    assert (unlikely["why"], unlikely["source_id"], unlikely["column"]) == ("least likely", real["source_id"][7].as_py(), "pmra")


@pytest.mark.slow
def test_what_outliers_need(run: Run, small_run: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="n=0"):
        run.outliers(0)
    assert len(run.outliers(10**6)) == 2 * run.catalogue_record.rows
    config = copied(small_run, tmp_path / "store")
    other = open_run(f"{config.store}/runs/small")
    entry = other.manifest.require("prior")
    for kind, message in (("none", "prior.kind 'none'"), ("gaussian", "which has no density of latents")):
        text = Store(config.store).read_bytes(other.paths.manifest).decode()
        Path(config.store, other.paths.manifest).write_text(text.replace(f'"kind": "{entry.result["kind"]}"', f'"kind": "{kind}"'))
        with pytest.raises(MissingStageError, match=message):
            other.outliers(1)
        Path(config.store, other.paths.manifest).write_text(text)
    other.manifest.remove("prior")
    with pytest.raises(MissingStageError, match="has not got through the stage prior yet"):
        other.outliers(1)
    assert catalogue.is_published(Store(config.store), other.paths.latent)
