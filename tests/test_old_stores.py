"""Stores of released versions open for ever, or are refused by a message that names the version.

tests/data/store-0.1.0.tar.xz: a store of 2,000 mock stars and, of every fourth of them, what `gaiadask decode` made of it, written by
version 0.1.0 before its modules were moved.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.encode import encode
from gaiadask.errors import StoreError
from gaiadask.run import Run, open_run
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions

ARCHIVE = Path(__file__).parent / "data" / "store-0.1.0.tar.xz"
# The matrix product's last bits differ between processors.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def run(unpacked: Path) -> Run:
    return open_run(unpacked / "store" / "runs" / "r")


@pytest.fixture
def config(run: Run, unpacked: Path) -> Config:
    return run.config.model_copy(update={"store": str(unpacked / "store")})


def arrow(frame: object) -> pa.Table:
    with dask.config.set(scheduler="synchronous"):
        return pa.Table.from_pandas(frame.compute(), preserve_index=False).sort_by("source_id")  # type: ignore[attr-defined]


def assert_close(one: pa.Table, other: pa.Table) -> None:
    for name in other.column_names:
        a, b = one[name], other[name]
        assert a.is_null().equals(b.is_null()) or (a.null_count, b.null_count) == (0, 0), name
        assert np.allclose(a.drop_null().to_numpy(), b.drop_null().to_numpy(), **CLOSE), name


@pytest.mark.slow
def test_an_old_store_is_read(run: Run) -> None:
    latents = arrow(run.latent())
    assert latents.num_rows == run.catalogue_record.rows == 2_000
    assert run.model.latents == 6
    assert run.manifest.read().versions["gaiadask"] == "0.1.0"


def test_an_old_model_encodes_as_it_did(run: Run) -> None:
    again = encode(arrow(run.catalogue()), run.model)
    assert_close(again, arrow(run.latent()).select(again.column_names))


def test_old_latents_are_decoded_as_they_were(run: Run, unpacked: Path) -> None:
    wanted = pq.read_table(unpacked / "decoded.parquet")
    rebuilt = arrow(run.decode(run.latent()))
    assert_close(rebuilt.filter(pc.is_in(rebuilt["source_id"], wanted["source_id"])), wanted)


@pytest.mark.slow
def test_an_old_prior_draws_what_it_drew(run: Run, unpacked: Path) -> None:
    with dask.config.set(scheduler="synchronous"):
        drawn = run.sample(200, seed=3).compute()
    wanted = pq.read_table(unpacked / "store" / "runs" / "r" / "samples" / "part-00000.parquet").to_pandas()
    # A star at the edge of a range may be drawn again on another processor: then it and those after it differ.
    assert np.isclose(drawn["parallax"].to_numpy(np.float64), wanted["parallax"].to_numpy(), rtol=1e-3).mean() > 0.9


def test_old_latents_have_neighbours_and_outliers(run: Run) -> None:
    with dask.config.set(scheduler="synchronous"):
        star = run.latent().get_partition(0).compute().source_id.iloc[0]
        assert run.nearest([star], k=3).distance.is_monotonic_increasing
        found = run.outliers(2)
    assert found.error_sigma.max() > 3 and np.isfinite(found.log_likelihood).all()


@pytest.mark.slow
def test_an_old_run_is_gone_on_with(config: Config, unpacked: Path) -> None:
    """Its keys are those of today: nothing is made again, and what is asked for is made from what is there."""
    weights = (unpacked / "store/runs/r/model/weights.safetensors").stat().st_mtime_ns
    run_stages(config, ["statistics", "train", "encode", "prior"], workers=Here())
    assert (unpacked / "store/runs/r/model/weights.safetensors").stat().st_mtime_ns == weights
    request = DecodeOptions(output=str(unpacked / "again"))
    assert run_stages(config, ["decode"], request=request, workers=Here())["decode"].to_json()["rows"] == 2_000
    # Samples that an older version drew into the same folder are of the same request.
    before = (unpacked / "store/runs/r/samples/part-00000.parquet").stat().st_mtime_ns
    run_stages(config, ["sample"], request=SampleOptions(stars=200, seed=3), workers=Here())
    assert (unpacked / "store/runs/r/samples/part-00000.parquet").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "model/card.json"])
def test_a_store_of_a_version_to_come_is_refused_by_name(unpacked: Path, tmp_path: Path, name: str) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "store" / "runs" / "r" / name
    for text in ('"format": 1', '"format_version": 2'):
        path.write_text(path.read_text().replace(text, text[:-1] + "9"))
    with pytest.raises(
        StoreError, match=rf"{path.name}: format(_version)? 9, expected \d: read it with the gaiadask that wrote it"
    ):
        _ = open_run(tmp_path / "store" / "runs" / "r").model
