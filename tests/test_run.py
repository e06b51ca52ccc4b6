"""A finished run as users read it: lazy frames of one partition a file, and the same answer in every kind of frame."""

from __future__ import annotations

import os
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import copied, fetched

from gaiadask.config.sections import Config
from gaiadask.errors import DataError, MissingStageError, StoreError
from gaiadask.model.card import latent_names
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, SEED16
from gaiadask.run import Run, open_run
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    return fetched(small_run)


def by_source_id(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(SOURCE_ID).reset_index(drop=True)


def assert_same_stars(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal but for the last bits of what a network gave; nulls in the same places, types the same."""
    assert list(one.columns) == list(other.columns)
    assert list(one.dtypes) == list(other.dtypes)
    for name in one.columns:
        assert one[name].isna().equals(other[name].isna()), name
        a, b = (frame[name].to_numpy(np.float64, na_value=0.0) for frame in (one, other))
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4), name


# Opening -------------------------------------------------------------------------------------------------------------
def test_a_run_that_is_not_there_names_those_that_are(small_run: Config) -> None:
    with pytest.raises(StoreError, match=r"no run 'smal' in the store .*: did you mean small\? There are small"):
        open_run(f"{small_run.store}/runs/smal")


@pytest.mark.parametrize("uri", ["small", "store/small", "store/run/small", "s3://bucket/small"])
def test_what_is_no_runs_address_is_told(uri: str) -> None:
    with pytest.raises(StoreError, match=r"is not the address of a run: expected <store>/runs/<name>"):
        open_run(uri)


def test_a_store_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run 'a' in the store .*: it has none"):
        open_run(f"{tmp_path}/runs/a")


@pytest.mark.slow
def test_any_way_to_write_the_address(small_run: Config, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(Path(small_run.store).parent)
    for uri in ("store/runs/small", "./store/runs/small/", f"file://{small_run.store}/runs/small", Path("store/runs/small")):
        opened = open_run(uri)
        assert opened.config == small_run
        frame = opened.latent()
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")  # as a worker may be
            assert len(frame) == run.catalogue_record.rows


def test_what_the_run_tells(run: Run, small_run: Config) -> None:
    assert run.config == small_run
    assert run.model.transform.columns == SEED16
    assert run.manifest.entry("encode") is not None
    assert run.catalogue_record.rows == 12_000


def test_a_run_behind_a_link_is_opened(small_run: Config, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "catalogue").symlink_to(f"{small_run.store}/catalogue")
    (tmp_path / "runs" / "linked").symlink_to(f"{small_run.store}/runs/small")
    assert open_run(tmp_path / "runs" / "linked").model.latents == small_run.model.latents


def test_what_is_missing_names_its_command(small_run: Config, run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        MissingStageError, match=r"run 'small' has not got through the stage evaluate yet: make it with `gaiadask evaluate CONFIG`"
    ):
        _ = run.quality
    config = copied(small_run, tmp_path / "store")
    Manifest(Store(config.store), RunPaths("small")).remove("train", "encode")
    begun = open_run(f"{config.store}/runs/small")
    with pytest.raises(MissingStageError, match=r"has not got through the stage train yet: make it with `gaiadask train CONFIG`"):
        _ = begun.model
    with pytest.raises(MissingStageError, match=r"has not got through the stage encode yet: make it with `gaiadask encode CONFIG`"):
        begun.latent()


# Frames --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_one_partition_a_file_and_every_star(run: Run, stars: pa.Table) -> None:
    files = run.store.list(f"{run.paths.latent}/dataset", ".parquet")
    latent, raw = run.latent(), run.catalogue()
    assert latent.npartitions == raw.npartitions == len(files) > 3
    assert list(latent.columns) == [SOURCE_ID, HEALPIX_29, "ra", "dec", "null_mask", *latent_names(6)]
    assert by_source_id(latent.compute())[SOURCE_ID].tolist() == stars[SOURCE_ID].to_pylist()
    rows = [run.store.open_parquet(name).metadata.num_rows for name in files]
    assert sorted(latent.map_partitions(len).compute()) == sorted(raw.map_partitions(len).compute()) == sorted(rows)


def test_anyone_can_read_the_latents(run: Run) -> None:
    folder = run.store.path(f"{run.paths.latent}/dataset")
    ours = by_source_id(run.latent().compute())
    frame = dd.read_parquet(folder)
    assert frame.npartitions == run.latent().npartitions
    theirs = by_source_id(frame.compute())
    assert set(theirs.columns) - set(ours.columns) == {"Norder", "Dir"}
    # The lines of README: any file of the catalogue has scale and offset.
    for field in pq.read_schema(f"{folder}/_common_metadata"):
        if field.metadata and b"scale" in field.metadata:
            theirs[field.name] = float(field.metadata[b"offset"]) + float(field.metadata[b"scale"]) * theirs[field.name]
    for name in latent_names(6):
        assert np.array_equal(theirs[name].to_numpy(np.float32), ours[name].to_numpy(np.float32))
    import pyarrow.dataset

    assert pyarrow.dataset.dataset(folder, format="parquet", exclude_invalid_files=True).count_rows() >= len(ours)


@pytest.mark.slow
def test_the_frames_types_are_those_announced(run: Run) -> None:
    for frame in (run.latent(), run.catalogue(), run.decode(run.latent()), run.encode(run.catalogue())):
        assert list(frame.dtypes) == list(frame.partitions[0].compute().dtypes)
        assert list(frame.columns) == list(frame.partitions[0].compute().columns)


def test_some_columns_of_the_catalogue(run: Run, stars: pa.Table) -> None:
    frame = run.catalogue(["source_id", "parallax"])
    assert list(frame.columns) == ["source_id", "parallax"]
    found = by_source_id(frame.compute())
    wanted = stars.select(["source_id", "parallax"]).to_pandas(types_mapper=pd.ArrowDtype)
    pd.testing.assert_frame_equal(found, wanted)


def test_an_unknown_column_of_the_catalogue_is_told(run: Run) -> None:
    with pytest.raises(DataError, match=r"no column\(s\) parallaxe: did you mean parallax\?"):
        run.catalogue(["source_id", "parallaxe"])


def test_nulls_are_nulls_in_pandas(run: Run, stars: pa.Table) -> None:
    assert run.catalogue()["teff_val"].isna().sum().compute() == stars["teff_val"].null_count > 0


# Encode and decode ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_kind_of_frame_gives_the_same_latents(run: Run, stars: pa.Table) -> None:
    arrow = run.encode(stars)
    assert isinstance(arrow, pa.Table)
    as_pandas = arrow.to_pandas(types_mapper=pd.ArrowDtype)
    of_arrow_backed = run.encode(stars.to_pandas(types_mapper=pd.ArrowDtype))
    of_numpy_backed = run.encode(stars.to_pandas())  # NaN for null, as most users' frames
    of_dask = run.encode(run.catalogue())
    assert isinstance(of_numpy_backed, pd.DataFrame)
    assert isinstance(of_dask, dd.DataFrame)
    assert of_dask.npartitions == run.catalogue().npartitions
    for frame in (of_arrow_backed, of_numpy_backed, by_source_id(of_dask.compute()), by_source_id(run.latent().compute())):
        assert frame["null_mask"].tolist() == as_pandas["null_mask"].tolist()
        assert_same_stars(frame, as_pandas)


@pytest.mark.slow
def test_every_kind_of_frame_gives_the_same_stars(run: Run) -> None:
    latents = pa.Table.from_pandas(by_source_id(run.latent().compute()), preserve_index=False)
    arrow = run.decode(latents)
    assert isinstance(arrow, pa.Table)
    assert arrow.schema.field("parallax").equals(COLUMNS["parallax"].field, check_metadata=True)
    as_pandas = arrow.to_pandas(types_mapper=pd.ArrowDtype)
    of_numpy_backed = run.decode(latents.to_pandas())
    of_dask = run.decode(run.latent())
    assert isinstance(of_dask, dd.DataFrame)
    for frame in (of_numpy_backed, by_source_id(of_dask.compute())):
        assert_same_stars(frame, as_pandas)


def test_the_index_of_a_frame_is_kept(run: Run, stars: pa.Table) -> None:
    frame = stars.slice(0, 5).to_pandas().set_index(pd.Index([7, 3, 9, 1, 5], name="row"))
    assert run.encode(frame).index.equals(frame.index)
    assert run.decode(run.encode(frame)).index.equals(frame.index)
    asked = run.encode(run.catalogue()).partitions[0]
    assert len(asked.compute()) == len(run.catalogue().partitions[0].compute())


def test_positions_of_the_model_are_refused_where_it_has_none(run: Run) -> None:
    with pytest.raises(DataError, match="positions='model'"):
        run.decode(run.latent(), positions="model").partitions[0].compute()


def test_a_frame_without_source_id_can_be_decoded(run: Run) -> None:
    latents = run.latent().partitions[0].compute().drop(columns=[SOURCE_ID])
    assert list(run.decode(latents).columns) == list(SEED16)


def test_an_empty_frame_gives_an_empty_one(run: Run, stars: pa.Table) -> None:
    assert len(run.encode(stars.slice(0, 0))) == 0
    assert len(run.decode(run.encode(stars.slice(0, 0).to_pandas()))) == 0
    assert list(run.encode(stars.slice(0, 0)).column_names) == list(run.latent().columns)


@pytest.mark.slow
def test_nothing_is_written(run: Run, small_run: Config, stars: pa.Table) -> None:
    def state() -> dict[str, int]:
        return {str(p): os.stat(p).st_mtime_ns for p in Path(small_run.store).rglob("*")}

    before = state()
    run.decode(run.latent()).compute()
    run.encode(stars)
    assert state() == before


def test_a_latent_file_from_outside_with_other_rows_is_seen(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    run = open_run(f"{config.store}/runs/small")
    name = run.store.path(run.store.list(f"{run.paths.latent}/dataset", ".parquet")[0])
    table = pq.read_table(name)
    pq.write_table(table.drop_columns(["z00"]), name)
    with pytest.raises(DataError, match=r"has no column\(s\) \['z00'\]"):
        run.latent().compute()
