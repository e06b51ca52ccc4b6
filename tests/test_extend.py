"""The catalogue's extension: lsdb joins it on source_id, and it says what it was made from."""

from __future__ import annotations

from pathlib import Path

import lsdb
import numpy as np
import pandas as pd
import pytest
from small_run import copied

from gaiadask import catalogue
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.quality.single_stars import rate_stars, stars_of
from gaiadask.run import Run, open_run
from gaiadask.stages.engine import run_stages
from gaiadask.stages.extend import ExtendResult
from gaiadask.stages.validation import validate_run

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def config(small_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = copied(small_run, tmp_path_factory.mktemp("extended") / "store")
    run_stages(config, ["extend"], workers=Here())
    return config


@pytest.fixture(scope="module")
def run(config: Config) -> Run:
    return open_run(f"{config.store}/runs/small")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Right catalog does not have a margin cache")
def test_lsdb_joins_it_to_the_catalogue(run: Run, config: Config) -> None:
    opened = lsdb.open_catalog(run.store.uri_of("catalogue")).load_extension(run.store.uri_of(run.paths.extension_properties))
    joined = opened.compute().set_index("source_id")
    assert len(joined) == run.catalogue_record.rows and {"parallax", "ra"} <= set(joined.columns)
    latents = run.latent().compute().set_index("source_id").loc[joined.index]
    for name in (*run.model.latent_columns, "null_mask"):
        assert joined[name].tolist() == latents[name].tolist(), name
    (stars, _), *_ = stars_of(run._model_source, run.catalogue_record.partitions[:1])
    ratings, ids = rate_stars(stars, run.model, run.prior), stars.real["source_id"].to_numpy()
    own = joined.loc[ids]
    np.testing.assert_allclose(own.error_sigma.to_numpy(np.float64), ratings.error, rtol=1e-4)
    np.testing.assert_allclose(own.log_likelihood.to_numpy(np.float64), ratings.log_likelihood, atol=1e-2)
    assert own.error_column.tolist() == [run.model.transform.columns[i] for i in ratings.column]
    # As latents, it is what `decode` takes.
    rebuilt = run.decode(joined.reset_index().iloc[:50][["source_id", "ra", "dec", "null_mask", *run.model.latent_columns]])
    assert isinstance(rebuilt, pd.DataFrame) and len(rebuilt) == 50


@pytest.mark.slow
def test_its_properties_say_what_it_was_made_from(run: Run) -> None:
    said = catalogue.provenance(run.store, run.paths.extension)
    assert said["gaiadask_catalogue_id"] == run.catalogue_record.id and said["gaiadask_weights"] == run.model.card.weights_sha256
    assert said["gaiadask_prior"] == run.prior.card.weights_sha256 and said["gaiadask_version"]
    extension = run.store.read_bytes(run.paths.extension_properties).decode()
    assert all(f"{name}={value}" in extension for name, value in said.items())
    assert "hats_assn_join_table_url=extension\n" in extension, "relative: a store can be moved"


@pytest.mark.slow
def test_it_is_made_once_anew_where_damaged_and_dropped(run: Run, config: Config) -> None:
    file = sorted(Path(config.store, run.paths.extension).rglob("Npix=*.parquet"))[0]
    before = file.stat().st_mtime_ns
    assert isinstance(run_stages(config, ["extend"], workers=Here())["extend"], ExtendResult)
    assert file.stat().st_mtime_ns == before
    assert [finding.where for finding in validate_run(config, True, workers=Here()).findings] == []
    file.write_bytes(file.read_bytes()[:-9])
    findings = validate_run(config, True, workers=Here()).findings
    assert [finding.where for finding in findings] == ["extension"] and "gaiadask extend" in findings[0].problem
    run_stages(config, ["extend"], workers=Here())
    assert validate_run(config, True, workers=Here()).findings == []
    run_stages(config, ["extend"], replacing=["extend"], workers=Here())
    assert run.store.exists(run.paths.extension_properties) and file.stat().st_mtime_ns > before
